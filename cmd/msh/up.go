package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"msh/builtins"
	"msh/interp"
)

func (a *app) upCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "up [--lab NAME] FILE.star [ARG…]",
		Short: "run a script and keep its machines",
		Long: `Runs a script whose machines stay when it has ended, until msh down LAB.
A lab comes up whole or not at all: if the script fails, its machines are destroyed.`,
		Example: "  msh up lab.star\n  msh exec web -- ps\n  msh down lab",
		Args:    takes(1, -1, "FILE.star, and its arguments"),
		RunE: func(c *cobra.Command, args []string) error {
			if !a.dry {
				if _, err := a.rootHost(c); err != nil {
					return err
				}
			}
			return a.up(args[0], args[1:])
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVar(&a.lab, "lab", "", "the lab's `NAME` (default: the script's, without .star)")
	return c
}

func (a *app) up(file string, args []string) error {
	src, err := a.readScript(file)
	if err != nil {
		return err
	}
	return a.runScript(script{
		lab:  labName(file),
		args: args,
		up:   true,
		run: func(ctx context.Context, in *interp.Interp) error {
			return in.RunSource(ctx, file, src)
		},
		then: func(s *builtins.Session) error {
			n := len(s.Lab().Machines())
			if n == 0 {
				_, err := fmt.Fprintf(a.stdout, "lab %s: the script made no machine, nothing is up\n", s.Lab().Name())
				return err
			}
			_, err := fmt.Fprintf(a.stdout, "lab %s is up: %s\n", s.Lab().Name(), count(n, "machine"))
			return err
		},
	})
}

// count is "1 machine", "2 machines".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
