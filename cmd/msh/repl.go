package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/term"

	"msh/interp"
)

// runREPL reads inputs one by one. Where they come from a terminal a SIGINT ends the input under way, as in a shell;
// elsewhere it ends msh.
func (a *app) runREPL() error {
	return a.runScript(script{lab: "msh", prompt: isTerminal(a.stdin), run: func(ctx context.Context, in *interp.Interp) error {
		lines, err := in.NewLineReader()
		if err != nil {
			return err
		}
		defer lines.Close()
		err = in.REPL(ctx, lines)
		if n := in.Failures(); err == nil && n > 0 && !isTerminal(a.stdin) {
			// Who pipes a script in must learn that it went wrong.
			err = fmt.Errorf("inputs that failed: %d", n)
		}
		return err
	}})
}

// isTerminal tells whether a stream of msh's is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
