package kernel

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"msh/kernel/netx"
)

// VXLAN makes a virtual Ethernet one with those on other hosts (RFC 7348).
type VXLAN struct {
	ID    int          // the network identifier, 24 bits: the same on each host
	Peers []netip.Addr // the other hosts
	Local netip.Addr   // this host's address; the kernel chooses where it is not given
	Port  int          // UDP; 0 is 4789
}

func (x *VXLAN) validate() error {
	if x == nil {
		return nil
	}
	if x.ID < 0 || x.ID >= 1<<24 {
		return bad("vnet", "vxlan: id", x.ID, "0 to 16777215")
	}
	if x.Port < 0 || x.Port > 65535 {
		return bad("vnet", "vxlan: port", x.Port, "1 to 65535")
	}
	if len(x.Peers) == 0 {
		return &ParamError{Kind: "vnet", Param: "vxlan: peers", Got: "none", Want: "the addresses of the other hosts", Mend: `vxlan=struct(id=1, peers=["192.0.2.2"])`}
	}
	for i, p := range x.Peers {
		if p.Is6() != x.Peers[0].Is6() || x.Local.IsValid() && p.Is6() != x.Local.Is6() {
			return bad("vnet", "vxlan: peers", p.String(), "addresses of one family, local's included")
		}
		for _, o := range x.Peers[:i] {
			if o == p {
				return bad("vnet", "vxlan: peers", p.String()+" twice", "each once")
			}
		}
	}
	return nil
}

const vxlanOp = "vxlan"

// removeVXLAN takes the port away from the namespace that is pinned there, and not
// some time after that has ended: until then its id is not free.
func removeVXLAN(pin string) error {
	ns, err := netx.Open(pin)
	if err != nil {
		return nil // not pinned yet, or no more
	}
	defer ns.Close()
	if index, err := ns.Index("vxlan"); err == nil {
		return ns.Delete(index)
	}
	return nil
}

// makeVXLAN makes a port that leads to the other hosts. What it sends goes through
// the parent's network, but no interface of it is to be seen there.
func (v *VNet) makeVXLAN(s *stepper, w *wiring) error {
	if v.overHost() {
		return v.lab.host.needsRoot("vnet: vxlan", "the kernel's VXLAN sends from the host's network, which is its root's", "run msh as root")
	}
	x := v.spec.VXLAN
	under, err := v.parent.network()
	if err != nil {
		return err
	}
	defer under.Close()
	if err := s.step("write the VXLAN port down"); err != nil {
		return err
	}
	if err := w.ledger.Write(vxlanOp, filepath.Join(w.dir, pinFile)); err != nil {
		return err
	}
	if err := s.step("make the VXLAN port"); err != nil {
		return err
	}
	o := netx.VXLAN{ID: x.ID, Port: x.Port, Local: x.Local, Peers: x.Peers, MTU: v.spec.MTU, Index: v.lab.index()}
	if o.Port == 0 {
		o.Port = 4789
	}
	if !o.Local.IsValid() && x.Peers[0].Is6() {
		o.Local = netip.IPv6Unspecified() // or it would be one of IPv4
	}
	if err := w.ns.AddVXLAN(o, under); err != nil {
		return fmt.Errorf("id %d, port %d: %w", x.ID, o.Port, err)
	}
	return nil
}
