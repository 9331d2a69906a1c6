package main

import (
	"context"
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
		return in.REPL(ctx, lines)
	}})
}

// isTerminal tells whether a stream of msh's is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
