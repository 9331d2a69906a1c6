package main

import (
	"context"

	"github.com/spf13/cobra"
)

// receiveCommand is msh's own use of msh: the other end of migrate, which ssh starts.
func (a *app) receiveCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "receive",
		Short:  "take a machine that comes on standard input; msh migrate starts this on the other host",
		Hidden: true,
		Args:   takes(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := a.rootHost(c)
			if err != nil {
				return err
			}
			ctx, signals := watchSignals(a.stderr, false)
			defer signals.stop()
			<-signals.ready
			a.sweep(context.WithoutCancel(ctx), h)
			return h.ReceiveStdio(ctx)
		},
	}
}
