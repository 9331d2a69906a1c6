package kernel

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Interact runs a program of the machine's on a pseudo-terminal of the machine's
// and joins it with the caller's: keys go in as they are typed, the window's size
// follows. Where in is no terminal, it is copied in, and its end is the end of
// input. It returns the program's code.
func (m *Machine) Interact(ctx context.Context, c *Command, in io.Reader, out io.Writer) (int, error) {
	t, err := m.OpenTerminal()
	if err != nil {
		return 0, err
	}
	defer t.Close()
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		restore, err := t.follow(f)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	stop, err := t.feed(in)
	if err != nil {
		return 0, err
	}
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(out, t.Master) // ends with EIO when the last of the machine's ends is closed
	}()
	code, err := m.Shell(ctx, c, t)
	// A background process may hold the terminal open: what the program itself
	// wrote has been read when there is nothing to read.
	t.drained(done)
	return code, err
}

// follow sets the caller's terminal to raw mode, and the new one to its size,
// now and when it changes. The returned function puts things back.
func (t *Terminal) follow(f *os.File) (restore func(), err error) {
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	resize := func() {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			unix.IoctlSetWinsize(int(t.Master.Fd()), unix.TIOCSWINSZ, ws)
		}
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	resize() // after that, or a change in between would be missed
	go func() {
		for range changed {
			resize()
		}
	}()
	return func() {
		signal.Stop(changed)
		close(changed)
		term.Restore(int(f.Fd()), old)
	}, nil
}

// feed copies the caller's input to the terminal until stopped. It polls before
// it reads, so that no key typed after the end is swallowed.
func (t *Terminal) feed(in io.Reader) (stop func(), err error) {
	f, ok := in.(*os.File)
	if !ok {
		if in != nil {
			go func() {
				io.Copy(t.Master, in)
				t.Master.Write([]byte{endOfInput})
			}()
		}
		return func() {}, nil
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var buf [4096]byte
		for {
			fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err == unix.EINTR {
				continue
			} else if err != nil || fds[1].Revents != 0 {
				return
			}
			n, err := f.Read(buf[:])
			if n > 0 {
				t.Master.Write(buf[:n])
			}
			if err != nil {
				t.Master.Write([]byte{endOfInput})
				return
			}
		}
	}()
	return func() {
		unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-ended
		unix.Close(wake)
	}, nil
}

// endOfInput is Ctrl-D, what ends input on a terminal.
const endOfInput = 4

// drained waits until the copy has ended, or nothing is left to copy.
func (t *Terminal) drained(done <-chan struct{}) {
	for {
		fds := []unix.PollFd{{Fd: int32(t.Master.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 { // hung up, and read to its end
			<-done
			return
		}
	}
}
