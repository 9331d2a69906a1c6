package main

import (
	"github.com/spf13/cobra"

	"msh/kernel"
)

func (a *app) shellCommand() *cobra.Command {
	var command kernel.Command
	var env []string
	c := &cobra.Command{
		Use:   "shell MACHINE [-- COMMAND [ARG…]]",
		Short: "open a shell in a machine",
		Long:  "Runs /bin/sh, or another command, in a machine: on a terminal of the machine's own\nwhere msh stands on one, on msh's streams otherwise.",
		RunE: func(c *cobra.Command, args []string) error {
			machine, argv, err := execArgs(c, args)
			if err != nil {
				return err
			}
			if command.Argv = argv; len(argv) == 0 {
				command.Argv = []string{"/bin/sh"}
			}
			if command.Env, err = parseEnv(c, env); err != nil {
				return err
			}
			return a.exec(c, machine, &command)
		},
	}
	c.Flags().SetInterspersed(false)
	commandFlags(c, &command, &env)
	return c
}
