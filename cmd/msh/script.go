package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"msh/builtins"
	"msh/interp"
	"msh/stdlib"
)

// script is what there is to run, and how.
type script struct {
	lab    string
	args   []string
	up     bool // its machines are kept
	prompt bool // someone types it
	run    func(context.Context, *interp.Interp) error
	// then, if any, comes after a script that succeeded, before it is closed.
	then func(*builtins.Session) error
}

func (a *app) runCode(args []string) error {
	return a.runScript(script{lab: "msh", args: args, run: func(ctx context.Context, in *interp.Interp) error {
		return in.RunSource(ctx, "<code>", a.code)
	}})
}

func (a *app) runFile(file string, args []string) error {
	src, err := a.readScript(file)
	if err != nil {
		return err
	}
	return a.runScript(script{lab: labName(file), args: args, run: func(ctx context.Context, in *interp.Interp) error {
		return in.RunSource(ctx, file, src)
	}})
}

// readScript reads a script, "-" being the standard input, before anything is done. What is not there and has not the look of a file's name was meant
// for a command.
func (a *app) readScript(file string) (string, error) {
	if file == "-" {
		src, err := io.ReadAll(a.stdin)
		return string(src), err
	}
	src, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(file, "./") {
		return "", &usageError{fmt.Sprintf("msh: %s: no such command, and no file of that name", file), didYouMean(file)}
	}
	return string(src), err
}

func didYouMean(word string) string {
	root := (&app{}).rootCommand()
	for _, c := range commands() {
		root.AddCommand(c.make(&app{}))
	}
	root.SuggestionsMinimumDistance = 2
	if s := root.SuggestionsFor(word); len(s) > 0 {
		return "did you mean `msh " + s[0] + "`?"
	}
	return "`msh --help` lists the commands"
}

// runScript runs a script, and whatever ends it, undoes what it made: deferred functions first, then its machines, the
// last one first.
func (a *app) runScript(s script) error {
	ctx, signals := watchSignals(a.stderr, s.prompt) // which takes longest, and goes on by itself
	defer signals.stop()
	h, err := a.host()
	if err != nil {
		return err
	}
	if a.lab != "" {
		s.lab = a.lab
	}
	session, err := builtins.New(builtins.Options{Host: h, Lab: s.lab, Up: s.up, Dry: a.dry, Stdout: a.stdout})
	if err != nil {
		return err
	}
	in := interp.New(interp.Options{
		Dry:    a.dry,
		Args:   s.args,
		Stdin:  a.stdin,
		Stdout: a.stdout,
		Stderr: a.stderr,
		Words:  session.Words(),
		Values: session.Values(),
		Types:  builtins.Types(),
		Named:  builtins.Named(),
		Stdlib: stdlib.FS,
		Ready:  signals.ready,
	})
	signals.undoing(func() string { return undoing(session) })
	if !a.dry {
		a.sweep(ctx, h)
	}

	err = s.run(ctx, in)
	undo := context.WithoutCancel(ctx)
	failed := err != nil
	if _, ok := signals.interrupted(); ok && errors.Is(err, context.Canceled) {
		err = nil // the signal is told below
	}
	err = errors.Join(err, in.Close(undo))
	if s.up && (failed || err != nil) {
		err = errors.Join(err, destroyKept(undo, session))
		s.then = nil
	}
	if err == nil && s.then != nil && !a.dry {
		err = s.then(session)
	}
	err = errors.Join(err, session.Close(undo))

	if err != nil {
		fmt.Fprint(a.stderr, in.FormatError(err))
	}
	if sig, ok := signals.interrupted(); ok && !(s.up && !failed) { // a lab that is up stays
		fmt.Fprintf(a.stderr, "msh: %s: what the script made is undone\n", signalName(sig))
		return exitStatus(128 + int(sig))
	}
	if err != nil {
		return exitStatus(1)
	}
	return nil
}

// undoing names the machines that are still there.
func undoing(s *builtins.Session) string {
	var names []string
	for _, m := range s.Lab().Machines() {
		names = append(names, m.Name())
	}
	if len(names) == 0 {
		return "what the script made"
	}
	return strings.Join(names, ", ")
}

// destroyKept ends the machines of a lab that did not come up: it is up as a whole or not at all.
func destroyKept(ctx context.Context, s *builtins.Session) error {
	var errs []error
	machines := s.Lab().Machines()
	for i := range machines {
		errs = append(errs, machines[len(machines)-1-i].Destroy(ctx))
	}
	for _, v := range s.Lab().VNets() {
		errs = append(errs, v.Destroy(ctx))
	}
	return errors.Join(errs...)
}
