package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"msh/kernel/ledger"
	"msh/kernel/netx"
)

// wiring is a pinned network namespace of a lab's with its ledger, in LAB/.nets/NAME.
type wiring struct {
	ns     *netx.NS
	dir    string
	ledger *ledger.Ledger
}

const (
	netsDir   = ".nets"
	pinFile   = "ns"
	firstPort = 100 // below it the loopback, the bridge
)

// makeWiring makes the namespace by make, pins it, and has setup do the rest. When
// anything fails nothing is left.
func (l *Lab) makeWiring(s *stepper, name string, record any, make func() (*netx.NS, error), setup func(*wiring) error) (*wiring, error) {
	if err := s.step("make the network's directory"); err != nil {
		return nil, err
	}
	dir := filepath.Join(l.dir(), netsDir, name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, explainState(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, explainState(err)
	}
	w := &wiring{dir: dir}
	err := func() (err error) {
		if w.ledger, err = ledger.Create(filepath.Join(dir, "ledger")); err != nil {
			return err
		}
		if err := w.ledger.Write(netOp, record); err != nil {
			return err
		}
		if err := s.step("make the network namespace"); err != nil {
			return err
		}
		if w.ns, err = make(); err != nil {
			return err
		}
		if err := w.pin(s, filepath.Join(dir, pinFile)); err != nil {
			return err
		}
		return setup(w)
	}()
	if err != nil {
		return nil, errors.Join(err, w.remove(s.ctx, l.host))
	}
	return w, nil
}

func (w *wiring) pin(s *stepper, path string) error { return pinNS(s, w.ledger, w.ns, path) }

func pinNS(s *stepper, l *ledger.Ledger, ns *netx.NS, path string) error {
	if err := s.step("pin the network namespace"); err != nil {
		return err
	}
	if err := l.Write("pin", path); err != nil {
		return err
	}
	return ns.Pin(path)
}

// remove undoes it. The namespace goes with its last descriptor.
func (w *wiring) remove(ctx context.Context, h *Host) error {
	if w.ledger != nil {
		w.ledger.Close()
	}
	if err := h.undoMachine(ctx, w.dir); err != nil {
		return err
	}
	w.close()
	os.Remove(filepath.Dir(w.dir))
	return nil
}

// close gives the handle up; what is pinned stays.
func (w *wiring) close() {
	if w.ns != nil {
		w.ns.Close()
	}
	if w.ledger != nil {
		w.ledger.Close()
	}
}

// index is the next free one for an interface of any of the lab's networks. A
// number is never used again: the end of a machine takes its port away a moment
// later. No two ends of a cable have the same one, nor, since they begin high, one
// in a machine: the kernel would take that for no cable, and tell of its carrier
// only after a second or two (linkwatch_urgent_event in net/core/link_watch.c).
func (l *Lab) index() int { return firstPort - 1 + int(l.ports.Add(1)) }

// netRecord is what another process can read of a network.
type netRecord struct {
	Spec   *VNetSpec `json:",omitempty"` // nil for the patch panel that holds cables
	Parent string    `json:",omitempty"` // a machine, "" for the host
	Keep   bool      `json:",omitempty"`
}

// netOp is the entry of a ledger that undoes nothing, but tells of the network;
// the last one counts.
const netOp = "net"

// clearNets undoes the networks of a lab whose owner has ended: all of them where
// no machine is left, else those that are not kept.
func (h *Host) clearNets(ctx context.Context, lab string, all bool) error {
	dir := filepath.Join(h.State, lab, netsDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		net := filepath.Join(dir, e.Name())
		r, err := readNet(net)
		if err == nil && (all || r == nil || !r.Keep) {
			err = h.undoMachine(ctx, net)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s/%s: %w", lab, e.Name(), err))
		}
	}
	os.Remove(dir)
	if all {
		errs = append(errs, os.RemoveAll(filepath.Join(h.State, lab, hostsDir)))
	}
	return errors.Join(errs...)
}

// undoNetsIn undoes the networks that lie in a machine: before the machine itself,
// as they may have something of its.
func (h *Host) undoNetsIn(ctx context.Context, lab, machine string) error {
	dir := filepath.Join(h.State, lab, netsDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		net := filepath.Join(dir, e.Name())
		r, err := readNet(net)
		if err == nil && r != nil && r.Parent == machine {
			err = h.undoMachine(ctx, net)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// readNet reads what a network's ledger tells of it; nil where it was never made.
func readNet(dir string) (*netRecord, error) {
	entries, err := ledger.Read(filepath.Join(dir, "ledger"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(entries) {
		if e.Op == netOp {
			r := &netRecord{}
			return r, json.Unmarshal(e.Arg, r)
		}
	}
	return nil, nil
}

// closeNets destroys the lab's networks when it ends, but for those that outlive
// it. Links end with the networks and machines at their ends.
func (l *Lab) closeNets(ctx context.Context) error {
	var errs []error
	kept := slices.ContainsFunc(l.Machines(), func(m *Machine) bool { return m.Spec().Keep })
	if kept && slices.ContainsFunc(l.VNets(), func(v *VNet) bool { return v.spec.Keep }) {
		errs = append(errs, l.tellAll()) // whom of those they knew the kept machines still have
	}
	for _, v := range slices.Backward(l.VNets()) {
		if kept && v.spec.Keep && v.net != nil {
			v.net.close()
			l.dropVNet(v)
			continue
		}
		errs = append(errs, v.Destroy(ctx))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.patch; w != nil {
		l.patch = nil
		if r, err := readNet(w.dir); kept && err == nil && r != nil && r.Keep {
			w.close()
		} else {
			errs = append(errs, err, w.remove(ctx, l.host))
		}
	}
	return errors.Join(errs...)
}
