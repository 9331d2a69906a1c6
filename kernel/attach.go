package kernel

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Attach runs a command on the caller's own descriptors, as `msh exec` does, and
// passes signals on. A terminal among them is not handed over: what the command got
// it could type into (TIOCSTI), as the caller, with CAP_SYS_ADMIN even if it is not
// its controlling one. The command gets a pipe, and msh copies.
func (m *Machine) Attach(ctx context.Context, c *Command, stdio [3]int, signals <-chan unix.Signal) (int, error) {
	if err := c.Validate(); err != nil {
		return 0, err
	}
	b, s, done, err := m.entry()
	if err != nil {
		return 0, err
	}
	defer done()
	var null []int
	for i, fd := range stdio {
		if isNull(fd) {
			null = append(null, i)
		}
	}
	if _, err := m.command(ctx, b, s, c, null...); err != nil {
		return 0, err
	}
	streams, err := newStreams(m, stdio, null)
	if err != nil {
		return 0, err
	}
	defer streams.close()
	b.stdio = streams.given
	p, err := b.start()
	streams.started()
	if err != nil {
		return 0, err
	}
	defer p.close()
	end, stopped := make(chan struct{}), make(chan struct{})
	defer func() {
		close(end)
		<-stopped // before the pidfd is closed, and its number somebody else's
	}()
	go func() {
		defer close(stopped)
		for {
			select {
			case sig := <-signals:
				unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
			case <-ctx.Done():
				unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
				return
			case <-end:
				return
			}
		}
	}()
	st, err := reap(p.pidfd)
	streams.ended()
	if err != nil {
		return 0, err
	}
	if err := m.notStarted(c, p); err != nil {
		return 0, err
	}
	return st.Code(), ctx.Err()
}

// streams are what a command is attached to.
type streams struct {
	given [3]int
	mine  []int // descriptors of given that are to be closed
	wake  int   // an eventfd: the command has ended
	done  []chan struct{}
}

// newStreams takes terminals out of stdio. Two of the outgoing that are terminals
// share a pipe, so that what is written to them stays in its order.
func newStreams(m *Machine, stdio [3]int, null []int) (_ *streams, err error) {
	s := &streams{given: stdio, wake: -1}
	defer func() {
		if err != nil {
			s.started()
			s.close()
		}
	}()
	for _, i := range null {
		if s.given[i], err = openNull(m.self.Root); err != nil {
			return nil, err
		}
		s.mine = append(s.mine, s.given[i])
	}
	shared := -1
	for i, fd := range stdio {
		if !term.IsTerminal(fd) {
			continue
		}
		if s.wake < 0 {
			if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
				return nil, fmt.Errorf("eventfd: %w", err)
			}
		}
		if i > 0 && shared >= 0 {
			s.given[i] = shared
			continue
		}
		var pipe [2]int
		if err = unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("pipe: %w", err)
		}
		near, far := pipe[0], pipe[1] // of an outgoing stream
		if i == 0 {
			near, far = far, near
		}
		s.given[i] = far
		s.mine = append(s.mine, far)
		done := make(chan struct{})
		s.done = append(s.done, done)
		go func() {
			defer close(done)
			defer unix.Close(near)
			if i == 0 {
				s.copy(near, fd, false)
			} else {
				s.copy(fd, near, true)
			}
		}()
		if i > 0 {
			shared = far
		}
	}
	return s, nil
}

// copy copies until the end of what it reads, or the end of the command: of what
// goes out, all that is there by then is copied, of what goes in nothing. It polls
// before it reads, so that no key that is typed later is swallowed.
func (s *streams) copy(to, from int, out bool) {
	var buf [16 << 10]byte
	left := len(buf)
	for ended := false; left > 0; {
		fds := []unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return
		}
		if fds[1].Revents != 0 && !ended {
			ended = true
			var err error
			if left, err = unix.IoctlGetInt(from, unix.TIOCINQ); err != nil || !out {
				return
			}
			continue
		}
		n, err := unix.Read(from, buf[:min(left, len(buf))])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 || writeAll(to, buf[:n]) != nil {
			return
		}
		if ended {
			left -= n
		}
	}
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// started closes the command's ends: it has them.
func (s *streams) started() {
	for _, fd := range s.mine {
		unix.Close(fd)
	}
	s.mine = nil
}

// ended has the copying end.
func (s *streams) ended() {
	if s.wake >= 0 {
		unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

func (s *streams) close() {
	s.ended()
	for _, d := range s.done {
		<-d
	}
	if s.wake >= 0 {
		unix.Close(s.wake)
	}
}
