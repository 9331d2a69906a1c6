package kernel

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// end kills the machine's processes; the function it returns waits for its init.
// The ledger would do so too, but has only the control group to look at, again and
// again; the pidfd wakes at once. What goes wrong here, the ledger meets again and
// reports.
func (m *Machine) end() (wait func()) {
	if m.pidfd < 0 || m.group.Kill() != nil {
		return func() {}
	}
	reapInit := func() {}
	if m.takeInit != nil {
		reapInit = m.takeInit()
	}
	return func() {
		never := &canceller{fd: -1}
		never.await(context.Background(), time.Now().Add(teardown), m.pidfd)
		reapInit()
	}
}

// destroyInside destroys the machines inside one that was loaded by name, which
// no lab of this process knows.
func (m *Machine) destroyInside(ctx context.Context) error {
	names, err := m.host.dirs(filepath.Dir(m.Dir()))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		c, err := m.host.load(m.labID, name)
		if err != nil {
			continue // half made: a sweep's
		}
		if c.parent.ID() == m.ID() {
			errs = append(errs, c.destroy(ctx))
		}
		c.close()
	}
	return errors.Join(append(errs, m.host.undoNetsIn(ctx, m.labID, m.ID()))...)
}

// Destroy ends the machine and those inside it and takes back all it was given.
// Destroying twice is no error.
func (m *Machine) Destroy(ctx context.Context) error {
	if m.isHost() {
		return bad("destroy", "", nil, "the host is not msh's to destroy")
	}
	if err := m.free(ctx, "destroy"); err != nil && !errors.Is(err, ErrDead) {
		return err
	}
	return m.destroy(ctx)
}

// destroy is Destroy of one that may be in doubt.
func (m *Machine) destroy(ctx context.Context) error {
	var errs []error
	if m.lab != nil {
		for _, c := range slices.Backward(m.lab.Machines()) {
			if c.parent == m {
				errs = append(errs, c.destroy(ctx))
			}
		}
	}
	if m.lab != nil {
		errs = append(errs, m.lab.endNets(ctx, m))
	}
	m.ending.Lock()
	defer m.ending.Unlock()
	m.mu.Lock()
	if m.state != "" {
		m.mu.Unlock()
		return errors.Join(errs...)
	}
	m.mu.Unlock()
	if m.lab == nil {
		errs = append(errs, m.destroyInside(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	wait := sync.OnceFunc(m.end())
	err := m.host.undoLedger(ctx, m.Dir(), wait)
	wait()
	if err != nil {
		return fmt.Errorf("destroy %s: %w", m.Name(), err)
	}
	m.mu.Lock()
	m.state = "destroyed"
	m.mu.Unlock()
	m.answers.close()
	m.close()
	if m.lab != nil {
		m.lab.unplug(m)
		m.lab.forget(m)
	}
	m.parent.disown(m.Name())
	return nil
}
