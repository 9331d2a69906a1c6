package kernel

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
)

// Netif is a network interface, and with it a network universe of the machine's
// own. It is plugged into a virtual Ethernet, or is an interface of the parent's.
type Netif struct {
	VNet      string       `json:"vnet,omitempty"` // the name of one of the lab's
	Device    string       `json:",omitempty"`     // or an interface of the parent's
	Name      string       // eth0, eth1, … where it is left to msh
	Addresses []Address    `json:",omitempty"`
	Bare      bool         `json:",omitempty"` // no address, where the vnet has some to give
	Gateway   []netip.Addr `json:",omitempty"` // of the default routes, at most one of each family
	MAC       string       `json:",omitempty"`
	MTU       int          `json:",omitempty"` // bytes; 0 is the vnet's
	Exclusive bool         `json:",omitempty"`
	Force     bool         `json:",omitempty"` // take it even if the parent is left without a way out
	Share     string       `json:",omitempty"` // "macvlan", "ipvlan" or "bridge"
	Cable     Cable        `json:",omitzero"`

	// What the lab has settled.
	Link         string       `json:",omitempty"`     // the cable it is an end of, "" for none
	Port         int          `json:",omitempty"`     // index in the switch's namespace
	Gateways     []netip.Addr `json:",omitempty"`     // those in force
	IPv6         bool         `json:"ipv6,omitempty"` // whether it is to be on
	HardwareAddr string       `json:",omitempty"`     // the MAC in force; "" is the device's own
}

// Address is an address with its network; a prefix length of 0 is the vnet's.
type Address struct{ netip.Prefix }

// ParseAddress reads "10.0.0.2/24", or "10.0.0.2" where the network is the vnet's.
func ParseAddress(text string) (Address, error) {
	if p, err := netip.ParsePrefix(text); err == nil && p.Bits() > 0 {
		return Address{p}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return Address{netip.PrefixFrom(a, 0)}, nil
	}
	return Address{}, fmt.Errorf(`got %q, want an address, as "10.0.0.2/24" or "fd00::2/64"`, Short(text))
}

// Kind is "netif".
func (*Netif) Kind() string { return "netif" }

// Mode is new on a vnet, else as the parent's interface is taken.
func (n *Netif) Mode() Mode {
	switch {
	case n.Exclusive:
		return Exclusive
	case n.Device != "":
		return Shared
	}
	return New
}

// Key is the name. Those that msh is yet to name are each their own.
func (n *Netif) Key() string {
	if n.Name == "" {
		return fmt.Sprintf("%p", n)
	}
	return n.Name
}

// Validate checks the parameters by themselves.
func (n *Netif) Validate() error {
	if n.VNet == "" && n.Link == "" {
		if err := checkInterface("netif", "what", n.Device); err != nil {
			return err
		}
		if n.Device == "lo" {
			return bad("netif", "what", n.Device, "another interface: each network universe has a loopback of its own")
		}
	}
	switch {
	case n.VNet != "" && n.Exclusive:
		return bad("netif", "exclusive", "True", "an interface of the parent's: one on a vnet is the machine's alone")
	case n.VNet != "" && n.Share != "":
		return bad("netif", "shared", n.Share, "an interface of the parent's: a vnet is shared by plugging in")
	case n.Device != "" && n.Exclusive && n.Share != "":
		return bad("netif", "shared", n.Share, "one of exclusive and shared")
	case n.Device != "" && !n.Exclusive && n.Share == "":
		return &ParamError{Kind: "netif", Param: "what", Got: fmt.Sprintf("%q", n.Device), Want: "how the parent's interface is taken: exclusive=True, or shared=",
			Mend: fmt.Sprintf(`netif(%q, exclusive=True), or shared="macvlan"`, n.Device)}
	case n.Share != "" && !slices.Contains(shares, n.Share):
		return bad("netif", "shared", n.Share, "one of "+strings.Join(shares, " "))
	}
	if n.Name != "" {
		if err := checkInterface("netif", "name", n.Name); err != nil {
			return err
		}
		if n.Name == "lo" {
			return bad("netif", "name", n.Name, "another name: lo is the loopback")
		}
	}
	if n.MTU != 0 {
		if err := CheckMTU("netif", n.MTU); err != nil {
			return err
		}
	}
	if n.MAC != "" {
		if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 || !slices.ContainsFunc(mac, func(b byte) bool { return b != 0 }) {
			return bad("netif", "mac", n.MAC, `an Ethernet address that is no group's, as "02:00:00:00:00:01"`)
		}
		if n.Share == "ipvlan" {
			return bad("netif", "mac", n.MAC, "none: with ipvlan all have the address of the interface they share")
		}
	}
	seen := map[netip.Addr]bool{}
	for _, a := range n.Addresses {
		switch {
		case seen[a.Addr()]:
			return bad("netif", "address", a.Addr().String()+" twice", "each address once")
		case a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Addr().IsLoopback() || a.Addr().Is4In6():
			return bad("netif", "address", a.Addr().String(), "one that a machine can have")
		case a.Bits() == 0 && n.VNet == "":
			return bad("netif", "address", a.Addr().String(), `with its prefix length, as "10.0.0.2/24"`)
		}
		seen[a.Addr()] = true
	}
	family := map[bool]bool{}
	for _, g := range n.Gateway {
		if !g.IsValid() || g.IsUnspecified() || g.IsMulticast() || family[g.Is6()] {
			return bad("netif", "gateway", g.String(), "one address, or one of each family")
		}
		family[g.Is6()] = true
	}
	return n.Cable.Validate()
}

