package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"msh/kernel/netx"
)

// Cable is what a link does to what goes out of an interface, and to what comes
// in. Of a cable between two ends, out is from the first to the second.
type Cable struct {
	Out netx.Impair `json:",omitzero"`
	In  netx.Impair `json:",omitzero"`
	// Named are the options that were given: what a set does not name stays.
	Named []string `json:",omitempty"`
}

// CableOptions are the names of the options, as in Named.
var CableOptions = []string{"rate", "burst", "limit", "delay", "jitter", "distribution", "loss", "duplicate", "reorder", "corrupt"}

// IsZero tells whether it does nothing, and nothing was named (encoding/json's omitzero).
func (c Cable) IsZero() bool { return c.Out.IsZero() && c.In.IsZero() && len(c.Named) == 0 }

// Validate checks both directions.
func (c Cable) Validate() error {
	for _, i := range []netx.Impair{c.Out, c.In} {
		if err := i.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// over is old with what c names changed.
func (c Cable) over(old Cable) Cable {
	for _, name := range c.Named {
		for _, d := range []struct{ to, from *netx.Impair }{{&old.Out, &c.Out}, {&old.In, &c.In}} {
			switch name {
			case "rate":
				d.to.Rate = d.from.Rate
			case "burst":
				d.to.Burst = d.from.Burst
			case "limit":
				d.to.Limit = d.from.Limit
			case "delay":
				d.to.Delay = d.from.Delay
			case "jitter":
				d.to.Jitter = d.from.Jitter
			case "distribution":
				d.to.Distribution = d.from.Distribution
			case "loss":
				d.to.Loss = d.from.Loss
			case "duplicate":
				d.to.Duplicate = d.from.Duplicate
			case "reorder":
				d.to.Reorder = d.from.Reorder
			case "corrupt":
				d.to.Corrupt = d.from.Corrupt
			}
		}
		if !slices.Contains(old.Named, name) {
			old.Named = append(slices.Clone(old.Named), name)
		}
	}
	return old
}

// CheckCableChange tells whether what is named in c could be a change: some of it
// only makes sense beside what is there already, which Set will see.
func CheckCableChange(c Cable) error {
	if len(c.Named) == 0 {
		return bad("set", "", nil, fmt.Sprintf("want at least one of %v", CableOptions))
	}
	return nil
}

// explainShape puts the mend beside the error of something that the kernel lacks.
func explainShape(err error) error {
	var missing *netx.Missing
	if errors.As(err, &missing) {
		return withHint(fmt.Errorf("%w: %w", err, ErrNotSupported), missing.Mend)
	}
	return err
}

// Netif finds an interface that msh has given the machine.
func (m *Machine) Netif(name string) (*Netif, error) {
	if m.State() == "dead" {
		return nil, fmt.Errorf("machine %s: %w", m.Name(), ErrDead)
	}
	all := m.Netifs()
	var names []string
	for _, n := range all {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	want := fmt.Sprintf("one of %s's: %v", m.Name(), names)
	if names == nil {
		want = "an interface that msh has given " + m.Name() + ": it has none"
	}
	return nil, bad("netif", "name", name, want)
}

// SetNetif changes what the machine's link does to its traffic, in place.
func (m *Machine) SetNetif(name string, c Cable) error {
	n, err := m.Netif(name)
	if err != nil {
		return err
	}
	changed := *n
	changed.Cable = c.over(n.Cable)
	if err := changed.Cable.Validate(); err != nil {
		return err
	}
	if m.State() == "planned" {
		return m.replace(n, &changed)
	}
	if err := m.alive(); err != nil {
		return err
	}
	if err := m.reshape(&changed); err != nil {
		return errors.Join(fmt.Errorf("set %s of %s: %w", name, m.Name(), err), m.reshape(n))
	}
	return m.replace(n, &changed)
}

// reshape has an interface's link do what its cable says.
func (m *Machine) reshape(n *Netif) error {
	if n.Link != "" {
		return m.cableOf(n, func(k *Link, c Cable) error { return k.shape(c) })
	}
	if n.VNet != "" {
		v, err := m.vnetOf(n)
		if err != nil {
			return err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if err := v.alive(); err != nil {
			return err
		}
		return v.shape(n)
	}
	ns, err := m.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	return n.shapeInside(ns)
}

// shapeInside is for an interface that has no port of msh's: what it does to the
// traffic it does in the machine.
func (n *Netif) shapeInside(ns *netx.NS) error {
	index, err := ns.Index(n.Name)
	if err != nil {
		return err
	}
	if err := ns.ShapeOut(index, n.Cable.Out); err != nil {
		return explainShape(err)
	}
	return explainShape(ns.ShapeIn(index, n.Cable.In))
}

// vnetOf is the network that an interface is plugged into. Another msh's is opened
// where it was pinned.
func (m *Machine) vnetOf(n *Netif) (*VNet, error) {
	if m.lab != nil {
		if v := m.lab.findVNet(n.VNet); v != nil {
			return v, nil
		}
	}
	return nil, fmt.Errorf("vnet %s: %w", n.VNet, errNoNet)
}

// cableOf calls f with the cable that an interface is an end of, and what that is
// to do, seen from its first end.
func (m *Machine) cableOf(n *Netif, f func(*Link, Cable) error) error {
	if m.lab != nil {
		for _, k := range m.lab.Links() {
			for i, e := range k.ends {
				if e.Machine == m && e.Netif.Name == n.Name {
					c := n.Cable
					if i == 1 {
						c.Out, c.In = c.In, c.Out
					}
					k.mu.Lock()
					err := f(k, c)
					if err == nil {
						k.cable = c
						err = k.write(false)
					}
					k.mu.Unlock()
					return err
				}
			}
		}
	}
	return fmt.Errorf("link %s: its other end is gone", n.Link)
}

// replace puts a changed interface in the place of the old one.
func (m *Machine) replace(old, n *Netif) error {
	return m.rewire(func(rs []Resource) []Resource {
		for i, r := range rs {
			if r == Resource(old) {
				rs[i] = n
			}
		}
		return rs
	})
}

// UpNetif takes an interface up or down, as the machine itself would. Up, it has
// its addresses and default routes again, of which the kernel drops some with it.
func (m *Machine) UpNetif(ctx context.Context, name string, up bool) error {
	n, err := m.Netif(name)
	if err != nil {
		return err
	}
	if m.State() == "planned" {
		return nil
	}
	ns, err := m.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	index, err := ns.Index(name)
	if err != nil {
		return err
	}
	if !up {
		return ns.SetUp(index, false)
	}
	if err := n.bring(ns, index); err != nil {
		return err
	}
	ends := []netx.Port{{NS: ns, Index: index}}
	if port, ok := m.portOf(n); ok { // that of a bridge has to notice too
		ends = append(ends, port)
	}
	return netx.AwaitUp(ctx, ends...)
}

// portOf is where an interface is plugged in, on a network or a cable of this msh's.
func (m *Machine) portOf(n *Netif) (p netx.Port, ok bool) {
	if m.lab == nil {
		return p, false
	}
	if n.Link == "" {
		v, err := m.vnetOf(n)
		if err != nil {
			return p, false
		}
		return netx.Port{NS: v.net.ns, Index: n.Port}, true
	}
	for _, k := range m.lab.Links() {
		for i, e := range k.ends {
			if e.Machine == m && e.Netif.Name == n.Name && k.at[i] != nil {
				return netx.Port{NS: k.at[i], Index: k.port[i]}, true
			}
		}
	}
	return p, false
}

// AllNetifStats counts what has gone through each of the machine's interfaces, by
// name.
func (m *Machine) AllNetifStats() (map[string]netx.Counters, error) {
	all := map[string]netx.Counters{}
	for _, n := range m.Netifs() {
		c, err := m.NetifStats(n.Name)
		if err != nil {
			return nil, err
		}
		all[n.Name] = c
	}
	return all, nil
}

// NetifStats counts what has gone through an interface.
func (m *Machine) NetifStats(name string) (netx.Counters, error) {
	if _, err := m.Netif(name); err != nil {
		return netx.Counters{}, err
	}
	ns, err := m.network()
	if err != nil {
		return netx.Counters{}, err
	}
	defer ns.Close()
	index, err := ns.Index(name)
	if err != nil {
		return netx.Counters{}, err
	}
	return ns.Counters(index)
}
