package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
)

// VNetSpec is what a virtual Ethernet is to be: plain data, with a place in a script.
type VNetSpec struct {
	Name     string         // as a machine's; "" lets the lab choose
	Subnets  []netip.Prefix // of which addresses are handed out in order; IPv4 and IPv6
	MTU      int            // bytes; 0 is 1500
	NAT      bool           `json:",omitempty"` // its machines reach what the parent reaches
	Uplink   string         `json:",omitempty"` // an interface of the parent's that becomes a port
	Force    bool           `json:",omitempty"` // take the uplink even if the parent is left without a way out
	Isolated bool           `json:",omitempty"` // its machines reach the gateway, not each other
	VXLAN    *VXLAN         `json:",omitempty"`
	Keep     bool           `json:",omitempty"` // outlives the script
	Pos      string         `json:",omitempty"`
}

const (
	minMTU, maxMTU = 68, 65535 // RFC 791; the kernel's ETH_MAX_MTU
	minMTU6        = 1280      // RFC 8200
)

// CheckMTU tells whether an interface may have that MTU.
func CheckMTU(kind string, mtu int) error {
	if mtu < minMTU || mtu > maxMTU {
		return bad(kind, "mtu", mtu, fmt.Sprintf("%d to %d bytes", minMTU, maxMTU))
	}
	return nil
}

// Validate checks the spec by itself.
func (s *VNetSpec) Validate() error {
	if s.Name != "" {
		if err := CheckName("vnet", "name", s.Name); err != nil {
			return err
		}
	}
	if s.MTU != 0 {
		if err := CheckMTU("vnet", s.MTU); err != nil {
			return err
		}
	}
	for i, p := range s.Subnets {
		switch most := p.Addr().BitLen() - 1; {
		case p.Bits() == 0 || p.Bits() > most:
			return bad("vnet", "subnet", p.String(), fmt.Sprintf("a prefix length of 1 to %d", most))
		case p != p.Masked():
			return &ParamError{Kind: "vnet", Param: "subnet", Got: fmt.Sprintf("%q", p), Want: "a network, whose host bits are 0", Mend: fmt.Sprintf("subnet=%q", p.Masked())}
		case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().Is4In6():
			return bad("vnet", "subnet", p.String(), "addresses that machines can have")
		case p.Addr().Is6() && s.MTU != 0 && s.MTU < minMTU6:
			return bad("vnet", "mtu", s.MTU, fmt.Sprintf("at least %d for IPv6", minMTU6))
		}
		for _, o := range s.Subnets[:i] {
			if o.Overlaps(p) {
				return bad("vnet", "subnet", fmt.Sprintf("%s and %s", o, p), "networks that do not overlap")
			}
		}
	}
	if s.NAT && len(s.Subnets) == 0 {
		return &ParamError{Kind: "vnet", Param: "nat", Got: "True", Want: "a subnet, of which the gateway gets the first address", Mend: `subnet="10.0.0.0/24"`}
	}
	if s.Uplink != "" {
		if err := checkInterface("vnet", "uplink", s.Uplink); err != nil {
			return err
		}
	}
	return s.VXLAN.validate()
}

// checkInterface tells whether an interface can be called so (dev_valid_name in
// the kernel's net/core/dev.c; % would make the kernel count).
func checkInterface(kind, param, name string) error {
	ok := name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/:%")
	if name == "all" || name == "default" { // inetdev_valid_name: /proc/sys/net/ipv4/conf has them already
		return bad(kind, param, name, "another name: the kernel's parameters for all interfaces are called so")
	}
	for _, r := range name {
		ok = ok && r > ' ' && r < 0x7f
	}
	switch {
	case len(name) >= unix.IFNAMSIZ:
		return bad(kind, param, name, fmt.Sprintf("an interface's name, of at most %d bytes; this has %d", unix.IFNAMSIZ-1, len(name)))
	case !ok:
		return bad(kind, param, name, "an interface's name: no blanks, no / : or %")
	}
	return nil
}

