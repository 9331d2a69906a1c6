package kernel

import (
	"fmt"
	"slices"

	"msh/kernel/checkpoint"
)

// readCables finds the ends of the cables in what is woken.
func (wk *wake) readCables() error {
	var err error
	if wk.cables, err = savedCables(wk.manifest); err != nil {
		return err
	}
	nets, err := savedNets(wk.manifest)
	if err != nil {
		return err
	}
	seen := map[*Netif]bool{}
	for _, c := range wk.cables {
		for i, e := range c.Ends {
			ok := false
			if e.VNet != "" {
				ok = e.Machine == "" && slices.ContainsFunc(nets, func(n *VNetSpec) bool { return n.Name == e.VNet })
			} else if w := wk.saved(e.Machine); w != nil {
				n := w.netif(e.Netif)
				ok = n != nil && !seen[n] && (n.Link != "") == (c.Ends[1-i].VNet == "")
				seen[n] = true
			}
			if !ok || c.Cable.Validate() != nil {
				return fmt.Errorf("cables: one from %s%s to %s%s: %w", Short(c.Ends[0].Machine), Short(c.Ends[0].VNet), Short(c.Ends[1].Machine), Short(c.Ends[1].VNet), checkpoint.ErrHostile)
			}
		}
	}
	return nil
}

// saved is the machine that was called so.
func (wk *wake) saved(name string) *waking {
	if i := slices.IndexFunc(wk.all, func(w *waking) bool { return w.saved.Name == name }); i >= 0 {
		return wk.all[i]
	}
	return nil
}

// netif is an interface of the machine's: as settled, once it is being made.
func (w *waking) netif(name string) *Netif {
	s := w.spec
	if w.plan != nil {
		s = w.plan.Spec
	}
	for _, n := range netifsOf(s) {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// makeTrunks has link make the cables between networks that waking has made. They go
// with those.
func (wk *wake) makeTrunks(link func(a, b LinkEnd, c Cable) (*Link, error)) error {
	for _, c := range wk.cables {
		from, to := wk.made(c.Ends[0].VNet), wk.made(c.Ends[1].VNet)
		if from == nil || to == nil {
			continue // no trunk, or the lab has one of its own in its place
		}
		k, err := link(LinkEnd{VNet: from}, LinkEnd{VNet: to}, c.Cable)
		if err == nil && c.Down {
			err = k.SetUp(wk.ctx, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (wk *wake) made(name string) *VNet {
	if i := slices.IndexFunc(wk.nets, func(v *VNet) bool { return v.Name() == name }); i >= 0 {
		return wk.nets[i]
	}
	return nil
}

// connect lays the cables of machines whose interfaces are there, before they run.
func (wk *wake) connect() error {
	loose := map[*Netif]bool{}
	for _, w := range wk.all {
		for _, n := range netifsOf(w.plan.Spec) {
			loose[n] = n.Link != ""
		}
	}
	for _, c := range wk.cables {
		if c.trunk() {
			continue
		}
		k := wk.lay(c)
		for i, e := range k.ends {
			if e.Netif != nil {
				loose[e.Netif] = false
			}
			if c.patch() {
				k.at[i], k.port[i] = wk.lab.patch.ns, e.Netif.Port
			} else if e.VNet != nil {
				k.at[i], k.port[i] = e.VNet.net.ns, k.ends[1-i].Netif.Port
			}
		}
		if c.patch() {
			if err := wk.lab.patch.ns.Patch(k.port[0], k.port[1]); err != nil {
				return fmt.Errorf("patch: %w", err)
			}
			if err := k.shape(k.cable); err != nil {
				return err
			}
		}
		for i, ns := range k.at {
			if ns != nil && k.down {
				if err := ns.SetUp(k.port[i], false); err != nil {
					return err
				}
			}
		}
	}
	for n, is := range loose {
		if !is {
			continue // it has its cable
		}
		if err := wk.lab.patch.ns.SetUp(n.Port, false); err != nil {
			return err
		}
	}
	return nil
}

// lay adds a cable of machines that are woken, which have no handles yet.
func (wk *wake) lay(c savedCable) *Link {
	k := &Link{lab: wk.lab, cable: c.Cable, down: c.Down}
	for i, e := range c.Ends {
		if e.Machine == "" {
			continue
		}
		n := wk.saved(e.Machine).netif(e.Netif)
		k.ends[i].Netif = n
		if !c.patch() {
			k.ends[1-i].VNet = wk.lab.findVNet(n.VNet)
			k.cable = n.Cable
			if i == 1 {
				k.cable.Out, k.cable.In = n.Cable.In, n.Cable.Out
			}
		}
	}
	wk.links = append(wk.links, k)
	return k
}

// handOut makes the cables known, now that their machines are.
func (wk *wake) handOut(machine func(*waking) *Machine) error {
	i := 0
	for _, c := range wk.cables {
		if c.trunk() {
			continue
		}
		k := wk.links[i]
		i++
		for end, e := range c.Ends {
			if e.Machine != "" {
				k.ends[end].Machine = machine(wk.saved(e.Machine))
			}
		}
		k.name = k.ends[0].name() + "-" + k.ends[1].name()
		if err := k.write(false); err != nil {
			return err
		}
		wk.lab.mu.Lock()
		wk.lab.links = append(wk.lab.links, k)
		wk.lab.mu.Unlock()
	}
	return nil
}

// attachCable makes an end of a cable to another machine. It leads nowhere until all
// are there.
func (t *Txn) attachCable(c *Child, n *Netif, index int) error {
	w, err := t.lab.patchPanel(t.ctx)
	if err != nil {
		return err
	}
	ns, err := t.childNet(c)
	if err != nil {
		return err
	}
	if t.plan.Spec.Keep {
		if err := w.ledger.Write(netOp, netRecord{Keep: true}); err != nil {
			return err
		}
	}
	n.Port = t.lab.index()
	return plugPatch(w.ns, ns, n, index)
}
