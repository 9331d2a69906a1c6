package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"msh/kernel/ledger"
	"msh/kernel/netx"
)

// claimNIC is the claim on an interface of the network that belongs to the machine
// universe; "" is the host.
func claimNIC(device, universe string) ledger.Claim {
	return ledger.Claim{Kind: "netif", Name: strings.ReplaceAll(universe, "/", ":") + "." + device}
}

// nicOf is the interface that a claim is on, and the machine whose it was.
func nicOf(c ledger.Claim) (universe, device string) {
	universe, device, _ = strings.Cut(c.Name, ".")
	return strings.ReplaceAll(universe, ":", "/"), device
}

// home is where an interface belongs: the network of a machine, or the host's.
type home struct {
	Machine string // LAB/MACHINE, "" for the host
	ID      uint64 // of the namespace, while it exists
	Boot    string
}

// givenNIC is an interface that a machine, or a switch, has been given.
type givenNIC struct {
	NIC  *netx.NIC
	From string // where the namespace that has it is pinned
	Home home
}

func (m *Machine) homeOf(ns *netx.NS) (home, error) {
	id, err := ns.ID()
	return home{Machine: m.under().Net, ID: id, Boot: bootID()}, err
}

// universe opens the network that something belongs to; nil where it is no more.
func (h *Host) universe(at home) (*netx.NS, error) {
	if at.Boot != bootID() {
		return nil, nil
	}
	var ns *netx.NS
	var err error
	if at.Machine == "" {
		ns, err = netx.Own()
	} else {
		ns, err = h.machineNet(at.Machine)
	}
	if ns == nil || err != nil {
		return nil, err
	}
	if id, err := ns.ID(); err != nil || id != at.ID {
		ns.Close()
		if at.Machine != "" {
			return nil, err // a new machine of that name
		}
		return nil, errors.Join(err, withHint(errors.New("it belongs to another network namespace than the one msh runs in"), "run `msh gc` in that one"))
	}
	return ns, nil
}

