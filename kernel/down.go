package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Down ends a lab whose msh has ended: every machine in it, kept or not. It returns
// what it removed, as LAB/MACHINE. A lab that an msh is working on is an error, and
// with idle is left alone.
func (h *Host) Down(ctx context.Context, lab string, idle bool) (removed []string, err error) {
	if err := CheckName("down", "lab", lab); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(h.State, lab)); errors.Is(err, fs.ErrNotExist) {
		return nil, withHint(fmt.Errorf("no lab %q", lab), "`msh ls` lists them")
	}
	notes, err := h.stills(lab)
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		if n.inDoubt() || n.alive() {
			return nil, n.inTheWay("down", n.subject())
		}
	}
	return h.down(ctx, lab, idle)
}

// down is Down of a lab that may have machines in doubt.
func (h *Host) down(ctx context.Context, lab string, idle bool) (removed []string, err error) {
	removed, err = h.clearLab(ctx, lab, func(string) (bool, error) { return false, nil })
	h.tidy()
	if errors.Is(err, errOwned) {
		if idle {
			return nil, nil
		}
		return nil, withHint(fmt.Errorf("lab %s: its script is still running", lab), "end the script: its machines end with it")
	}
	return removed, err
}