// VNet is a virtual Ethernet: a network namespace that holds a switch, and
// nothing else stands in it. So it adds no interface to the host, the host's
// packet filter does not see its frames, and no names can clash.
type VNet struct {
	lab    *Lab
	parent *Machine
	spec   *VNetSpec
	net    *wiring

	mu     sync.Mutex
	ports  []*port // in the order they were made
	taken  map[netip.Addr]string
	cursor []netip.Addr // the address last handed out, for each subnet
	groups [][]string   // of machines, while it is partitioned
	dead   bool
}

// port is where a machine, or another switch, is plugged in.
type port struct {
	index   int
	machine string // "" for a cable to another switch, the leg to the parent, …
	netif   *Netif
}

func (p *port) name() string { return portName(p.index) }

func portName(index int) string { return fmt.Sprintf("p%d", index) }

// VNet makes a virtual Ethernet that lies in parent: it ends with it.
func (l *Lab) VNet(ctx context.Context, parent *Machine, spec *VNetSpec) (*VNet, error) {
	v, err := l.newVNet(parent, spec)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	err = l.claim(ctx)
	l.mu.Unlock()
	if err == nil {
		err = parent.alive()
	}
	if err == nil {
		err = v.make(ctx)
	}
	if err != nil {
		l.dropVNet(v)
		return nil, fmt.Errorf("vnet %s: %w", v.Name(), err)
	}
	return v, nil
}

// PlanVNet is one that only a plan stands for.
func (l *Lab) PlanVNet(parent *Machine, spec *VNetSpec) (*VNet, error) {
	return l.newVNet(parent, spec)
}

// newVNet checks the spec and settles the name.
func (l *Lab) newVNet(parent *Machine, spec *VNetSpec) (*VNet, error) {
	s := *spec
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s.Keep = s.Keep || l.up
	if s.MTU == 0 {
		s.MTU = 1500
	}
	v := &VNet{lab: l, parent: parent, spec: &s, taken: map[netip.Addr]string{}, cursor: make([]netip.Addr, len(s.Subnets))}
	if s.NAT {
		for i, p := range s.Subnets {
			v.cursor[i] = p.Addr().Next()
			v.taken[v.cursor[i]] = "the gateway"
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.Name == "" {
		for n := 1; s.Name == "" || l.vnet(s.Name) != nil; n++ {
			s.Name = fmt.Sprintf("n%d", n)
		}
	} else if l.vnet(s.Name) != nil {
		return nil, &ParamError{Kind: "vnet", Param: "name", Got: fmt.Sprintf("%q", s.Name), Want: "a name that is free in lab " + l.name + ": a vnet has it"}
	}
	l.vnets = append(l.vnets, v)
	return v, nil
}

// vnet finds one by its name. The caller holds l.mu.
func (l *Lab) vnet(name string) *VNet {
	if i := slices.IndexFunc(l.vnets, func(v *VNet) bool { return v.Name() == name }); i >= 0 {
		return l.vnets[i]
	}
	return nil
}

func (l *Lab) dropVNet(v *VNet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.vnets = slices.DeleteFunc(l.vnets, func(o *VNet) bool { return o == v })
}

// VNets lists the lab's networks in the order they were made.
func (l *Lab) VNets() []*VNet {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.vnets)
}

func (v *VNet) make(ctx context.Context) (err error) {
	s := &stepper{ctx: ctx, fault: v.lab.host.Fault}
	v.net, err = v.lab.makeWiring(s, v.Name(), v.record(),
		func() (*netx.NS, error) { return netx.MakeSwitch("switch", v.spec.MTU) },
		func(w *wiring) error {
			if v.spec.NAT {
				if err := v.makeNAT(s, w); err != nil {
					return fmt.Errorf("nat: %w", err)
				}
			}
			if v.spec.Uplink != "" {
				if err := v.makeUplink(s, w); err != nil {
					return err
				}
			}
			if v.spec.VXLAN != nil {
				if err := v.makeVXLAN(s, w); err != nil {
					return fmt.Errorf("vxlan: %w", err)
				}
			}
			return nil
		})
	return err
}

func (v *VNet) record() netRecord {
	return netRecord{Spec: v.spec, Parent: v.parent.claimant(), Keep: v.spec.Keep}
}

// Name is the network's name in its lab.
func (v *VNet) Name() string { return v.spec.Name }

// Spec is what it was asked to be. It must not be changed.
func (v *VNet) Spec() *VNetSpec { return v.spec }

// Parent is the machine that it lies in.
func (v *VNet) Parent() *Machine { return v.parent }

// Machines lists the names of the machines on it, in the order they came.
func (v *VNet) Machines() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var names []string
	for _, p := range v.ports {
		if p.machine != "" && !slices.Contains(names, p.machine) {
			names = append(names, p.machine)
		}
	}
	return names
}

