package interp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/chzyer/readline"
	"go.starlark.net/starlark"
)

const (
	prompt         = ">>> "
	promptContinue = "... "
)

// ErrInterrupt is what a LineReader returns for a Ctrl-C at the prompt.
var ErrInterrupt = readline.ErrInterrupt

// LineReader is where the REPL's input comes from. Readline returns a line without its newline, io.EOF at the end,
// or ErrInterrupt.
type LineReader interface {
	Readline() (string, error)
	SetPrompt(string)
	Close() error
}

// REPL reads inputs, runs each, and prints what an expression gives, until the lines or ctx end.
// Its globals are those of Globals, so it can go on where RunFile has ended. Errors are printed, and it goes on.
// An interrupt (SIGINT) cancels the input under way and nothing else: while REPL runs, the caller must not
// end ctx for one. It does not close lines.
func (in *Interp) REPL(ctx context.Context, lines LineReader) error {
	in.ready()
	var text strings.Builder // all that was read, for error messages
	line := 1
	for ctx.Err() == nil {
		input, err := readInput(ctx, lines)
		if errors.Is(err, ErrInterrupt) {
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read input: %w", err)
		}
		if input != "" {
			text.WriteString(input)
			in.addSource(sessionName, text.String())
			if !in.eval(ctx, input, line) {
				in.failures++
			}
			line += strings.Count(input, "\n")
		}
		if err != nil {
			break
		}
	}
	return canceled(ctx, nil)
}

// readInput reads the lines of one statement. It leaves it to the parser to say where a statement ends;
// what is wrong with it is found again, and reported, when it runs.
func readInput(ctx context.Context, lines LineReader) (string, error) {
	var text strings.Builder
	var failed error
	lines.SetPrompt(prompt)
	next := func() ([]byte, error) {
		line, err := readLine(ctx, lines)
		lines.SetPrompt(promptContinue)
		if err != nil {
			failed = err
			return nil, err
		}
		text.WriteString(line + "\n")
		return []byte(line + "\n"), nil
	}
	_, _ = fileOptions.ParseCompoundStmt(sessionName, next)
	return text.String(), failed
}

// readLine reads a line, but waits no longer than ctx lasts: a read of a pipe cannot be called off.
func readLine(ctx context.Context, lines LineReader) (string, error) {
	type read struct {
		line string
		err  error
	}
	done := make(chan read, 1) // so that a read nobody waits for any more can end
	go func() {
		line, err := lines.Readline()
		done <- read{line, err}
	}()
	select {
	case r := <-done:
		return r.line, r.err
	case <-ctx.Done():
		return "", io.EOF
	}
}

// Failures is how many inputs to REPL have ended in an error.
func (in *Interp) Failures() int { return in.failures }

// eval runs one input under a context that an interrupt ends, and prints its value or its error.
func (in *Interp) eval(ctx context.Context, input string, line int) (ok bool) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	v, err := in.runInput(ctx, input, line)
	switch {
	case err != nil:
		fmt.Fprint(in.opts.Stderr, in.FormatError(err))
	case v != nil && v != starlark.None:
		fmt.Fprintln(in.opts.Stdout, v)
	}
	return err == nil
}

// NewLineReader returns a LineReader for the interpreter's Stdin: with editing, history and completion
// on a terminal, plain and without a prompt otherwise.
func (in *Interp) NewLineReader() (LineReader, error) {
	if f, ok := in.opts.Stdin.(*os.File); ok && isTerminal(f) {
		return in.newTerminal(f)
	}
	return &plainReader{bufio.NewReader(in.opts.Stdin)}, nil
}

// plainReader reads lines from what is not a terminal.
type plainReader struct{ r *bufio.Reader }

func (p *plainReader) Readline() (string, error) {
	line, err := p.r.ReadString('\n')
	if line != "" && errors.Is(err, io.EOF) {
		err = nil // the last line may lack its newline
	}
	return strings.TrimSuffix(line, "\n"), err
}

func (p *plainReader) SetPrompt(string) {}
func (p *plainReader) Close() error     { return nil }
