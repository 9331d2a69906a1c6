package main

import "github.com/spf13/cobra"

// superviseCommand is msh's own use of msh: it stays awake for a process that is
// to be restarted in a machine that has outlived its script.
func (a *app) superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise LAB/MACHINE",
		Short:  "start a process again when it ends; msh starts this itself",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.rootHost(c)
			if err != nil {
				return err
			}
			return h.Supervise(c.Context(), args[0], a.stdin, a.stdout)
		},
	}
}