// alive is nil while it can be used. The caller holds v.mu.
func (v *VNet) alive() error {
	if v.dead {
		return fmt.Errorf("vnet %s: %w", v.Name(), errNoNet)
	}
	return nil
}

var errNoNet = errors.New("the network has been destroyed")

// keep has it outlive the script, for a kept machine is on it.
func (v *VNet) keep() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.spec.Keep || v.net == nil || v.dead {
		return nil
	}
	if !v.parent.isHost() && !v.parent.Spec().Keep {
		return nil // it ends with its parent, and so does whatever is on it
	}
	v.spec.Keep = true
	return v.net.ledger.Write(netOp, v.record())
}

// Destroy ends it. Machines on it lose their interface to it. Twice is no error.
func (v *VNet) Destroy(ctx context.Context) error {
	ending := v.lab.ending()
	for _, k := range v.lab.Links() {
		if k.touches(v) && !ending {
			if err := k.Destroy(ctx); err != nil {
				return err
			}
		}
	}
	if err := v.destroy(ctx); err != nil {
		return err
	}
	return v.lab.retell()
}

func (v *VNet) destroy(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return nil
	}
	if v.net != nil {
		var errs []error
		for _, p := range v.ports {
			// Now, and not some time after the namespace has ended; when all ends,
			// nobody is left to see it, and each waits for a grace period of RCU.
			if !v.lab.ending() {
				errs = append(errs, v.net.ns.Delete(p.index))
			}
		}
		errs = append(errs, v.net.remove(ctx, v.lab.host))
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("destroy vnet %s: %w", v.Name(), err)
		}
	}
	for _, p := range v.ports {
		v.lab.lost(p)
	}
	v.ports, v.dead = nil, true
	v.lab.dropVNet(v)
	return nil
}

// ending tells whether the lab is being closed.
func (l *Lab) ending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// endNets destroys the networks that lie in a machine, while it is there yet: they
// may have things of its to give back.
func (l *Lab) endNets(ctx context.Context, m *Machine) error {
	var errs []error
	for _, v := range slices.Backward(l.VNets()) {
		if v.parent == m {
			errs = append(errs, v.Destroy(ctx))
		}
	}
	return errors.Join(errs...)
}

// leave is what the end of a machine does to the network: the kernel has taken
// the ports away with the machine's end of them. It tells whether there were any.
func (v *VNet) leave(machine string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	had := len(v.ports)
	v.ports = slices.DeleteFunc(v.ports, func(p *port) bool {
		if p.machine != machine {
			return false
		}
		v.vacate(p)
		return true
	})
	return len(v.ports) < had
}

// vacate gives back what belongs to a port that is gone: addresses, and the detour
// of what came in through it.
func (v *VNet) vacate(p *port) error {
	v.release(p.netif)
	if v.net == nil || v.lab.ending() {
		return nil
	}
	return v.net.ns.ShapeIn(p.index, netx.Impair{})
}

// abandon gives back what a machine that was not made had settled, its ports
// included: the kernel has taken them away with the child.
func (l *Lab) abandon(s *Spec) {
	for _, n := range netifsOf(s) {
		if v := l.findVNet(n.VNet); v != nil {
			v.mu.Lock()
			had := len(v.ports)
			v.ports = slices.DeleteFunc(v.ports, func(p *port) bool { return p.netif == n })
			known := len(v.ports) < had
			v.release(n)
			v.mu.Unlock()
			if known {
				l.tell(v, nil)
			}
		}
	}
}