var shares = []string{"macvlan", "ipvlan", "bridge"}

// addresses are those in force, once the lab has settled them.
func (n *Netif) addresses() []netip.Prefix {
	var all []netip.Prefix
	for _, a := range n.Addresses {
		all = append(all, a.Prefix)
	}
	return all
}

func (n *Netif) has6() bool {
	return slices.ContainsFunc(n.Addresses, func(a Address) bool { return a.Addr().Is6() })
}

// mac is the address in force; nil is the device's own.
func (n *Netif) mac() net.HardwareAddr {
	mac, _ := net.ParseMAC(n.HardwareAddr)
	return mac
}

// madeUpMAC is the same each time the script runs here, and another on another
// computer: two of them may share an Ethernet.
func madeUpMAC(machine, name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(machineID() + "\x00" + machine + "\x00" + name))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2 // no group's, locally administered
	return mac
}

var machineID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/etc/machine-id")
	return string(b)
})

// Plan asks for a network namespace, and for the child to wait until the
// interface is in it.
func (n *Netif) Plan(p *Plan) error {
	p.Flags |= unix.CLONE_NEWNET
	p.Parks = true
	p.IPv6 = p.IPv6 || n.IPv6
	if n.Exclusive {
		p.Claims = append(p.Claims, claimNIC(n.Device, p.Under.Net))
	}
	p.Nets = append(p.Nets, n)
	return nil
}

// on is what it is plugged into.
func (n *Netif) on() string {
	if n.Link != "" {
		return n.Link
	}
	return n.VNet
}

// Words tells of it in a plan.
func (n *Netif) Words() string {
	text := n.Name
	switch {
	case n.Exclusive:
		text += ": the parent's " + n.Device
	case n.Device != "":
		text += ": " + n.Share + " on the parent's " + n.Device
	case n.Link != "":
		text += ": an end of " + n.Link
	default:
		text += " on " + n.VNet
	}
	for _, a := range n.Addresses {
		text += ", " + a.String()
	}
	for _, g := range n.Gateways {
		text += ", default via " + g.String()
	}
	for _, d := range []struct {
		way string
		i   netx.Impair
	}{{"out", n.Cable.Out}, {"in", n.Cable.In}} {
		if w := d.i.String(); w != "" {
			text += ", " + d.way + " " + w
		}
	}
	return text
}

// Attach puts the interface into the child's namespace. Those on a vnet come
// first: their indices are the ones that a fresh namespace has free.
func (n *Netif) Attach(t *Txn, c *Child) error {
	index := 0
	for i, o := range t.plan.Nets {
		if o == n {
			index = i + 2 // after the loopback
		}
	}
	if n.Link != "" {
		return t.attachCable(c, n, index)
	}
	ns, err := t.childNet(c)
	if err != nil {
		return err
	}
	if n.VNet != "" {
		v := t.lab.findVNet(n.VNet)
		if v == nil {
			return fmt.Errorf("netif %s: vnet %s: %w", n.Name, n.VNet, errNoNet)
		}
		if t.plan.Spec.Keep {
			if err := v.keep(); err != nil {
				return err
			}
		}
		if t.restores() {
			return v.plugApart(ns, n, index, t.plan.Spec.Name)
		}
		return v.plug(ns, n, index, t.plan.Spec.Name)
	}
	return t.attachDevice(ns, n)
}

