package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"msh/kernel/netx"
)

// Netaddr leaves a machine in its parent's network universe, with some of the
// addresses there: it can bind to and send from no other, as in jail(8).
type Netaddr struct {
	Addresses []netip.Addr // the first of each family is what the wildcard and the loopback become
}

// maxAddresses bounds the programs, which compare one address after the other.
const maxAddresses = 64

// ParseNetaddr reads an address without a network.
func ParseNetaddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if p, e := netip.ParsePrefix(text); e == nil {
		return a, &ParamError{Kind: "netaddr", Param: "address", Got: fmt.Sprintf("%q", text), Want: "an address without a prefix length: the network is the interface's", Mend: fmt.Sprintf("netaddr(%q)", p.Addr())}
	}
	if err != nil {
		return a, bad("netaddr", "address", text, `an address, as "10.0.0.2" or "fd00::2"`)
	}
	return a, nil
}

// Kind is "netaddr".
func (*Netaddr) Kind() string { return "netaddr" }

// Mode is shared: the parent has the addresses as before.
func (*Netaddr) Mode() Mode { return Shared }

// Validate checks the addresses by themselves.
func (n *Netaddr) Validate() error {
	if len(n.Addresses) == 0 || len(n.Addresses) > maxAddresses {
		return bad("netaddr", "address", len(n.Addresses), fmt.Sprintf("1 to %d addresses", maxAddresses))
	}
	for i, a := range n.Addresses {
		switch {
		case slices.Contains(n.Addresses[:i], a):
			return &ParamError{Kind: "netaddr", Param: "address", Got: a.String() + " twice", Want: "each once"}
		case a.Is4In6():
			return &ParamError{Kind: "netaddr", Param: "address", Got: fmt.Sprintf("%q", a), Want: "an IPv4 address as one", Mend: fmt.Sprintf("netaddr(%q)", a.Unmap())}
		case a.IsLinkLocalUnicast() && a.Is6():
			return bad("netaddr", "address", a.String(), "one that is the machine's on every interface; a link-local one is an interface's")
		case !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			return bad("netaddr", "address", a.String(), "one that a machine can have")
		}
	}
	return nil
}

// Plan has the child wait until its sockets are confined.
func (n *Netaddr) Plan(p *Plan) error {
	if p.Spec.ownsNetwork() {
		return &ParamError{Kind: "netaddr", Got: "netaddr beside netif or netspace", Want: "one of them: netaddr is for the parent's network, with netif or netspace the machine has its own",
			Mend: `netif(…, address="10.0.0.2/24") gives an interface its addresses`}
	}
	p.Parks = true
	return nil
}

func (h *Host) mayNetaddr() error {
	return h.needsRoot("netaddr", "the kernel takes socket programs (BPF) from root alone", "give the machine an interface of its own, on a vnet with nat=True, or run msh as root")
}

// Prepare looks whether the addresses are there to be had.
func (n *Netaddr) Prepare(t *Txn) error {
	if err := t.host.mayNetaddr(); err != nil {
		return err
	}
	if err := t.parent.mayHave(n.Addresses); err != nil {
		return err
	}
	ns, err := t.parent.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	_, err = n.networks(t.parent, ns)
	return err
}

// mayHave tells whether a machine of m's can have the addresses: no more than the
// machines have in whose network it is.
func (m *Machine) mayHave(list []netip.Addr) error {
	for ; !m.isHost(); m = m.parent {
		if own, ok := m.Spec().find("netaddr").(*Netaddr); ok {
			for _, a := range list {
				if !slices.Contains(own.Addresses, a) {
					return bad("netaddr", "address", a.String(), fmt.Sprintf("addresses that %s has: %s", m.Name(), addressWords(own.Addresses)))
				}
			}
		}
		if m.Spec().ownsNetwork() {
			break
		}
	}
	return nil
}

func addressWords(list []netip.Addr) string {
	var words []string
	for _, a := range list {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

// networks finds the addresses on the interfaces of parent's network, and with
// them the networks they are in.
func (n *Netaddr) networks(parent *Machine, ns *netx.NS) ([]netip.Prefix, error) {
	held, err := ns.Addresses()
	if err != nil {
		return nil, err
	}
	var own []netip.Prefix
	var missing, have []netip.Addr
	for _, h := range held {
		if !h.Prefix.Addr().IsLinkLocalUnicast() {
			have = append(have, h.Prefix.Addr())
		}
	}
	for _, a := range n.Addresses {
		i := slices.IndexFunc(held, func(h netx.Held) bool {
			// All of the loopback's IPv4 network is there, not one address alone.
			return h.Prefix.Addr() == a || h.Prefix.Addr().IsLoopback() && a.Is4() && h.Prefix.Contains(a)
		})
		if i < 0 {
			missing = append(missing, a)
			continue
		}
		own = append(own, netip.PrefixFrom(a, held[i].Prefix.Bits()))
	}
	if missing != nil {
		have = have[:min(len(have), 20)]
		return nil, &ParamError{Kind: "netaddr", Param: "address", Got: addressWords(missing), Want: fmt.Sprintf("addresses of interfaces of %s: %s", parent.Name(), addressWords(have)),
			Mend: fmt.Sprintf("ip address add %s/%d dev …", missing[0], missing[0].BitLen())}
	}
	return own, nil
}

// Attach confines the sockets of the machine's group.
func (n *Netaddr) Attach(t *Txn, c *Child) error {
	ns, err := t.parent.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	own, err := n.networks(t.parent, ns)
	if err != nil {
		return err
	}
	return explainPrograms("netaddr", ns.BindSockets(t.plan.Group.Dirs()[0], own))
}

// explainPrograms puts the mend beside the error of what the kernel lacks.
func explainPrograms(kind string, err error) error {
	var missing *netx.Missing
	if errors.As(err, &missing) {
		return unsupported(missing.Mend, "%s: %v", kind, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	return nil
}

// listNetaddrs lists the addresses that a machine of v's can be left with.
func listNetaddrs(v *View) ([]Available, error) {
	ns, err := v.from.network()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	held, err := ns.Addresses()
	if err != nil {
		return nil, err
	}
	var list []Available
	for _, h := range held {
		a := h.Prefix.Addr()
		if (&Netaddr{[]netip.Addr{a}}).Validate() != nil || v.from.mayHave([]netip.Addr{a}) != nil {
			continue
		}
		one := Available{Name: a.String(), Available: true, Detail: fmt.Sprintf("on %s, of %s", h.Device, h.Prefix.Masked())}
		one.refuse(v.host.mayNetaddr())
		list = append(list, one)
	}
	if list == nil {
		list = []Available{{Name: "netaddr", Detail: "no interface of " + v.from.Name() + " has an address"}}
	}
	return list, nil
}
