package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/ledger"
	"msh/kernel/netx"
)

// leg is what a vnet with nat has in its parent's network: one end of a veth, and
// what lets packets from there through. The vnet's own addresses are not to be
// seen there: the switch's namespace has already translated them to the leg's, so
// that labs may use the same ones, and the parent's own as well.
type leg struct {
	Name    string
	Mark    string // of the rules that are msh's in other firewalls
	Home    home
	Sysctls []netx.Sysctl // of the parent's network, which several vnets may need
	Number  int
	Owner   string
}

const (
	legs     = 1 << 14
	natTable = "msh"
	legPort  = "leg" // what it is called in the switch's namespace
)

// The networks of the legs, two addresses each: of those that are link-local, as
// nobody routes them, the ones that no cloud has its services at; and of a ULA.
var (
	legs4 = netip.MustParsePrefix("169.254.128.0/17")
	legs6 = netip.MustParsePrefix("fd6d:7368:6c65:6700::/112") // "mshleg"
)

// addresses are the two ends of a leg, the parent's first.
func (g *leg) addresses(v6 bool) (parent, sw netip.Prefix) {
	if !v6 {
		a := legs4.Addr().As4()
		a[2] += byte(g.Number >> 7)
		a[3] += byte(g.Number << 1)
		p := netip.AddrFrom4(a)
		return netip.PrefixFrom(p, 31), netip.PrefixFrom(p.Next(), 31)
	}
	a := legs6.Addr().As16()
	a[14], a[15] = byte(g.Number>>7), byte(g.Number<<1)
	p := netip.AddrFrom16(a)
	return netip.PrefixFrom(p, 127), netip.PrefixFrom(p.Next(), 127)
}

const family4, family6 = unix.AF_INET, unix.AF_INET6

