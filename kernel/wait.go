package kernel

import (
	"bytes"
	"context"
	"math"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// status is how a process has ended.
type status struct {
	exited bool // else killed by signal
	code   int  // exit code or signal
}

// Code is the exit code, or 128 plus the signal's number, as in a shell.
func (s status) Code() int {
	if s.exited {
		return s.code
	}
	return 128 + s.code
}

// reap waits for the end of a child of msh's.
func reap(pidfd int) (status, error) { return waitid(pidfd, unix.WEXITED) }

// reapNow is reap without waiting; ok tells whether it has ended.
func reapNow(pidfd int) (s status, ok bool, err error) {
	s, err = waitid(pidfd, unix.WEXITED|unix.WNOHANG)
	return s, err == nil && s != (status{}), err
}

// waitid(2) fills a siginfo whose layout for SIGCHLD x/sys/unix does not give:
// the status is 24 bytes in, behind signo, errno, code, pid and uid.
func waitid(pidfd, options int) (status, error) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PIDFD, pidfd, &info, options, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || info.Signo == 0 {
			return status{}, err
		}
		const cldExited = 1
		code := *(*int32)(unsafe.Add(unsafe.Pointer(&info), 24))
		return status{info.Code == cldExited, int(code)}, nil
	}
}

// ended tells whether the process behind a pidfd, anybody's child, has ended.
func ended(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR { // which it can be although it does not wait
			return err == nil && n > 0
		}
	}
}

// canceller turns the end of a context into a readable descriptor, for poll(2).
type canceller struct {
	fd   int // -1 where the context never ends
	stop func() bool
}

func newCanceller(ctx context.Context) (*canceller, error) {
	if ctx.Done() == nil {
		return &canceller{fd: -1}, nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &canceller{fd, context.AfterFunc(ctx, func() { unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })}, nil
}

func (c *canceller) close() {
	if c.fd < 0 {
		return
	}
	if !c.stop() {
		// The function runs or has run: let it write before its descriptor is
		// closed and, worse, given to somebody else.
		for n, _ := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, -1); n < 1; {
			n, _ = unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, -1)
		}
	}
	unix.Close(c.fd)
}

// await blocks until one of the descriptors is readable (or closed), the context
// ends, or the time is up (0 is never). ready has a bit for each descriptor.
func (c *canceller) await(ctx context.Context, deadline time.Time, fds ...int) (ready uint, err error) {
	polls := make([]unix.PollFd, 0, len(fds)+1)
	for _, fd := range fds {
		polls = append(polls, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	polls = append(polls, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
	for {
		timeout := -1
		if !deadline.IsZero() {
			// poll(2) takes 31 bits of milliseconds, 24 days.
			timeout = int(min(max(0, time.Until(deadline)+time.Millisecond-1)/time.Millisecond, math.MaxInt32))
		}
		n, err := unix.Poll(polls, timeout)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		if n == 0 && time.Now().Before(deadline) {
			continue
		}
		if n == 0 {
			return 0, context.DeadlineExceeded
		}
		if polls[len(fds)].Revents != 0 {
			return 0, ctx.Err()
		}
		for i := range fds {
			if polls[i].Revents != 0 {
				ready |= 1 << i
			}
		}
		return ready, nil
	}
}

// statField is a field of /proc/PID/stat, counted from 0 behind the name, which
// stands in parentheses and may hold anything.
func statField(stat []byte, n int) uint64 {
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) <= n {
		return 0
	}
	v, _ := strconv.ParseUint(string(f[n]), 10, 64)
	return v
}
