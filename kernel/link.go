package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"msh/kernel/netx"
)

// LinkEnd is one end of a cable: a machine, which gets a new interface, or a vnet.
type LinkEnd struct {
	Machine *Machine
	VNet    *VNet
	Netif   *Netif // of the machine: its name and addresses
}

func (e LinkEnd) name() string {
	if e.VNet != nil {
		return e.VNet.Name()
	}
	return e.Machine.Name()
}

// Link is one cable. Between two machines it runs over a patch panel: a network
// namespace of the lab's in which each machine has a port, and what comes in at
// one goes out at the other. So a cable that is pulled takes the carrier away from
// both, and what it does to the traffic is not to be seen in the machines.
type Link struct {
	lab  *Lab
	name string
	ends [2]LinkEnd
	at   [2]*netx.NS // the namespace that each end's port is in
	port [2]int

	mu     sync.Mutex
	number int   // by which it is written down, 0 before it is
	cable  Cable // Out is from the first end to the second
	down   bool
	dead   bool
}

// patchName is the patch panel's directory; no vnet can be called so.
const patchName = ".patch"

// Link makes a cable.
func (l *Lab) Link(ctx context.Context, a, b LinkEnd, cable Cable) (*Link, error) {
	k, err := l.newLink(a, b, cable)
	if err != nil {
		return nil, err
	}
	if err := k.make(ctx); err != nil {
		return nil, fmt.Errorf("link %s: %w", k.name, err)
	}
	if err := k.write(false); err != nil {
		return nil, errors.Join(fmt.Errorf("link %s: %w", k.name, err), k.Destroy(ctx))
	}
	l.mu.Lock()
	l.links = append(l.links, k)
	l.mu.Unlock()
	if a.VNet != nil && b.VNet != nil {
		return k, l.tell(a.VNet, nil) // now one Ethernet with b's
	}
	return k, nil
}

// newLink checks the ends.
func (l *Lab) newLink(a, b LinkEnd, cable Cable) (*Link, error) {
	k := &Link{lab: l, name: a.name() + "-" + b.name(), ends: [2]LinkEnd{a, b}, cable: cable}
	if err := cable.Validate(); err != nil {
		return nil, err
	}
	for i, e := range k.ends {
		if e.VNet != nil {
			continue
		}
		if err := e.Machine.mayAttach("link", nil); err != nil {
			return nil, err
		}
		n := *e.Netif
		n.Link = k.name
		if k.ends[1-i].VNet == nil { // else Attach does
			if err := n.Validate(); err != nil {
				return nil, err
			}
		}
		k.ends[i].Netif = &n
	}
	if a.VNet != nil && b.VNet != nil && a.VNet != b.VNet && slices.Contains(l.segment([]string{a.name()}), b.VNet) {
		return nil, &ParamError{Kind: "link", Param: "b", Got: fmt.Sprintf("%q", b.name()), Want: "a switch that " + a.name() + " does not reach yet: there is no spanning tree, and a loop would carry each broadcast for ever",
			Mend: "have routers where there are loops, as ring() and mesh() of @msh//topo.star do"}
	}
	if a.VNet != nil && a.VNet == b.VNet {
		return nil, bad("link", "b", b.name(), "another switch than the one at the other end: a cable from a switch to itself is a loop")
	}
	return k, nil
}

func (k *Link) make(ctx context.Context) error {
	a, b := k.ends[0], k.ends[1]
	switch {
	case a.VNet != nil && b.VNet != nil:
		return k.makeTrunk()
	case a.VNet != nil:
		return k.makePort(ctx, 1, 0, Cable{Out: k.cable.In, In: k.cable.Out})
	case b.VNet != nil:
		return k.makePort(ctx, 0, 1, k.cable)
	}
	return k.makePatch(ctx)
}

// makePort makes the cable from a machine to a switch, which is a port of it.
func (k *Link) makePort(ctx context.Context, m, v int, cable Cable) error {
	n, vnet := k.ends[m].Netif, k.ends[v].VNet
	n.Cable, n.Link = cable, ""
	settled, err := vnet.Attach(ctx, k.ends[m].Machine, n)
	if err != nil {
		return err
	}
	k.ends[m].Netif = settled
	k.at[v], k.port[v] = vnet.net.ns, settled.Port
	return nil
}

