package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"msh/kernel/netx"
)

// settle fills in what a machine's interfaces leave to the lab: names, addresses,
// gateways. What it takes of a vnet it gives back when it fails.
func (l *Lab) settle(parent *Machine, s *Spec, machine string) (err error) {
	s.Resources = slices.Clone(s.Resources)
	var settled []*Netif
	defer func() {
		if err != nil {
			l.unsettle(settled)
		}
	}()
	for i, r := range s.Resources {
		n, ok := r.(*Netif)
		if !ok {
			continue
		}
		c := *n
		if err := l.settleOne(parent, &c, settled, machine); err != nil {
			return err
		}
		s.Resources[i] = &c
		settled = append(settled, &c)
	}
	return nil
}

// unsettle gives addresses back.
func (l *Lab) unsettle(netifs []*Netif) {
	for _, n := range netifs {
		if v := l.findVNet(n.VNet); v != nil {
			v.mu.Lock()
			v.release(n)
			v.mu.Unlock()
		}
	}
}

func netifsOf(s *Spec) []*Netif {
	var all []*Netif
	for _, r := range s.Resources {
		if n, ok := r.(*Netif); ok {
			all = append(all, n)
		}
	}
	return all
}

// FindVNet finds a network of the lab by its name; nil for none.
func (l *Lab) FindVNet(name string) *VNet { return l.findVNet(name) }

func (l *Lab) findVNet(name string) *VNet {
	if name == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.vnet(name)
}

// settleOne settles one interface of a machine that has others.
func (l *Lab) settleOne(parent *Machine, n *Netif, others []*Netif, machine string) error {
	if err := n.settleName(others); err != nil {
		return err
	}
	if n.VNet != "" {
		v := l.findVNet(n.VNet)
		if v == nil {
			return fmt.Errorf("netif: vnet %s: %w", n.VNet, errNoNet)
		}
		if !parent.within(v.parent.ID()) {
			return bad("netif", "what", v.Name(), fmt.Sprintf("a vnet of %s, or of a machine that it is in; this one lies in %s", parent.Name(), v.parent.Name()))
		}
		if err := v.reserve(n, machine); err != nil {
			return err
		}
	}
	n.IPv6 = n.IPv6 || n.has6()
	switch {
	case n.MAC != "":
		n.HardwareAddr = n.MAC
	case !n.Exclusive && n.Share != "ipvlan":
		n.HardwareAddr = madeUpMAC(l.Name()+"/"+machine, n.Name).String()
	}
	err := n.settleGateways(others)
	if err == nil {
		err = n.apart(others)
	}
	if err != nil {
		l.unsettle([]*Netif{n})
	}
	return err
}

// settleName names it: a real interface keeps its name, others are eth0, eth1, …
func (n *Netif) settleName(others []*Netif) error {
	used := func(name string) bool {
		return slices.ContainsFunc(others, func(o *Netif) bool { return o.Name == name })
	}
	if n.Name == "" && n.Exclusive {
		n.Name = n.Device
	}
	if n.Name != "" {
		if used(n.Name) {
			return bad("netif", "name", n.Name, "a name that no other interface of the machine has")
		}
		return nil
	}
	for i := 0; n.Name == "" || used(n.Name); i++ {
		n.Name = fmt.Sprintf("eth%d", i)
	}
	return nil
}

// settleGateways finds the default routes: those asked for, or the vnet's own, if
// no other interface has one already.
func (n *Netif) settleGateways(others []*Netif) error {
	for _, g := range n.Gateway {
		if !slices.ContainsFunc(n.Addresses, func(a Address) bool { return a.Contains(g) }) && !g.IsLinkLocalUnicast() {
			return bad("netif", "gateway", g.String(), fmt.Sprintf("an address of a network that %s is in: %s", n.Name, n.networks()))
		}
	}
	if n.Gateway != nil {
		n.Gateways = n.Gateway
		return nil
	}
	n.Gateways = slices.DeleteFunc(n.Gateways, func(g netip.Addr) bool {
		return slices.ContainsFunc(others, func(o *Netif) bool {
			return slices.ContainsFunc(o.Gateways, func(a netip.Addr) bool { return a.Is6() == g.Is6() })
		})
	})
	return nil
}

func (n *Netif) networks() string {
	if len(n.Addresses) == 0 {
		return "none"
	}
	var all []string
	for _, a := range n.Addresses {
		all = append(all, a.Masked().String())
	}
	return strings.Join(all, " ")
}

// apart refuses one network on two Ethernets: the machine could not tell where to
// send. A smaller one in a larger one is what routes are for.
func (n *Netif) apart(others []*Netif) error {
	for _, o := range others {
		for _, a := range n.Addresses {
			for _, b := range o.Addresses {
				if a.Masked() == b.Masked() && !a.IsSingleIP() && (n.VNet == "" || n.VNet != o.VNet) {
					return &ParamError{Kind: "netif", Param: "address", Got: fmt.Sprintf("%q", a), Want: fmt.Sprintf("another network than %s of %s", b, o.Name),
						Mend: "address=False, and `ip address add` in the machine, where it is meant"}
				}
			}
		}
	}
	return nil
}

