package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"msh/kernel/netx"
)

// plug makes a port, and its other end in a machine's namespace: at index, or
// where that is 0 at one that the kernel chooses.
func (v *VNet) plug(ns *netx.NS, n *Netif, index int, machine string) error {
	p, err := v.plugIn(ns, n, index, machine, netx.BridgeIndex)
	if err != nil {
		return err
	}
	return v.lab.tell(v, p)
}

// plugApart is plug for a port that join puts onto the switch later: until then it
// has a carrier, and nothing at the other end.
func (v *VNet) plugApart(ns *netx.NS, n *Netif, index int, machine string) error {
	_, err := v.plugIn(ns, n, index, machine, 0)
	return err
}

// join puts a port onto the switch.
func (v *VNet) join(n *Netif) error {
	v.mu.Lock()
	i := slices.IndexFunc(v.ports, func(p *port) bool { return p.netif == n })
	if i < 0 {
		v.mu.Unlock()
		return fmt.Errorf("netif %s: vnet %s: %w", n.Name, v.Name(), errNoNet)
	}
	p := v.ports[i]
	err := v.net.ns.Enslave(p.index, netx.BridgeIndex)
	if err == nil && v.spec.Isolated {
		err = v.net.ns.Isolate(p.index)
	}
	v.mu.Unlock()
	if err != nil {
		return fmt.Errorf("put %s onto %s: %w", n.Name, v.Name(), err)
	}
	return v.lab.tell(v, p)
}

func (v *VNet) plugIn(ns *netx.NS, n *Netif, index int, machine string, master int) (p *port, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.alive(); err != nil {
		return nil, err
	}
	sw := v.net.ns
	p = &port{index: v.lab.index(), machine: machine, netif: n}
	err = sw.AddVeth(netx.Veth{
		End:    netx.End{Name: p.name(), Index: p.index, MTU: v.spec.MTU},
		Master: master, Up: true,
		Far: netx.End{Name: n.Name, Index: index, MAC: n.mac(), MTU: n.MTU}, FarNS: ns,
	})
	if err != nil {
		return nil, explainVeth(n, err)
	}
	n.Port = p.index
	defer func() {
		if err != nil {
			err = errors.Join(err, sw.Delete(n.Port))
		}
	}()
	if v.spec.Isolated && master != 0 {
		if err := sw.Isolate(p.index); err != nil {
			return nil, fmt.Errorf("isolate the port: %w", err)
		}
	}
	if !n.Cable.IsZero() {
		if err := v.shape(n); err != nil {
			return nil, err
		}
	}
	if v.groups != nil {
		if err := v.split(append(slices.Clone(v.ports), p)); err != nil {
			return nil, err
		}
	}
	if index == 0 {
		if index, err = n.arrive(ns); err != nil {
			return nil, err
		}
	}
	if err := n.bring(ns, index); err != nil {
		return nil, err
	}
	v.ports = append(v.ports, p)
	return p, nil
}

func explainVeth(n *Netif, err error) error {
	if os.IsExist(err) {
		return bad("netif", "name", n.Name, "a name that no other interface of the machine has")
	}
	return fmt.Errorf("make the interface %s: %w", n.Name, err)
}

