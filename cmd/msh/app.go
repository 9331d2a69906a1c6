package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"msh/interp"
	"msh/kernel"
)

// app is one run of msh: its streams, and the flags that stand before a command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	code  string // -c
	dry   bool   // -n
	lab   string // --lab
	fault string // --fault

	known   *kernel.Host // see host
	outside error        // why an ordinary user's msh is not in the user's space
}

// commands are the words that may stand in the place of a script's name, in the order of the help. Only the one that is
// asked for is made: a script should not wait for fifteen commands it does not use.
func commands() []command {
	return []command{
		{"up", (*app).upCommand},
		{"down", (*app).downCommand},
		{"ls", (*app).lsCommand},
		{"inspect", (*app).inspectCommand},
		{"exec", (*app).execCommand},
		{"shell", (*app).shellCommand},
		{"logs", (*app).logsCommand},
		{"stats", (*app).statsCommand},
		{"hibernate", (*app).hibernateCommand},
		{"wake", (*app).wakeCommand},
		{"migrate", (*app).migrateCommand},
		{"resources", (*app).resourcesCommand},
		{"doctor", (*app).doctorCommand},
		{"gc", (*app).gcCommand},
		{"doc", (*app).docCommand},
		{"version", (*app).versionCommand},
		{"supervise", (*app).superviseCommand},
		{"receive", (*app).receiveCommand},
	}
}

type command struct {
	name string
	make func(*app) *cobra.Command
}

// execute finds out what the command line asks for, and does it.
func (a *app) execute(args []string) error {
	root := a.rootCommand()
	root.SetArgs(args)
	if word, ok := a.firstWord(args); ok {
		for _, c := range commands() {
			if c.name == word || !isCommand(word) {
				root.AddCommand(c.make(a))
			}
		}
	}
	return root.Execute()
}

// firstWord returns the word behind msh's own flags where that word, and not -c or a script, says what is to be done;
// "" if it is the help that is wanted.
func (a *app) firstWord(args []string) (word string, ok bool) {
	flags := pflag.NewFlagSet("msh", pflag.ContinueOnError)
	flags.Usage = func() {}
	(&app{}).flags(flags)
	if err := flags.Parse(args); err != nil {
		return "", errors.Is(err, pflag.ErrHelp)
	}
	switch {
	case flags.Changed("code") || flags.NArg() == 0:
		return "", false
	case isCommand(flags.Arg(0)) || isCobras(flags.Arg(0)):
		return flags.Arg(0), true
	}
	return "", false
}

func isCommand(word string) bool {
	for _, c := range commands() {
		if c.name == word {
			return true
		}
	}
	return false
}

// isCobras tells the commands that cobra brings: help, and what shells call for completion.
func isCobras(word string) bool {
	return word == "help" || word == "completion" || strings.HasPrefix(word, cobra.ShellCompRequestCmd)
}

// flags defines those that stand before a command or a script. What stands behind is the command's or the script's.
func (a *app) flags(f *pflag.FlagSet) {
	f.SetInterspersed(false)
	f.StringVarP(&a.code, "code", "c", "", "run `CODE`, with what follows as its arguments")
	f.BoolVarP(&a.dry, "dry-run", "n", false, "print the plan and touch nothing; needs no root")
	f.StringVar(&a.lab, "lab", "", "the lab's `NAME` (default: the script's, without .star)")
	f.StringVar(&a.fault, "fault", "", "make step K fail: parent:K, child:K, or kill:K to be killed there")
	f.MarkHidden("fault")
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "msh [FILE.star [ARG…]]",
		Short: "a machine shell: scripts that fork machines",
		Long: `msh runs a Starlark script that forks machines: trees of processes with an init,
resources and limits of their own. What the script made ends with it.
Without a script it reads one line by line.`,
		Example: `  msh lab.star            run it
  msh -n lab.star         print what it would do
  msh -c 'print(machine_rfork([pidspace()]).run("echo $$").stdout)'
  msh up lab.star         run it and keep its machines; msh down lab ends them`,
		Args:              cobra.ArbitraryArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(c *cobra.Command, args []string) error {
			if a.dry && c.HasParent() && c.Name() != "up" {
				return usage(c, "-n goes with a script")
			}
			return a.enterSpace(c)
		},
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case c.Flags().Changed("code"):
				return a.runCode(args)
			case len(args) > 0:
				return a.runFile(args[0], args[1:])
			}
			return a.runREPL()
		},
	}
	a.flags(root.Flags())
	// Behind a command --lab still is the lab, of those that take one; see up.
	root.TraverseChildren = true
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, "%v", err) })
	return root
}