// reserve takes the interface's addresses, or the next ones.
func (v *VNet) reserve(n *Netif, machine string) (err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.alive(); err != nil {
		return err
	}
	if len(v.ports) >= netx.MaxPorts {
		return fmt.Errorf("vnet %s: %d machines are on it: a bridge has no more ports", v.Name(), len(v.ports))
	}
	owner := machine + "'s " + n.Name
	for _, p := range v.ports {
		if p.netif.HardwareAddr != "" && p.netif.HardwareAddr == n.MAC {
			return bad("netif", "mac", n.MAC, fmt.Sprintf("one that is free on vnet %s: %s's %s has it", v.Name(), p.machine, p.netif.Name))
		}
	}
	given := n.Addresses
	n.Addresses = nil
	defer func() {
		if err != nil {
			v.release(n)
		}
	}()
	for _, a := range given {
		if a.Bits() == 0 {
			i := slices.IndexFunc(v.spec.Subnets, func(s netip.Prefix) bool { return s.Contains(a.Addr()) })
			if i < 0 {
				return bad("netif", "address", a.Addr().String(), "with its prefix length: the address is "+v.outside())
			}
			a.Prefix = netip.PrefixFrom(a.Addr(), v.spec.Subnets[i].Bits())
		}
		if err := v.take(a.Prefix, owner); err != nil {
			return err
		}
		n.Addresses = append(n.Addresses, a)
	}
	if given == nil && !n.Bare {
		for i := range v.spec.Subnets {
			p, err := v.next(i)
			if err != nil {
				return err
			}
			v.taken[p.Addr()] = owner
			n.Addresses = append(n.Addresses, Address{p})
		}
	}
	n.IPv6 = slices.ContainsFunc(v.spec.Subnets, func(s netip.Prefix) bool { return s.Addr().Is6() })
	if n.MTU == 0 {
		n.MTU = v.spec.MTU
	}
	if n.MTU > v.spec.MTU {
		return bad("netif", "mtu", n.MTU, fmt.Sprintf("at most %d: vnet %s has no more", v.spec.MTU, v.Name()))
	}
	if v.spec.NAT && n.Gateway == nil {
		n.Gateways = nil
		for _, s := range v.spec.Subnets {
			if slices.ContainsFunc(n.Addresses, func(a Address) bool { return s.Contains(a.Addr()) }) {
				n.Gateways = append(n.Gateways, s.Addr().Next())
			}
		}
	}
	return nil
}

func (v *VNet) outside() string {
	if len(v.spec.Subnets) == 0 {
		return "on vnet " + v.Name() + ", which has no subnet"
	}
	return fmt.Sprintf("outside %s's %v", v.Name(), v.spec.Subnets)
}

// take takes an address that was asked for.
func (v *VNet) take(p netip.Prefix, owner string) error {
	for _, s := range v.spec.Subnets {
		if s.Contains(p.Addr()) && unusable(s, p.Addr()) {
			return bad("netif", "address", p.Addr().String(), fmt.Sprintf("an address that a machine can have: it is the first or last of %s", s))
		}
	}
	same := func(s netip.Prefix) bool { return s.Addr().Is4() == p.Addr().Is4() }
	if slices.ContainsFunc(v.spec.Subnets, same) && !slices.ContainsFunc(v.spec.Subnets, func(s netip.Prefix) bool { return s.Contains(p.Addr()) }) {
		return bad("netif", "address", p.Addr().String(), "an address of vnet "+v.Name()+"; this is "+v.outside())
	}
	if who, ok := v.taken[p.Addr()]; ok {
		return bad("netif", "address", p.Addr().String(), fmt.Sprintf("a free address of vnet %s; this one is %s", v.Name(), who))
	}
	v.taken[p.Addr()] = owner
	return nil
}

// unusable tells whether a network's address is its own, or its broadcast address.
func unusable(s netip.Prefix, a netip.Addr) bool {
	if s.Addr().BitLen()-s.Bits() < 2 {
		return false // RFC 3021, RFC 6164
	}
	return a == s.Addr() || a.Is4() && a == netx.Broadcast(s)
}

// next is the address after the last one handed out; at the end of the subnet
// those that have come back.
func (v *VNet) next(i int) (netip.Prefix, error) {
	s := v.spec.Subnets[i]
	for range 2 {
		a := v.cursor[i]
		if !a.IsValid() {
			a = s.Addr()
		} else {
			a = a.Next()
		}
		for ; s.Contains(a); a = a.Next() {
			if _, ok := v.taken[a]; !ok && !unusable(s, a) {
				v.cursor[i] = a
				return netip.PrefixFrom(a, s.Bits()), nil
			}
		}
		v.cursor[i] = netip.Addr{}
	}
	n := 0
	for a := range v.taken {
		if s.Contains(a) {
			n++
		}
	}
	return netip.Prefix{}, &ParamError{Kind: "netif", Param: "address", Want: fmt.Sprintf("the subnet %s of vnet %s is full: %d addresses are taken", s, v.Name(), n),
		Mend: fmt.Sprintf("make it with a larger one, as %q", netip.PrefixFrom(s.Addr(), s.Bits()-1).Masked())}
}

// release gives an interface's addresses back. The caller holds v.mu.
func (v *VNet) release(n *Netif) {
	for _, a := range n.Addresses {
		delete(v.taken, a.Addr())
		for i, last := range v.cursor {
			if last == a.Addr() {
				v.cursor[i] = last.Prev() // what was never used is handed out next
			}
		}
	}
}
