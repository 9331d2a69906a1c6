// Msh is a machine shell: it runs Starlark scripts that fork machines, and looks after the machines that outlive
// their script.
//
// This package is the front door only: main and app.go take the command line apart, script.go hands the words of
// package builtins to the interpreter, signals.go sees that whatever ends a script undoes it, and every command
// has a file of its own.
package main

import (
	"io"
	"os"

	_ "msh/kernel/prefault" // before the other packages' init functions
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is msh as a function: its arguments and streams go in, an exit code comes back.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	code := a.exitCode(a.execute(args))
	a.leaveSpace()
	return code
}
