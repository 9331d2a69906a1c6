package kernel

import (
	"context"
	"errors"
	"fmt"

	"msh/kernel/netx"
)

// makePatch makes a cable between two machines.
func (k *Link) makePatch(ctx context.Context) (err error) {
	w, err := k.lab.patchPanel(ctx)
	if err != nil {
		return err
	}
	a, b := k.ends[0].Machine, k.ends[1].Machine
	if a.Name() > b.Name() {
		a, b = b, a // locked in one order, always
	}
	a.setting.Lock() // or two cables would choose the same name
	defer a.setting.Unlock()
	if a != b {
		b.setting.Lock()
		defer b.setting.Unlock()
	}
	var done []*Netif
	defer func() {
		if err == nil {
			return
		}
		for i := range k.ends {
			err = errors.Join(err, w.ns.Delete(k.port[i]))
		}
		for i, n := range done {
			err = errors.Join(err, k.ends[i].Machine.lose(n.Name))
		}
	}()
	k.port = [2]int{k.lab.index(), k.lab.index()}
	k.at = [2]*netx.NS{w.ns, w.ns}
	for i, e := range k.ends {
		if err := k.lab.settleOne(e.Machine, e.Netif, e.Machine.Netifs(), e.Machine.Name()); err != nil {
			return err
		}
		if e.Machine.Spec().Keep {
			if err := w.ledger.Write(netOp, netRecord{Keep: true}); err != nil {
				return err
			}
		}
		if err := k.plug(w.ns, i); err != nil {
			return err
		}
		if err := e.Machine.gain(e.Netif); err != nil {
			return err
		}
		done = append(done, e.Netif)
	}
	if err := w.ns.Patch(k.port[0], k.port[1]); err != nil {
		return fmt.Errorf("patch: %w", err)
	}
	return k.shape(k.cable)
}

// plug makes one end's interface.
func (k *Link) plug(w *netx.NS, i int) error {
	e := k.ends[i]
	n := e.Netif
	ns, err := e.Machine.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	n.Port = k.port[i]
	return plugPatch(w, ns, n, 0)
}

// plugPatch makes an interface in ns and its port on the panel w: at index, or where that
// is 0 at one that the kernel chooses, in a machine that runs.
func plugPatch(w, ns *netx.NS, n *Netif, index int) (err error) {
	mtu := n.MTU
	if mtu == 0 {
		mtu = 1500
	}
	err = w.AddVeth(netx.Veth{
		End: netx.End{Name: portName(n.Port), Index: n.Port, MTU: mtu}, Up: true,
		Far: netx.End{Name: n.Name, Index: index, MAC: n.mac(), MTU: mtu}, FarNS: ns,
	})
	if err != nil {
		return explainVeth(n, err)
	}
	if index == 0 {
		if index, err = n.arrive(ns); err != nil {
			return err
		}
	}
	return n.bring(ns, index)
}

// patchPanel is the lab's, made when it is first needed.
func (l *Lab) patchPanel(ctx context.Context) (*wiring, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.patch != nil {
		return l.patch, nil
	}
	if err := l.claim(ctx); err != nil {
		return nil, err
	}
	s := &stepper{ctx: ctx, fault: l.host.Fault}
	w, err := l.makeWiring(s, patchName, netRecord{Keep: l.up},
		func() (*netx.NS, error) { return netx.MakePanel() }, func(*wiring) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("patch panel: %w", err)
	}
	l.patch = w
	return w, nil
}
