package kernel

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ownPidSpace is the PID namespace that msh itself is in, for its threads to come
// back to.
var ownPidSpace = sync.OnceValues(func() (int, error) {
	fd, err := unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /proc/self/ns/pid: %w", err)
	}
	return fd, nil
})

// inPidSpace calls start on a thread whose children are born in the PID
// namespace of the process behind pidfd: children inherit that of the thread,
// and only a thread's own can be set (setns(2), CLONE_NEWPID).
//
// It is the caller's thread, since handing the start to another and back wakes
// two, which takes longer than the start. It may go back to Go's pool as no other
// that was in a namespace may: the call does not move the thread itself, and what
// it sets is set back. A thread of which that fails does not survive.
func inPidSpace(pidfd int, start func() error) error {
	if InSpace() {
		return inPidSpaceForGood(pidfd, start)
	}
	own, err := ownPidSpace()
	if err != nil {
		return err
	}
	// Go makes no thread from a locked one: it would be born there too (EINVAL).
	runtime.LockOSThread()
	if err := unix.Setns(pidfd, unix.CLONE_NEWPID); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the PID space: %w", err)
	}
	defer func() {
		if err := unix.Setns(own, unix.CLONE_NEWPID); err != nil {
			panic("kernel: leave the PID space: " + err.Error())
		}
		runtime.UnlockOSThread()
	}()
	return start()
}

// inPidSpaceForGood is inPidSpace for a user's msh. The PID namespace that it stands
// in itself is not one that its space owns, so that no thread could come back to it
// (setns(2), EPERM): another one goes in, and is left to die. A process's first
// thread does not die, and so does not go.
func inPidSpaceForGood(pidfd int, start func() error) error {
	done := make(chan error, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			go run() // on another thread, while this one is held
			return
		}
		if err := unix.Setns(pidfd, unix.CLONE_NEWPID); err != nil {
			done <- fmt.Errorf("enter the PID space: %w", err)
			return
		}
		done <- start()
	}
	go run()
	return <-done
}
