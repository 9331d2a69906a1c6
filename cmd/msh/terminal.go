package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"msh/kernel"
)

// onTerminal runs the command on a terminal of the machine's own, which msh's terminal is made to stand for: raw, so that
// every key goes through, ^C among them, and of the same size.
func (a *app) onTerminal(m *kernel.Machine, command *kernel.Command) (code int, err error) {
	stdin := a.stdin.(*os.File)
	if command.Env == nil {
		command.Env = map[string]string{}
	}
	if _, ok := command.Env["TERM"]; !ok {
		command.Env["TERM"] = os.Getenv("TERM") // what the bytes mean is the outer terminal's
	}
	t, err := m.OpenTerminal()
	if err != nil {
		return 0, err
	}
	defer t.Close()

	resize := func() {
		if columns, rows, err := term.GetSize(int(stdin.Fd())); err == nil {
			t.Resize(columns, rows)
		}
	}
	resize()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, syscall.SIGWINCH, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(caught)
	go func() {
		for sig := range caught {
			if sig == syscall.SIGWINCH {
				resize()
			} else {
				cancel() // the terminal hangs up
			}
		}
	}()

	old, err := term.MakeRaw(int(stdin.Fd()))
	if err != nil {
		return 0, fmt.Errorf("make the terminal raw: %w", err)
	}
	defer term.Restore(int(stdin.Fd()), old)
	go io.Copy(t.Master, stdin)
	shown := make(chan struct{})
	go func() {
		io.Copy(a.stdout, t.Master) // until EIO: the machine's end is closed
		close(shown)
	}()
	code, err = m.Shell(ctx, command, t)
	select {
	case <-shown:
	case <-time.After(200 * time.Millisecond): // a background process holds it
	}
	return code, err
}
