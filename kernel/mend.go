package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// mend lets machines of a lab go on that an msh which was killed has left standing,
// or ends them where it was about to. Several may do so at a time.
func (h *Host) mend(ctx context.Context, lab string) error {
	all, err := h.stills(lab)
	if err != nil || !slices.ContainsFunc(all, func(n *standstill) bool { return !n.inDoubt() && !n.alive() }) {
		return err
	}
	unlock, err := h.lockStills(lab)
	if err != nil {
		return err
	}
	defer unlock()
	if all, err = h.stills(lab); err != nil { // as they are now
		return err
	}
	var errs []error
	for _, n := range all {
		if n.inDoubt() || n.alive() {
			continue
		}
		err := h.mendStill(ctx, lab, n)
		if err == nil {
			err = n.drop()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (h *Host) mendStill(ctx context.Context, lab string, n *standstill) error {
	var errs []error
	for _, name := range n.Machines {
		m, err := h.load(lab, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = m.untraced(ctx)
			switch {
			case err != nil:
			case n.End || n.Waking:
				err = m.destroy(ctx)
			case m.alive() == nil:
				err = m.resume(ctx, slices.Contains(n.Stopped, name))
			}
			m.close()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s/%s: %w", lab, name, err))
		}
	}
	for _, name := range n.Nets {
		errs = append(errs, h.undoMachine(ctx, filepath.Join(h.State, lab, netsDir, name)))
	}
	return errors.Join(append(errs, each(n.Asides, putUpperBack))...)
}

// untraced waits until criu has let go of the machine: it does so by itself when its
// msh has died, but a moment later.
func (m *Machine) untraced(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, teardown)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pid))
		return err != nil || m.alive() != nil || strings.Contains(string(b), "\nTracerPid:\t0\n"), nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("its init is still traced after %v", time.Duration(teardown))
	}
	return err
}

// resume lets a machine go on whose ports were closed and which was frozen, perhaps by
// an msh that has died meanwhile.
func (m *Machine) resume(ctx context.Context, thaw bool) error {
	var errs []error
	for _, n := range m.Netifs() {
		p, err := m.heldPort(n)
		if err == nil {
			err = p.release(true)
		}
		errs = append(errs, err)
	}
	if thaw {
		errs = append(errs, m.group.Thaw(ctx))
	}
	return errors.Join(errs...)
}

// free is nil where nothing but its user has the machine stand still. What a dead msh
// has left it mends.
func (m *Machine) free(ctx context.Context, what string) error {
	n, err := m.still()
	switch {
	case n == nil:
		return err
	case n.inDoubt():
		return n.inTheWay(what, m.Name())
	case n.Pid == os.Getpid() && n.alive():
		return nil // whose locks keep the two apart
	case n.alive():
		return n.inTheWay(what, m.Name())
	}
	if err := m.host.mend(ctx, m.labID); err != nil {
		return err
	}
	return m.alive()
}