// usageError is a command line that means nothing: exit code 2.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }
func (e *usageError) Hint() string  { return e.hint }

func usage(c *cobra.Command, format string, args ...any) error {
	return &usageError{c.CommandPath() + ": " + fmt.Sprintf(format, args...), fmt.Sprintf("`%s --help` tells how it is called", c.CommandPath())}
}

// takes is the check of a command that takes min to max arguments; max -1 is any number. what names them in the error.
func takes(min, max int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < min:
			return usage(c, "got %d arguments, want %s", len(args), what)
		case max == 0 && len(args) > 0:
			return usage(c, "got %q, want no arguments", args[0])
		case max >= 0 && len(args) > max:
			return usage(c, "got %q too, want %s", args[max], what)
		}
		return nil
	}
}

// exitStatus is an exit code about which all has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// exitCode prints the error and returns what msh ends with.
func (a *app) exitCode(err error) int {
	var status exitStatus
	var wrong *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &wrong):
		fmt.Fprintf(a.stderr, "%s\nhint: %s\n", wrong.msg, wrong.hint)
		return 2
	}
	fmt.Fprint(a.stderr, "msh: "+interp.Format(err, nil))
	return 1
}

// host is the computer msh runs on. It is looked at once.
func (a *app) host() (*kernel.Host, error) {
	if a.known != nil {
		return a.known, nil
	}
	kernel.Version = version
	h, err := kernel.NewHost(os.Getenv("MSH_STATE"))
	if err != nil {
		return nil, err
	}
	if h.Fault, err = parseFault(a.fault); err != nil {
		return nil, err
	}
	a.known = h
	return h, nil
}

// rootHost is host, for a command that does something to machines: root's, or those of the user, who has none where
// there is no space of the user's to go into.
func (a *app) rootHost(*cobra.Command) (*kernel.Host, error) { return a.host() }

// sweep undoes what an msh that was killed has left. It costs one look at the state directory.
func (a *app) sweep(ctx context.Context, h *kernel.Host) {
	if kernel.NeedsSpace() {
		return // there is nothing yet
	}
	if _, err := h.Sweep(ctx, false); err != nil {
		// In the way of this run only if it needs the same things; then its own error says so.
		fmt.Fprint(a.stderr, "msh: sweep: "+interp.Format(err, nil))
	}
}

func parseFault(s string) (f kernel.Fault, err error) {
	if s == "" {
		return f, nil
	}
	where, step, _ := strings.Cut(s, ":")
	var k int
	if _, err := fmt.Sscanf(step+"\n", "%d\n", &k); err != nil || k < 1 || !slices.Contains([]string{"parent", "child", "kill"}, where) {
		return f, &usageError{fmt.Sprintf("msh: --fault: got %q, want parent:K, child:K or kill:K, K from 1", s), "`msh --help` tells how it is called"}
	}
	switch where {
	case "parent":
		f.Parent = k
	case "child":
		f.Child = k
	case "kill":
		f.Parent, f.Kill = k, true
	}
	return f, nil
}

// labName is what a lab is called after its script: lab.star makes lab.
func labName(file string) string {
	base := strings.TrimSuffix(filepath.Base(file), ".star")
	name := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, base), "-")
	if len(name) > 40 { // a machine's name goes behind it, in the name of a control group
		name = strings.TrimRight(name[:40], "-")
	}
	if name == "" {
		return "lab"
	}
	return name
}
