package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) gcCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "remove what killed scripts left, and kept machines that have ended",
		Long: `Undoes what an msh that was killed could not undo: the machines of its script, half-made
ones, their control groups, files and claims. Kept machines that have ended go as well.
It prints what it removed. Every msh that makes machines does this first, but leaves
kept machines alone.`,
		Args: takes(0, 0, ""),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.rootHost(c)
			if err != nil {
				return err
			}
			removed, err := h.Sweep(c.Context(), true)
			for _, id := range removed {
				fmt.Fprintln(a.stdout, id)
			}
			return err
		},
	}
}
