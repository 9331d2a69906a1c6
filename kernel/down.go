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
	dir := filepath.Join(h.State, lab)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, withHint(fmt.Errorf("no lab %q", lab), "`msh ls` lists them")
	}
	lock, err := lockOwner(dir, false)
	if errors.Is(err, errOwned) {
		if idle {
			return nil, nil
		}
		return nil, withHint(fmt.Errorf("lab %s: its script is still running", lab), "end the script: its machines end with it")
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	names, err := h.dirs(dir)
	if err != nil {
		return nil, err
	}
	// The control group of a machine holds those of the machines inside it, so
	// that any order will do: what is gone already is no error.
	var errs []error
	for _, name := range names {
		if err := h.undoMachine(ctx, filepath.Join(dir, name)); err != nil {
			errs = append(errs, fmt.Errorf("%s/%s: %w", lab, name, err))
			continue
		}
		removed = append(removed, lab+"/"+name)
	}
	releaseLab(dir)
	h.tidy()
	return removed, errors.Join(errs...)
}