// families are those of the vnet's subnets.
func (s *VNetSpec) families() []int {
	var all []int
	for _, p := range s.Subnets {
		f := family4
		if p.Addr().Is6() {
			f = family6
		}
		if !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all
}

// makeNAT makes the switch a router with a leg in the parent's network.
func (v *VNet) makeNAT(s *stepper, w *wiring) error {
	if v.overHost() {
		return v.makeUserNAT(s, w)
	}
	home, err := v.parent.network()
	if err != nil {
		return err
	}
	defer home.Close()
	g := &leg{Owner: v.lab.name + "/" + v.Name(), Mark: "msh:" + v.lab.name + "/" + v.Name()}
	if g.Home, err = v.parent.homeOf(home); err != nil {
		return err
	}
	if err := v.prepareLeg(s, w, home, g); err != nil {
		return err
	}
	if err := s.step("make the leg " + g.Name); err != nil {
		return err
	}
	index := v.lab.index()
	err = w.ns.AddVeth(netx.Veth{End: netx.End{Name: legPort, Index: index}, Up: true, Far: netx.End{Name: g.Name}, FarNS: home})
	if err != nil {
		return fmt.Errorf("make the leg %s: %w", g.Name, err)
	}
	far, err := home.Index(g.Name)
	if err != nil {
		return err
	}
	if err := home.SetUp(far, true); err != nil {
		return err
	}
	for _, f := range v.spec.families() {
		if err := v.route(w, home, g, f, index, far); err != nil {
			return err
		}
	}
	if err := w.ns.Masquerade(natTable, v.spec.Subnets, legPort); err != nil {
		return explainShape(err)
	}
	return v.openParent(s, home, g)
}

// prepareLeg takes a number for the leg, and writes down all that will be changed
// in the parent's network.
func (v *VNet) prepareLeg(s *stepper, w *wiring, home *netx.NS, g *leg) error {
	h := v.lab.host
	unlock, err := h.book.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	claims, err := h.book.Claims("leg")
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, c := range claims {
		used[c.Name] = true
	}
	// An interface of that name, if any, is not in this book: it is another's.
	for used[strconv.Itoa(g.Number)] || home.Has(legName(g.Number)) {
		g.Number++
	}
	if g.Number >= legs {
		return fmt.Errorf("%d vnets with nat are on this host: there are no addresses for more", g.Number)
	}
	g.Name = legName(g.Number)
	if g.Sysctls, err = h.forwarding(home, g.Home, v.spec.families()); err != nil {
		return explainShape(err)
	}
	number := ledger.Claim{Kind: "leg", Name: strconv.Itoa(g.Number), Owner: g.Owner}
	if err := s.step("claim leg " + number.Name); err != nil {
		return err
	}
	if err := w.ledger.Write("claim", number); err != nil {
		return err
	}
	if _, err := h.book.Take(number); err != nil {
		return err
	}
	if err := s.step("write the leg down"); err != nil {
		return err
	}
	if err := w.ledger.Write("leg", g); err != nil { // with what it claims below
		return err
	}
	for _, c := range g.Sysctls {
		if err := s.step("claim " + c.Path); err != nil {
			return err
		}
		if _, err := h.book.Take(g.forwardClaim(c)); err != nil {
			return err
		}
	}
	return nil
}

// forwarding lists what has to be set for a network to forward what comes back,
// and what other vnets have set there already: the last one to end sets it back
// to what the first one found. The caller has the book locked.
func (h *Host) forwarding(ns *netx.NS, at home, families []int) ([]netx.Sysctl, error) {
	legs, err := h.book.Claims("leg")
	if err != nil {
		return nil, err
	}
	var all []netx.Sysctl
	for _, f := range families {
		devices, err := ns.RoutedDevices(f)
		if err != nil {
			return nil, err
		}
		devices = slices.DeleteFunc(devices, func(dev string) bool { // each sees to its own
			return slices.ContainsFunc(legs, func(c ledger.Claim) bool { return dev == "msh-nat"+c.Name })
		})
		list, err := ns.Forwarding(f, devices...)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	claims, err := h.book.Claims("forward")
	if err != nil {
		return nil, err
	}
	for _, c := range claims {
		var s netx.Sysctl
		if err := json.Unmarshal([]byte(c.Note), &s); err != nil {
			return nil, err
		}
		if strings.HasPrefix(c.Name, forwardPrefix(at, s.Path)) && !slices.ContainsFunc(all, func(o netx.Sysctl) bool { return o.Path == s.Path }) {
			all = append(all, s)
		}
	}
	slices.SortStableFunc(all, func(a, b netx.Sysctl) int { return forwardRank(a.Path) - forwardRank(b.Path) })
	return all, nil
}

// forwardRank is the order to set them in, and to set them back in reverse: see
// netx.NS.Forwarding.
func forwardRank(path string) int {
	switch {
	case strings.HasSuffix(path, "/accept_ra"):
		return 0
	case strings.HasSuffix(path, "/all/forwarding"):
		return 2
	}
	return 1
}

func (g *leg) forwardClaim(s netx.Sysctl) ledger.Claim {
	note, _ := json.Marshal(s)
	return ledger.Claim{Kind: "forward", Name: forwardPrefix(g.Home, s.Path) + strings.ReplaceAll(g.Owner, "/", ":"), Owner: g.Owner, Note: string(note)}
}

func forwardPrefix(at home, path string) string {
	return fmt.Sprintf("%d.%s.", at.ID, strings.ReplaceAll(path, "/", ":"))
}

// route gives the switch its addresses: the gateway's, and its end of the leg.
func (v *VNet) route(w *wiring, home *netx.NS, g *leg, family, index, far int) error {
	v6 := family == family6
	parent, sw := g.addresses(v6)
	if err := w.ns.RouterOn(v6, "switch", legPort); err != nil {
		return explainShape(err)
	}
	for _, p := range v.spec.Subnets {
		if p.Addr().Is6() == v6 {
			if err := w.ns.AddAddress(netx.BridgeIndex, netip.PrefixFrom(p.Addr().Next(), p.Bits())); err != nil {
				return fmt.Errorf("give the gateway its address: %w", err)
			}
		}
	}
	if v6 {
		// The parent may have IPv6 off for what comes new.
		if err := home.Do(func() error { return netx.WriteSysctl("net/ipv6/conf/"+g.Name+"/disable_ipv6", "0") }); err != nil {
			return explainShape(err)
		}
	}
	if err := errors.Join(home.AddAddress(far, parent), w.ns.AddAddress(index, sw)); err != nil {
		return fmt.Errorf("give the leg its addresses: %w", err)
	}
	if err := w.ns.AddDefaultRoute(index, parent.Addr()); err != nil {
		return fmt.Errorf("route the switch out: %w", err)
	}
	return nil
}

// openParent lets packets of the leg through the parent's network.
func (v *VNet) openParent(s *stepper, home *netx.NS, g *leg) error {
	var from []netip.Prefix
	for _, f := range v.spec.families() {
		_, sw := g.addresses(f == family6)
		from = append(from, netip.PrefixFrom(sw.Addr(), sw.Addr().BitLen()))
		own, err := home.Forwarding(f, g.Name) // goes with the leg
		if err == nil {
			err = home.SetSysctls(own)
		}
		if err != nil {
			return explainShape(err)
		}
	}
	if err := s.step("forward packets"); err != nil {
		return err
	}
	if err := home.SetSysctls(g.Sysctls); err != nil {
		return err
	}
	if err := s.step("translate addresses"); err != nil {
		return err
	}
	if err := home.Masquerade(g.table(), from, ""); err != nil {
		return explainShape(err)
	}
	if err := s.step("open other firewalls"); err != nil {
		return err
	}
	return home.OpenForward(g.Mark, g.Name)
}

func legName(number int) string { return fmt.Sprintf("msh-nat%d", number) }

func (g *leg) table() string { return g.Name }

// removeLeg takes back what the vnet has in its parent's network.
func (h *Host) removeLeg(g leg) error {
	home, err := h.universe(g.Home)
	if err != nil {
		return err
	}
	var errs []error
	if home != nil {
		defer home.Close()
		errs = append(errs, home.CloseForward(g.Mark), home.RemoveTable("inet", g.table()))
		if index, err := home.Index(g.Name); err == nil {
			errs = append(errs, home.Delete(index)) // not some time after the other end has gone
		}
	}
	unlock, err := h.book.Lock()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer unlock()
	claims, err := h.book.Claims("forward")
	errs = append(errs, err)
	for _, s := range slices.Backward(g.Sysctls) {
		mine, others := g.forwardClaim(s), false
		for _, c := range claims {
			others = others || strings.HasPrefix(c.Name, forwardPrefix(g.Home, s.Path)) && c.Owner != g.Owner
		}
		// A claim that was never made, or is given back already, has nothing to set back.
		held := slices.ContainsFunc(claims, func(c ledger.Claim) bool { return c.Name == mine.Name })
		if held && !others && home != nil {
			errs = append(errs, home.ResetSysctls([]netx.Sysctl{s}))
		}
		// Now, under the lock, or two that end at once would each see the other's.
		errs = append(errs, h.book.Release(mine))
	}
	return errors.Join(errs...)
}
