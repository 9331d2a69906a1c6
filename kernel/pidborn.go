package kernel

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// delivery is a process to be started in the PID namespace of the one behind pidfd.
type delivery struct {
	pidfd int
	start func() error
	done  chan error
}

// deliveries go to whichever midwife is free.
var deliveries = make(chan delivery)

// idle is how long a midwife waits for the next delivery before she goes: making
// a thread for each costs more than the rest of a start.
const idle = time.Second

// inPidSpace calls start on a thread whose children are born in the PID
// namespace of the process behind pidfd: children inherit that of the thread,
// and only a thread's own can be set (setns(2), CLONE_NEWPID).
func inPidSpace(pidfd int, start func() error) error {
	d := delivery{pidfd, start, make(chan error, 1)}
	select {
	case deliveries <- d:
	default:
		go midwife(d)
	}
	return <-d.done
}

// midwife serves deliveries, each in its own PID namespace, on a thread that
// serves nothing else: she ends without unlocking it, and it dies with her.
func midwife(d delivery) {
	runtime.LockOSThread()
	for {
		if err := unix.Setns(d.pidfd, unix.CLONE_NEWPID); err != nil {
			d.done <- fmt.Errorf("enter the PID space: %w", err)
		} else {
			d.done <- d.start()
		}
		select {
		case d = <-deliveries:
		case <-time.After(idle):
			return
		}
	}
}
