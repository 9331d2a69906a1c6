package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

func (a *app) downCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:     "down LAB…",
		Short:   "end labs and the machines in them",
		Long:    "Destroys every machine of the labs, and takes back what they were given.\nA lab whose script is still running is that script's to end.",
		Example: "  msh down lab\n  msh down --all",
		RunE: func(c *cobra.Command, labs []string) error {
			switch {
			case all && len(labs) > 0:
				return usage(c, "got --all and %q, want one of them", labs[0])
			case !all && len(labs) == 0:
				return usage(c, "got no lab, want LAB… or --all")
			}
			return a.down(c, labs, all)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all labs whose script has ended")
	return c
}

func (a *app) down(c *cobra.Command, labs []string, all bool) error {
	h, err := a.rootHost(c)
	if err != nil {
		return err
	}
	_, signals := watchSignals(a.stderr, false) // which would leave a lab half down
	defer signals.stop()
	<-signals.ready
	if all {
		if labs, err = h.Labs(); err != nil {
			return err
		}
	}
	slices.Sort(labs)
	var errs []error
	for _, lab := range slices.Compact(labs) {
		removed, err := h.Down(c.Context(), lab, all)
		for _, id := range removed {
			fmt.Fprintln(a.stdout, id)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
