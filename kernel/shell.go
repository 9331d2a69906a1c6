package kernel

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Terminal is a pseudo-terminal whose slave end is a machine's: one of its own
// devpts where it has one, so that nothing of the caller's terminal gets in
// (TIOCSTI, TIOCLINUX).
type Terminal struct {
	Master *os.File
	slave  int
	closed sync.Once // the slave: by Shell, or without one by Close
}

// OpenTerminal makes a pseudo-terminal in the machine.
func (m *Machine) OpenTerminal() (*Terminal, error) {
	if err := m.alive(); err != nil {
		return nil, err
	}
	root, err := m.openRoot()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	how := &unix.OpenHow{Flags: unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	master, err := unix.Openat2(root, "dev/ptmx", how)
	if err != nil {
		return nil, withHint(fmt.Errorf("open /dev/ptmx in %s: %w", m.Name(), err), "the machine needs a devpts on /dev/pts, as root(…) makes it")
	}
	fail := func(what string, err error) (*Terminal, error) {
		unix.Close(master)
		return nil, fmt.Errorf("%s in %s: %w", what, m.Name(), err)
	}
	// What was opened must be a master of a devpts, not a file by that name.
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fail("unlock a terminal", err)
	}
	// By number, not by name: no path of the machine's is followed for it.
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fail("open a terminal", errno)
	}
	return &Terminal{Master: os.NewFile(uintptr(master), "ptmx"), slave: int(slave)}, nil
}

// Close closes the master, and the machine's end where no program has taken it.
func (t *Terminal) Close() error {
	t.closeSlave()
	return t.Master.Close()
}

func (t *Terminal) closeSlave() {
	t.closed.Do(func() { unix.Close(t.slave) })
}

// Shell starts a program on the terminal and waits for its end. The master is
// the caller's to copy to and from.
func (m *Machine) Shell(ctx context.Context, c *Command, t *Terminal) (int, error) {
	if err := c.Validate(); err != nil {
		return 0, err
	}
	b, s, done, err := m.entry()
	if err != nil {
		return 0, err
	}
	defer done()
	// The session first: only its leader gets a controlling terminal.
	s.Call("become a session leader", 0, unix.SYS_SETSID)
	s.Call("take the terminal", 0, unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	if _, err := m.command(ctx, b, s, c); err != nil {
		return 0, err
	}
	b.stdio = [3]int{t.slave, t.slave, t.slave}
	p, err := b.start()
	t.closeSlave()
	if err != nil {
		return 0, err
	}
	defer p.close()
	cancel, err := newCanceller(ctx)
	if err != nil {
		p.killGroup()
		reap(p.pidfd)
		return 0, err
	}
	defer cancel.close()
	if _, err := cancel.await(ctx, time.Time{}, p.pidfd); err != nil {
		p.killGroup()
		reap(p.pidfd)
		return 0, err
	}
	st, err := reap(p.pidfd)
	if err != nil {
		return 0, err
	}
	if err := m.notStarted(c, p); err != nil {
		return 0, err
	}
	return st.Code(), nil
}
