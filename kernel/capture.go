package kernel

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// capture collects what a process writes to its two pipes.
type capture struct {
	pipes [2][2]int
	text  [2][]byte
}

// newCapture makes the pipes. They belong to the user who will write to them, or
// programs that open /dev/stdout anew could not.
func newCapture(m *Machine, uid int) (*capture, error) {
	c := &capture{pipes: [2][2]int{{-1, -1}, {-1, -1}}}
	for i := range c.pipes {
		if err := unix.Pipe2(c.pipes[i][:], unix.O_CLOEXEC); err != nil {
			c.close()
			return nil, fmt.Errorf("pipe: %w", err)
		}
		if err := unix.SetNonblock(c.pipes[i][0], true); err != nil {
			c.close()
			return nil, err
		}
	}
	if at, ok := outward(m.self.IDs, uint32(uid), 1); ok && at != 0 {
		for i := range c.pipes {
			if err := unix.Fchown(c.pipes[i][1], int(at), -1); err != nil {
				c.close()
				return nil, fmt.Errorf("give the pipe to user %d: %w", at, err)
			}
		}
	}
	return c, nil
}

func (c *capture) close() {
	for _, pipe := range c.pipes {
		for _, fd := range pipe {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}
}

// drain reads what is in a pipe now; at its end it is closed.
func (c *capture) drain(i int) error {
	for {
		var buf [16 << 10]byte
		n, err := unix.Read(c.pipes[i][0], buf[:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return nil
		case err != nil:
			return fmt.Errorf("read output: %w", err)
		case n == 0:
			unix.Close(c.pipes[i][0])
			c.pipes[i][0] = -1
			return nil
		default:
			c.text[i] = append(c.text[i], buf[:n]...)
		}
	}
}

// wait reads until the process has ended, and then what is left in the pipes: a
// dead process has written all it ever will, so nothing is lost, and whoever else
// holds the pipes is not waited for. msh itself goes on holding their ends for
// writing: so it is not woken when the dying process closes its own, only to wait
// for its death again. When ctx or the time ends first, the
// process's group is killed.
func (c *capture) wait(ctx context.Context, deadline time.Time, p *process) (status, error) {
	cancel, err := newCanceller(ctx)
	if err != nil {
		p.killGroup()
		st, _ := reap(p.pidfd)
		return st, err
	}
	defer cancel.close()
	for {
		ready, err := cancel.await(ctx, deadline, c.pipes[0][0], c.pipes[1][0], p.pidfd)
		if err != nil {
			p.killGroup()
			st, _ := reap(p.pidfd)
			c.drainAll()
			return st, err
		}
		for i := range 2 {
			if ready&(1<<i) != 0 {
				if err := c.drain(i); err != nil {
					p.killGroup()
					st, _ := reap(p.pidfd)
					return st, err
				}
			}
		}
		if ready&4 != 0 {
			st, err := reap(p.pidfd)
			if err == nil {
				err = c.drainAll()
			}
			return st, err
		}
	}
}

// drainAll reads what is in the pipes at this moment: a background process could
// go on writing for ever.
func (c *capture) drainAll() error {
	for i := range c.pipes {
		if c.pipes[i][0] < 0 {
			continue
		}
		n, err := unix.IoctlGetInt(c.pipes[i][0], unix.TIOCINQ)
		if err != nil {
			return fmt.Errorf("read output: %w", err)
		}
		rest := make([]byte, n)
		for len(rest) > 0 {
			n, err := unix.Read(c.pipes[i][0], rest)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				break
			}
			c.text[i] = append(c.text[i], rest[:n]...)
			rest = rest[n:]
		}
	}
	return nil
}

// killGroup kills the process and those of its process group, which every
// process msh starts leads. The process has not been reaped, so the number is its.
func (p *process) killGroup() {
	if p.pid > 1 { // -1 would be everybody
		unix.Kill(-p.pid, unix.SIGKILL)
	}
	unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
}

// input is a descriptor to read those bytes from: /dev/null for none.
func (m *Machine) input(data []byte) (int, error) {
	if len(data) == 0 {
		return openNull(m.self.Root)
	}
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("memfd_create stdin: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return -1, err
	}
	// Opened anew, it can be read but not written, from its start.
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
}
