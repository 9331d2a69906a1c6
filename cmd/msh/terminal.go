package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"msh/kernel"
)

// onTerminal runs the command on a terminal of the machine's own, which msh's terminal is made to stand for. Keys go
// through it, ^C among them, so what is left for msh is to hang up when it is told to end.
func (a *app) onTerminal(m *kernel.Machine, command *kernel.Command) (int, error) {
	if _, ok := command.Env["TERM"]; !ok {
		command.Env["TERM"] = os.Getenv("TERM") // what the bytes mean is the outer terminal's
	}
	ctx, stop := signal.NotifyContext(context.Background(), unlessNohup(syscall.SIGTERM)...)
	defer stop()
	return m.Interact(ctx, command, a.stdin, a.stdout)
}
