package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"msh/interp"
)

// interruption is a signal that ended the run: everything is undone, then msh exits with 128 and its number.
type interruption struct{ syscall.Signal }

func (i interruption) Error() string { return "got " + signalName(i.Signal) }

func signalName(sig syscall.Signal) string {
	switch sig {
	case syscall.SIGINT:
		return "SIGINT"
	case syscall.SIGTERM:
		return "SIGTERM"
	case syscall.SIGHUP:
		return "SIGHUP"
	case syscall.SIGQUIT:
		return "SIGQUIT"
	}
	return sig.String()
}

// signals turns the first signal that ends msh into the end of a context. The undoing that follows is not ended by
// further ones: half of it would help nobody. They are told what is going on.
type signals struct {
	stderr io.Writer
	stop   func()
	// ready is closed once they are watched: that takes three threads and a moment, which need not be waited for before
	// something is done that has to be undone.
	ready chan struct{}

	mu    sync.Mutex
	got   syscall.Signal
	doing func() string
}

// watchSignals begins to watch. With prompt a SIGINT is the business of whoever reads the terminal.
func watchSignals(stderr io.Writer, prompt bool) (context.Context, *signals) {
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &signals{stderr: stderr, doing: func() string { return "its machines" }, ready: make(chan struct{})}
	ch := make(chan os.Signal, 8)
	go func() {
		// A SIGPIPE that is asked for does not kill: a write to a pipe without a reader fails instead, which ends the
		// script as any error does.
		signal.Notify(ch, unlessNohup(syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGPIPE)...)
		close(s.ready)
		for sig := range ch {
			if sig := sig.(syscall.Signal); sig != syscall.SIGPIPE && !(sig == syscall.SIGINT && prompt) {
				s.receive(sig, cancel)
			}
		}
	}()
	// The signals are not given back: each takes two changes of threads, and msh ends now.
	s.stop = func() { cancel(nil) }
	return ctx, s
}

// unlessNohup adds SIGHUP to signals to be asked for, unless msh was started to ignore it: to ask would undo nohup(1).
// SIGINT is another matter: a shell script has all that it starts with & ignore it, and who then sends it to msh means it.
func unlessNohup(sigs ...os.Signal) []os.Signal {
	if !signal.Ignored(syscall.SIGHUP) {
		sigs = append(sigs, syscall.SIGHUP)
	}
	return sigs
}

func (s *signals) receive(sig syscall.Signal, cancel context.CancelCauseFunc) {
	s.mu.Lock()
	first, doing := s.got == 0, s.doing
	if first {
		s.got = sig
	}
	s.mu.Unlock()
	if first {
		cancel(interruption{sig})
		return
	}
	fmt.Fprintf(s.stderr, "msh: %s: still undoing %s; it ends by itself\n", signalName(sig), doing())
}

// undoing sets what says what the undoing is at.
func (s *signals) undoing(f func() string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doing = f
}

// interrupted returns the signal that ended the context, if one did.
func (s *signals) interrupted() (syscall.Signal, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got, s.got != 0
}

// ended is what a command ends with that a signal may have ended: its error is told, or where that is the end of the
// context and no more, what has been undone.
func (s *signals) ended(err error, undone string) error {
	sig, ok := s.interrupted()
	if err == nil || !ok {
		return err
	}
	if i := (interruption{}); undone != "" && (errors.Is(err, context.Canceled) || errors.As(err, &i)) {
		fmt.Fprintf(s.stderr, "msh: %s: %s\n", signalName(sig), undone)
	} else {
		fmt.Fprint(s.stderr, "msh: "+interp.Format(err, nil))
	}
	return exitStatus(128 + int(sig))
}