// machineNet opens a machine's network, by its pin or its init; nil where both
// are gone.
func (h *Host) machineNet(id string) (*netx.NS, error) {
	lab, name, _ := strings.Cut(id, "/")
	if ns, err := netx.Open(filepath.Join(h.State, lab, name, pinFile)); err == nil {
		return ns, nil
	}
	m, err := h.load(lab, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer m.close()
	ns, err := m.network()
	if errors.Is(err, ErrDead) {
		return nil, nil
	}
	return ns, err
}

// takeNICBack gives an interface back as it was. Where its home is gone, so is
// the need.
func (h *Host) takeNICBack(g givenNIC) error {
	home, err := h.universe(g.Home)
	if home == nil || err != nil {
		return explainNIC(g.NIC.Name, err)
	}
	defer home.Close()
	from, err := netx.Open(g.From)
	if err != nil {
		from = nil // it was never given, or the kernel has thrown it out
	} else {
		defer from.Close()
	}
	err = netx.TakeNICBack(g.NIC, from, home)
	if errors.Is(err, netx.ErrGone) {
		return nil // unplugged, or deleted from inside: nothing is left to give back
	}
	return explainNIC(g.NIC.Name, err)
}

func explainNIC(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("give %s back: %w", name, err)
}

// giver is the machine that an interface is taken from.
type giver struct {
	m  *Machine
	ns *netx.NS
}

func (m *Machine) giver() (*giver, error) {
	ns, err := m.network()
	if err != nil {
		return nil, err
	}
	return &giver{m, ns}, nil
}

// mayGive tells whether an interface can be taken away. The one that everything
// the parent sends out goes by is refused: msh's user may sit at its other end.
func (g *giver) mayGive(kind, param, device string, force bool) error {
	if _, err := g.ns.SaveNIC(device); err != nil {
		if holder := g.holder(device); holder != "" {
			err = fmt.Errorf("%s has it", holder)
		}
		return explainNICParam(kind, param, device, err)
	}
	if force {
		return nil
	}
	only, err := g.ns.CarriesCaller(device)
	if err != nil {
		return err
	}
	if only {
		return &ParamError{Kind: kind, Param: param, Got: fmt.Sprintf("%q", device), Want: "another interface: by this one go all default routes of " + g.m.Name(),
			Mend: "force=True takes it all the same"}
	}
	return nil
}

// holder is who has an interface exclusively, as LAB/NAME; "" for nobody.
func (g *giver) holder(device string) string {
	claims, _ := g.m.host.book.Claims("netif")
	want := claimNIC(device, g.m.under().Net).Name
	for _, c := range claims {
		if c.Name == want {
			return c.Owner
		}
	}
	return ""
}

func explainNICParam(kind, param, device string, err error) error {
	if param != "" {
		kind += ": " + param
	}
	return fmt.Errorf("%s: %q: %w", kind, device, err)
}

// give moves an interface to a namespace that is pinned at path.
func (g *giver) give(s *stepper, l *ledger.Ledger, device string, to *netx.NS, path, as string) (int, error) {
	nic, err := g.ns.SaveNIC(device)
	if err != nil {
		return 0, err
	}
	at, err := g.m.homeOf(g.ns)
	if err != nil {
		return 0, err
	}
	if err := s.step("write " + device + " down"); err != nil {
		return 0, err
	}
	if err := l.Write("nic", givenNIC{nic, path, at}); err != nil {
		return 0, err
	}
	if err := s.step("give " + device); err != nil {
		return 0, err
	}
	return g.ns.GiveNIC(nic, to, as)
}

// mayNIC refuses an ordinary user the host's interfaces.
func (m *Machine) mayNIC(h *Host, device string) error {
	if !m.inHostNetwork() {
		return nil
	}
	return h.needsRoot("netif("+device+")", "the host's interfaces are its root's", "a vnet with nat=True reaches what the host reaches; or run msh as root")
}

// Prepare looks whether an interface of the parent's is there to be had.
func (n *Netif) Prepare(t *Txn) error {
	if n.Device == "" {
		return nil
	}
	if err := t.parent.mayNIC(t.host, n.Device); err != nil {
		return err
	}
	g, err := t.parent.giver()
	if err != nil {
		return err
	}
	defer g.ns.Close()
	if n.Exclusive {
		return g.mayGive("netif", "what", n.Device, n.Force)
	}
	if _, err := g.ns.SaveNIC(n.Device); n.Share == "macvlan" && err != nil && !g.ns.Has(n.Device) {
		return explainNICParam("netif", "what", n.Device, err)
	}
	return nil
}

// attachDevice puts an interface of the parent's, or one that shares it, into the
// child's network.
func (t *Txn) attachDevice(ns *netx.NS, n *Netif) error {
	g, err := t.parent.giver()
	if err != nil {
		return err
	}
	defer g.ns.Close()
	var index int
	switch {
	case n.Exclusive:
		// Pinned, the namespace outlives the machine's init, however that ends:
		// else the interface would end up with the host, or nowhere.
		path := filepath.Join(t.dir, pinFile)
		if err := t.pinNet(ns, path); err != nil {
			return err
		}
		index, err = g.give(&t.stepper, t.ledger, n.Device, ns, path, n.Name)
	case n.Share == "macvlan":
		index, err = g.ns.AddMacvlan(n.Device, ns, n.Name, n.mac(), n.MTU)
	case n.Share == "ipvlan":
		index, err = g.ns.AddIpvlan(n.Device, ns, n.Name, n.MTU)
	default:
		index, err = g.ns.AddBridgePort(n.Device, ns, n.Name, n.mac(), n.MTU)
	}
	if err != nil {
		return explainShape(fmt.Errorf("netif %s: %w", n.Device, err))
	}
	if n.Exclusive {
		if err := n.dress(ns, index); err != nil {
			return err
		}
	}
	if err := n.bring(ns, index); err != nil {
		return err
	}
	return n.shapeInside(ns)
}

// pinNet pins the child's network, once.
func (t *Txn) pinNet(ns *netx.NS, path string) error {
	if t.pinned {
		return nil
	}
	t.pinned = true
	return pinNS(&t.stepper, t.ledger, ns, path)
}

// dress gives a real interface the MAC and the MTU that it is to have in the machine.
func (n *Netif) dress(ns *netx.NS, index int) error {
	if n.MAC != "" {
		if err := ns.SetMAC(index, n.mac()); err != nil {
			return fmt.Errorf("give %s the MAC %s: %w", n.Name, n.MAC, err)
		}
	}
	if n.MTU != 0 {
		if err := ns.SetMTU(index, n.MTU); err != nil {
			return bad("netif", "mtu", n.MTU, fmt.Sprintf("one that %s can have: %v", n.Device, err))
		}
	}
	return nil
}

// makeUplink makes an interface of the parent's a port of the switch. The parent
// loses it, and gets it back as it was.
func (v *VNet) makeUplink(s *stepper, w *wiring) error {
	if v.overHost() {
		return v.lab.host.needsRoot("vnet: uplink", "the host's interfaces are its root's", "nat=True, or run msh as root")
	}
	g, err := v.parent.giver()
	if err != nil {
		return err
	}
	defer g.ns.Close()
	device := v.spec.Uplink
	if err := g.mayGive("uplink", "", device, v.spec.Force); err != nil {
		return err
	}
	unlock, err := v.lab.host.book.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	c := claimNIC(device, v.parent.under().Net)
	c.Owner = v.lab.name + "/" + v.Name()
	if err := s.step("claim " + device); err != nil {
		return err
	}
	if err := w.ledger.Write("claim", c); err != nil {
		return err
	}
	if holder, err := v.lab.host.book.Take(c); err != nil {
		return fmt.Errorf("%s has it: %w", holder.Owner, err)
	}
	index, err := g.give(s, w.ledger, device, w.ns, filepath.Join(w.dir, pinFile), device)
	if err != nil {
		return err
	}
	if err := w.ns.Enslave(index, netx.BridgeIndex); err != nil {
		return fmt.Errorf("make %s a port: %w", device, err)
	}
	return w.ns.SetUp(index, true)
}