// arrive finds an interface that has been put into a running machine, and has
// IPv6 on there where it needs it: the machine may have been born without.
func (n *Netif) arrive(ns *netx.NS) (index int, err error) {
	if index, err = ns.Index(n.Name); err != nil || !n.IPv6 {
		return index, err
	}
	return index, ns.Do(func() error {
		// No duplicate can be: see Steps.newNetwork.
		if err := netx.WriteSysctl("net/ipv6/conf/"+n.Name+"/accept_dad", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, name := range []string{n.Name, "lo"} { // by which the machine reaches itself
			err := netx.WriteSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0")
			if errors.Is(err, os.ErrNotExist) {
				return unsupported("a kernel with IPv6 (CONFIG_IPV6, and no ipv6.disable=1)", "IPv6 on %s", n.Name)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// shape has the port do to the traffic what the link is to do. All of it happens
// at the switch: in the machine nothing is to be seen of it, nor to be undone.
func (v *VNet) shape(n *Netif) error {
	if err := v.net.ns.ShapeOut(n.Port, n.Cable.In); err != nil {
		return explainShape(err)
	}
	return explainShape(v.net.ns.ShapeIn(n.Port, n.Cable.Out))
}

// Attach plugs a running machine in. It returns the interface as settled.
func (v *VNet) Attach(ctx context.Context, m *Machine, n *Netif) (*Netif, error) {
	c := *n
	c.VNet, c.Device = v.Name(), ""
	if err := m.mayAttach("attach", v); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	m.setting.Lock()
	defer m.setting.Unlock()
	if err := v.lab.settleOne(m, &c, m.Netifs(), m.Name()); err != nil {
		return nil, err
	}
	err := v.attach(m, &c)
	if err != nil {
		v.lab.unsettle([]*Netif{&c})
		return nil, fmt.Errorf("attach %s to %s: %w", m.Name(), v.Name(), err)
	}
	return &c, nil
}

func (v *VNet) attach(m *Machine, n *Netif) error {
	ns, err := m.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	if m.Spec().Keep {
		if err := v.keep(); err != nil {
			return err
		}
	}
	if err := v.plug(ns, n, 0, m.Name()); err != nil {
		return err
	}
	err = m.gain(n)
	if err == nil {
		err = m.learn()
	}
	if err != nil {
		err = errors.Join(err, v.drop(m, n))
		n.Addresses = nil // they are given back, and may be another's
	}
	return err
}

// mayAttach tells whether a running machine can be given an interface of a
// network of v's; v nil is a cable's.
func (m *Machine) mayAttach(what string, v *VNet) error {
	if m.isHost() {
		return NotHost(what)
	}
	if err := m.alive(); err != nil && m.state != "planned" {
		return err
	}
	if !m.Spec().ownsNetwork() {
		return &ParamError{Kind: what, Got: m.Name() + ", which shares its parent's network", Want: "a machine with a network of its own", Mend: "make " + m.Name() + " with netspace()"}
	}
	return nil
}

// gain writes down an interface that the machine has got, lose one that it has lost.
func (m *Machine) gain(n *Netif) error {
	return m.rewire(func(rs []Resource) []Resource { return append(rs, n) })
}

func (m *Machine) lose(name string) error {
	return m.rewire(func(rs []Resource) []Resource {
		return slices.DeleteFunc(rs, func(r Resource) bool {
			n, ok := r.(*Netif)
			return ok && n.Name == name
		})
	})
}

func (m *Machine) rewire(change func([]Resource) []Resource) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	spec := *m.Spec()
	spec.Resources = change(slices.Clone(spec.Resources))
	// That it has a network of its own it keeps, whatever interfaces are left.
	if !spec.ownsNetwork() {
		spec.Resources = append(spec.Resources, &Space{Name: "netspace"})
	}
	m.given.Store(&spec)
	if m.state != "" {
		return nil
	}
	return m.save()
}

// Detach takes a machine off the network: it loses its interfaces there.
func (v *VNet) Detach(m *Machine) error {
	if err := v.detach(m); err != nil {
		return err
	}
	for _, k := range v.lab.Links() {
		if i := k.machineEnd(); i >= 0 && k.ends[i].Machine == m && k.ends[1-i].VNet == v {
			k.leave(m)
		}
	}
	err := v.lab.tell(v, nil)
	if err == nil && v.net != nil {
		err = m.learn()
	}
	return err
}

func (v *VNet) detach(m *Machine) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.alive(); err != nil {
		return err
	}
	var errs []error
	found := false
	v.ports = slices.DeleteFunc(v.ports, func(p *port) bool {
		if p.machine != m.Name() {
			return false
		}
		found = true
		if v.net != nil {
			if err := v.net.ns.Delete(p.index); err != nil {
				errs = append(errs, err)
				return false
			}
		}
		errs = append(errs, v.vacate(p))
		if m.alive() == nil || m.state == "planned" {
			errs = append(errs, m.lose(p.netif.Name))
		}
		return true
	})
	if !found {
		return bad("detach", "m", m.Name(), "a machine that is on "+v.Name())
	}
	return errors.Join(errs...)
}

// PlanAttach settles what Attach would do, and touches nothing but the plan.
func (v *VNet) PlanAttach(m *Machine, n *Netif) (*Netif, error) {
	c := *n
	c.VNet, c.Device = v.Name(), ""
	if err := m.mayAttach("attach", v); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := v.lab.settleOne(m, &c, m.Netifs(), m.Name()); err != nil {
		return nil, err
	}
	v.planPort(&c, m.Name())
	return &c, m.gain(&c)
}

// planPort counts a port that stands in a plan only.
func (v *VNet) planPort(n *Netif, machine string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ports = append(v.ports, &port{index: firstPort + len(v.ports), machine: machine, netif: n})
}

// lost tells a machine that a network it was on has gone.
func (l *Lab) lost(p *port) {
	if p.machine == "" {
		return
	}
	for _, m := range l.Machines() {
		if m.Name() == p.machine {
			m.lose(p.netif.Name)
		}
	}
}

// unplug drops what a machine that has ended had in the lab's networks.
func (l *Lab) unplug(m *Machine) {
	for _, k := range l.Links() {
		k.leave(m)
	}
	for _, v := range l.VNets() {
		if v.parent == m && v.net == nil {
			v.destroy(context.Background()) // of a plan
		} else if v.leave(m.Name()) {
			l.tell(v, nil) // who still has the name only waits in vain
		}
	}
}

// drop takes one interface of a machine's off the network.
func (v *VNet) drop(m *Machine, n *Netif) error {
	return errors.Join(v.unplug(m, n), v.lab.tell(v, nil))
}

func (v *VNet) unplug(m *Machine, n *Netif) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	i := slices.IndexFunc(v.ports, func(p *port) bool { return p.machine == m.Name() && p.netif.Name == n.Name })
	if i < 0 {
		return nil
	}
	if v.net != nil {
		if err := v.net.ns.Delete(v.ports[i].index); err != nil {
			return err
		}
	}
	if err := v.vacate(v.ports[i]); err != nil {
		return err
	}
	v.ports = slices.Delete(v.ports, i, i+1)
	if m.state == "planned" || m.alive() == nil {
		return m.lose(n.Name)
	}
	return nil
}

// forgetPort drops a port that is no machine's.
func (v *VNet) forgetPort(index int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ports = slices.DeleteFunc(v.ports, func(p *port) bool { return p.index == index })
}
