package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"msh/interp"
	"msh/kernel"
)

// enterSpace takes the msh of an ordinary user into the user's space, in which the user is root: it executes itself
// again there, and the process stays the one it is. Only what has to do with machines needs that, and what only looks
// at them needs no space where there is none.
func (a *app) enterSpace(c *cobra.Command) error {
	if !kernel.NeedsSpace() || a.dry {
		return nil
	}
	word := c.Name()
	if !c.HasParent() {
		word = "" // a script
	}
	create := false
	switch word {
	case "", "up", "test", "doctor", "resources":
		create = true
	case "down", "ls", "inspect", "exec", "shell", "logs", "stats", "gc":
	default:
		return nil
	}
	a.outside = kernel.EnterSpace(os.Getenv("MSH_STATE"), create)
	if word == "doctor" || errors.Is(a.outside, kernel.ErrNoSpace) {
		return nil // which says so, or finds nothing
	}
	return a.outside
}

// leaveSpace is the end of it.
func (a *app) leaveSpace() {
	if !kernel.InSpace() {
		return
	}
	h, err := a.host()
	if err == nil {
		err = h.LeaveSpace()
	}
	if err != nil {
		fmt.Fprint(a.stderr, "msh: "+interp.Format(err, nil))
	}
}