// childNet is the child's network namespace.
func (t *Txn) childNet(c *Child) (*netx.NS, error) {
	if t.net != nil {
		return t.net, nil
	}
	ns, err := netx.Open(fmt.Sprintf("/proc/%d/ns/net", c.pid))
	if err != nil {
		return nil, fmt.Errorf("open the child's network: %w", err)
	}
	t.net = ns
	return ns, nil
}

// bring takes an interface that is in the machine's namespace up, and gives it
// what it does not have yet of its addresses and default routes.
func (n *Netif) bring(ns *netx.NS, index int) error {
	if err := n.insist(func() error { return ns.SetUp(index, true) }); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("another interface that shares %s has the MAC %s: %w", n.Device, n.HardwareAddr, err)
		}
		return fmt.Errorf("take %s up: %w", n.Name, err)
	}
	for _, a := range n.Addresses {
		err := n.insist(func() error { return ns.AddAddress(index, a.Prefix) })
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give %s the address %s: %w", n.Name, a, err)
		}
	}
	for _, g := range n.Gateways {
		if err := ns.AddDefaultRoute(index, g); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("default route via %s: %w", g, err)
		}
	}
	return nil
}

// insist tries for a while what is refused because another interface on the same
// one of the parent's has the MAC (macvlan) or the address (ipvlan): the kernel
// takes the network of a machine that has ended apart in its own time.
func (n *Netif) insist(f func() error) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if n.Share == "" || !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end) {
			return err
		}
	}
}

// network opens the machine's network namespace: its own, or that which it shares.
func (m *Machine) network() (*netx.NS, error) {
	if m.isHost() || m.space()&unix.CLONE_NEWNET == 0 {
		return netx.Own()
	}
	if err := m.alive(); err != nil {
		return nil, err
	}
	ns, err := netx.Open(fmt.Sprintf("/proc/%d/ns/net", m.pid))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("machine %s: %w", m.Name(), ErrDead) // it is just ending
	}
	if err == nil {
		err = m.alive() // or the number may be another's
	}
	if err != nil {
		if ns != nil {
			ns.Close()
		}
		return nil, fmt.Errorf("open the network of %s: %w", m.Name(), err)
	}
	return ns, nil
}

// ownsNetwork tells whether the machine has a network universe of its own.
func (s *Spec) ownsNetwork() bool { return s.Has("netspace") || s.Has("netif") }

// Netifs lists the interfaces that msh has given the machine.
func (m *Machine) Netifs() []*Netif {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*Netif
	for _, r := range m.Spec().Resources {
		if n, ok := r.(*Netif); ok {
			all = append(all, n)
		}
	}
	return all
}

// set changes what the link of one of the machine's interfaces does to the traffic:
// the one of that name, or the only one that is on that vnet, or that device.
func (n *Netif) set(m *Machine) error {
	name := n.Name
	for _, o := range m.Netifs() {
		if name == "" && o.VNet == n.VNet && o.Device == n.Device {
			name = o.Name
		}
	}
	if err := CheckCableChange(n.Cable); err != nil {
		return err
	}
	return m.SetNetif(name, n.Cable)
}

// listNetifs lists the interfaces that m could give away or share, and those that
// it has given.
func listNetifs(v *View) ([]Available, error) {
	g, err := v.from.giver()
	if err != nil {
		return nil, err
	}
	defer g.ns.Close()
	links, err := g.ns.Links()
	if err != nil {
		return nil, err
	}
	var list []Available
	for _, l := range links {
		a := Available{Name: l.Name, Available: true, Detail: l.String()}
		switch err := g.mayGive("netif", "what", l.Name, false); {
		case l.Name == "lo":
			a.Available, a.Modes = false, []Mode{}
			a.Detail += ": each network universe has a loopback of its own"
		case err != nil:
			a.Modes = []Mode{Shared}
			a.Detail += "; exclusively not: " + err.Error()
		}
		if a.Available {
			a.refuse(v.from.mayNIC(v.host, l.Name))
		}
		list = append(list, a)
	}
	claims, err := v.host.book.Claims("netif")
	if err != nil {
		return nil, err
	}
	for _, c := range claims {
		if universe, device := nicOf(c); universe == v.from.under().Net {
			list = append(list, Available{Name: device, Owner: c.Owner, Modes: []Mode{Exclusive}, Detail: "given away"})
		}
	}
	return list, nil
}

// Address is the machine's first address, without prefix length; "" for none.
func (m *Machine) Address() string {
	for _, n := range m.Netifs() {
		if len(n.Addresses) > 0 {
			return n.Addresses[0].Addr().String()
		}
	}
	if n, ok := m.Spec().find("netaddr").(*Netaddr); ok {
		return n.Addresses[0].String()
	}
	return ""
}