// makeTrunk makes a cable between two switches.
func (k *Link) makeTrunk() (err error) {
	a, b := k.ends[0].VNet, k.ends[1].VNet
	if a.Name() > b.Name() {
		a, b = b, a // locked in one order, always
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := errors.Join(a.alive(), b.alive()); err != nil {
		return err
	}
	for i, e := range k.ends {
		k.at[i], k.port[i] = e.VNet.net.ns, k.lab.index()
	}
	near, far := k.ends[0].VNet, k.ends[1].VNet
	err = near.net.ns.AddVeth(netx.Veth{
		End:    netx.End{Name: portName(k.port[0]), Index: k.port[0], MTU: near.spec.MTU},
		Master: netx.BridgeIndex, Up: true,
		Far: netx.End{Name: portName(k.port[1]), Index: k.port[1], MTU: far.spec.MTU}, FarNS: far.net.ns,
	})
	if err != nil {
		return err
	}
	err = far.net.ns.Enslave(k.port[1], netx.BridgeIndex)
	if err == nil {
		err = far.net.ns.SetUp(k.port[1], true)
	}
	if err == nil {
		err = k.shape(k.cable)
	}
	if err != nil {
		return errors.Join(err, near.net.ns.Delete(k.port[0]))
	}
	for i, e := range k.ends {
		e.VNet.ports = append(e.VNet.ports, &port{index: k.port[i], netif: &Netif{}})
	}
	return nil
}

// shape has the ports do to the traffic what the cable is to do: each to what
// leaves through it. The caller holds k.mu, or has k to itself.
func (k *Link) shape(c Cable) error {
	near, far := 0, 1
	if k.ends[0].VNet != nil {
		near, far = 1, 0 // between switches what leaves at an end goes to the other
	}
	if err := k.at[far].ShapeOut(k.port[far], c.Out); err != nil {
		return explainShape(err)
	}
	return explainShape(k.at[near].ShapeOut(k.port[near], c.In))
}

// machineEnd is the index of the end that is a machine on a switch; -1 for none.
func (k *Link) machineEnd() int {
	for i, e := range k.ends {
		if e.Machine != nil && k.ends[1-i].VNet != nil {
			return i
		}
	}
	return -1
}

// Name is A-B.
func (k *Link) Name() string { return k.name }

// Ends are what it connects.
func (k *Link) Ends() [2]LinkEnd { return k.ends }

// Cable is what it does to the traffic; Out is from the first end to the second.
func (k *Link) Cable() Cable {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cable
}

func (k *Link) touches(v *VNet) bool { return k.ends[0].VNet == v || k.ends[1].VNet == v }

func (k *Link) alive() error {
	if k.dead {
		return fmt.Errorf("link %s: the cable has been destroyed", k.name)
	}
	for _, e := range k.ends {
		if e.Machine == nil || k.at == [2]*netx.NS{} { // or stands in a plan only
			continue
		}
		if err := e.Machine.alive(); err != nil { // it hangs loose
			return fmt.Errorf("link %s: %w", k.name, err)
		}
	}
	return nil
}

// Set changes what it does to the traffic; what c does not name stays as it was.
func (k *Link) Set(c Cable) error {
	if err := c.Validate(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.alive(); err != nil {
		return err
	}
	now := c.over(k.cable)
	if err := now.Validate(); err != nil {
		return err
	}
	if i := k.machineEnd(); i >= 0 {
		n := c
		if i == 1 {
			n.Out, n.In = c.In, c.Out
		}
		if err := k.ends[i].Machine.SetNetif(k.ends[i].Netif.Name, n); err != nil {
			return err
		}
	} else if k.at[0] != nil {
		if err := k.shape(now); err != nil {
			return errors.Join(fmt.Errorf("set link %s: %w", k.name, err), k.shape(k.cable))
		}
	}
	k.cable = now
	return k.write(false)
}

// SetUp pulls the cable, or puts it back: both ends lose their carrier, and
// nothing else.
func (k *Link) SetUp(ctx context.Context, up bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.alive(); err != nil {
		return err
	}
	var errs []error
	for i, ns := range k.at {
		if ns != nil {
			errs = append(errs, ns.SetUp(k.port[i], up))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("link %s: %w", k.name, err)
	}
	k.down = !up
	if err := k.write(false); err != nil {
		return err
	}
	if up {
		return k.awaitUp(ctx)
	}
	return nil
}

// awaitUp waits until what is at the two ends works over the cable again. A machine
// that has taken its own end down is not waited for.
func (k *Link) awaitUp(ctx context.Context) error {
	var ports []netx.Port // between switches
	for i, e := range k.ends {
		if e.VNet != nil && k.ends[1-i].VNet != nil && k.at[i] != nil {
			ports = append(ports, netx.Port{NS: k.at[i], Index: k.port[i]})
		}
		if e.Machine == nil || e.Machine.alive() != nil || e.Machine.state == "planned" {
			continue
		}
		at := i // of the port that the machine's interface is plugged into
		if k.at[i] == nil {
			at = 1 - i
		}
		ns, err := e.Machine.network()
		if err != nil {
			return err
		}
		if index, gone := ns.Index(e.Netif.Name); gone == nil { // else the machine has renamed it
			err = netx.AwaitUp(ctx, netx.Port{NS: k.at[at], Index: k.port[at]}, netx.Port{NS: ns, Index: index})
		}
		ns.Close()
		if err != nil {
			return err
		}
	}
	return netx.AwaitUp(ctx, ports...)
}

// Up tells whether the cable is plugged in.
func (k *Link) Up() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.down && !k.dead
}

// Destroy takes the cable away, and with it the machines' interfaces. Twice is no
// error.
func (k *Link) Destroy(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead {
		return nil
	}
	var errs []error
	if i := k.machineEnd(); i >= 0 {
		errs = append(errs, k.ends[1-i].VNet.drop(k.ends[i].Machine, k.ends[i].Netif))
	} else {
		for i, ns := range k.at {
			if ns != nil {
				errs = append(errs, ns.Delete(k.port[i]))
			}
		}
		for i, e := range k.ends {
			if e.VNet != nil {
				e.VNet.forgetPort(k.port[i])
			} else if e.Machine.state == "planned" || e.Machine.alive() == nil {
				errs = append(errs, e.Machine.lose(e.Netif.Name))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("destroy link %s: %w", k.name, err)
	}
	k.dead = true
	k.lab.dropLink(k)
	if k.ends[0].VNet != nil && k.ends[1].VNet != nil {
		return errors.Join(k.write(true), k.lab.retell()) // two Ethernets again
	}
	return nil
}

// leave is what the end of a machine does to the cable: a machine at its other end
// has it hanging loose, without a carrier, until the cable is destroyed.
func (k *Link) leave(m *Machine) {
	for i, e := range k.ends {
		if e.Machine != m {
			continue
		}
		k.mu.Lock()
		far := k.ends[1-i].Machine
		loose := far != nil && far != m && !k.dead && far.alive() == nil
		if loose && k.at[1-i] != nil {
			k.at[1-i].SetUp(k.port[1-i], false)
		}
		k.dead = k.dead || !loose
		k.mu.Unlock()
		if !loose {
			k.lab.dropLink(k)
		}
	}
}

// Links lists the lab's cables in the order they were made.
func (l *Lab) Links() []*Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.links)
}

func (l *Lab) dropLink(k *Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links = slices.DeleteFunc(l.links, func(o *Link) bool { return o == k })
}

// PlanLink is a cable that only a plan stands for.
func (l *Lab) PlanLink(a, b LinkEnd, cable Cable) (*Link, error) {
	k, err := l.newLink(a, b, cable)
	if err != nil {
		return nil, err
	}
	for i, e := range k.ends {
		if e.Machine == nil {
			continue
		}
		n := k.ends[i].Netif
		if v := k.ends[1-i].VNet; v != nil {
			n.Link = "" // a port of the switch
			if k.ends[i].Netif, err = v.PlanAttach(e.Machine, n); err != nil {
				return nil, err
			}
			continue
		}
		if err := l.settleOne(e.Machine, n, e.Machine.Netifs(), e.Machine.Name()); err != nil {
			return nil, err
		}
		if err := e.Machine.gain(n); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	l.links = append(l.links, k)
	l.mu.Unlock()
	return k, nil
}
