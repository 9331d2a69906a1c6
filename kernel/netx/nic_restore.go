package netx

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// bringHome moves the interface home, if it is not there, and gives it its name
// back. renamed tells that it could not have that.
func (nic *NIC) bringHome(at *place, home *NS) (index int, renamed, err error) {
	there, err := at.ns.ID()
	if err != nil {
		return 0, nil, err
	}
	here, err := home.ID()
	if err != nil {
		return 0, nil, err
	}
	if there == here {
		renamed, err = nic.rename(home, at.index)
		return at.index, renamed, err
	}
	for range 10 {
		name, renamed, err := nic.freeName(home, 0)
		if err != nil {
			return 0, nil, err
		}
		// With its old number, which no other interface has got, as numbers count up.
		err = at.ns.move(at.index, home, name, nic.Index)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) { // taken after all; or Linux before 5.13
			err = at.ns.move(at.index, home, name, 0)
		}
		if err == nil {
			index, err := home.Index(name)
			return index, renamed, err
		}
		if !errors.Is(err, unix.EEXIST) {
			return 0, nil, fmt.Errorf("move it home: %w", err)
		}
		// Somebody was quicker. If it has moved before it was to be renamed, it is
		// at home by now, under the name that it had there.
		if again, _, err := nic.look(nil, home, nil); err == nil && again != nil {
			renamed, err := nic.rename(home, again.index)
			return again.index, renamed, err
		}
	}
	return 0, nil, fmt.Errorf("move it home: %w", unix.EEXIST)
}

// rename gives the interface its name in the namespace that it is in already.
func (nic *NIC) rename(home *NS, index int) (renamed, err error) {
	h, err := home.Route()
	if err != nil {
		return nil, err
	}
	l, err := h.LinkByIndex(index)
	if err != nil {
		return nil, err
	}
	if l.Attrs().Name == nic.Name {
		return nil, nil
	}
	for range 10 {
		name, renamed, err := nic.freeName(home, index)
		if err != nil {
			return nil, err
		}
		if name == l.Attrs().Name {
			return renamed, nil
		}
		if err := home.SetUp(index, false); err != nil { // before Linux 6.2 it must be
			return nil, fmt.Errorf("take it down: %w", err)
		}
		// The kernel would number the labels of those that it has (inetdev_changename).
		for _, a := range nic.Addresses {
			home.deleteAddress(index, a)
		}
		if err := h.LinkSetName(l, name); !errors.Is(err, unix.EEXIST) {
			return renamed, err
		}
	}
	return nil, fmt.Errorf("name it %s: %w", nic.Name, unix.EEXIST)
}

// freeName is the interface's own name, or where another has got that meanwhile
// one made from it. What the interface with the number own has is free.
func (nic *NIC) freeName(home *NS, own int) (name string, renamed, err error) {
	h, err := home.Route()
	if err != nil {
		return "", nil, err
	}
	for i := range 1000 {
		name = nic.Name
		if i > 0 {
			suffix := fmt.Sprintf("-%d", i)
			name = nic.Name[:min(len(nic.Name), unix.IFNAMSIZ-1-len(suffix))] + suffix
			renamed = fmt.Errorf("another interface is called %s by now: it came back as %s (rename it with ip link set %s name …)", nic.Name, name, name)
		}
		l, err := h.LinkByName(name)
		switch {
		case errors.As(err, new(netlink.LinkNotFoundError)):
			return name, renamed, nil
		case err != nil:
			return "", nil, err
		case l.Attrs().Index == own:
			return name, renamed, nil
		}
	}
	return "", nil, fmt.Errorf("no name like %s is free", nic.Name)
}

// restore makes the interface what it was. What is right already is let be: it
// may have been brought half-way before. The mark goes last, and only once all is
// well, renamed included: so what went wrong can be made good by another call.
func (nic *NIC) restore(home *NS, index int, renamed error) error {
	h, err := home.Route()
	if err != nil {
		return err
	}
	l, err := h.LinkByIndex(index)
	if err != nil {
		return err
	}
	var errs []error
	if renamed != nil {
		errs = append(errs, renamed)
	}
	step := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}

	a := l.Attrs()
	mac := a.HardwareAddr.String() != nic.MAC
	if up := a.RawFlags&unix.IFF_UP != 0; up && (mac || !nic.Up) {
		step("take it down", home.SetUp(index, false))
	}
	for _, name := range nic.AltNames {
		if !slices.Contains(a.AltNames, name) {
			step("give it the other name "+name, h.LinkAddAltName(l, name))
		}
	}
	if mac {
		hw, err := net.ParseMAC(nic.MAC)
		if err == nil {
			err = h.LinkSetHardwareAddr(l, hw)
		}
		step("give it the MAC "+nic.MAC, err)
	}
	if a.MTU != nic.MTU {
		step(fmt.Sprint("give it the MTU ", nic.MTU), h.LinkSetMTU(l, nic.MTU))
	}
	if a.TxQLen != nic.TxQueue {
		step(fmt.Sprint("give it the queue length ", nic.TxQueue), h.LinkSetTxQLen(l, nic.TxQueue))
	}
	if a.Group != nic.Group {
		step(fmt.Sprint("put it into group ", nic.Group), h.LinkSetGroup(l, int(nic.Group)))
	}
	if a.RawFlags&nicFlags != nic.Flags {
		step("set its flags", home.setFlags(index, nic.Flags, nicFlags))
	}
	step("set its parameters", home.Do(func() error { return restoreSysctls(a.Name, nic.Sysctls) }))

	away := uint32(max(0, bootTime()-nic.Saved))
	address := func(a NICAddress) { step("add "+a.Prefix.String(), home.restoreAddress(index, a, away)) }
	// Of IPv4 the kernel lists the oldest first and uses it; of IPv6 the youngest.
	// Link-local ones go before the interface is up, so that the kernel finds its own
	// and neither makes another nor asks for duplicates of it.
	for _, a := range slices.Backward(nic.Addresses) {
		if a.Prefix.Addr().Is6() && a.Prefix.Addr().IsLinkLocalUnicast() {
			address(a)
		}
	}
	if nic.Up {
		step("take it up", home.SetUp(index, true))
	}
	for _, a := range nic.Addresses {
		if a.Prefix.Addr().Is4() {
			address(a)
		}
	}
	for _, a := range slices.Backward(nic.Addresses) {
		if a.Prefix.Addr().Is6() {
			address(a)
		}
	}
	for _, e := range nic.Neighbours {
		mac, _ := net.ParseMAC(e.MAC) // a proxy's has none
		step("enter the neighbour "+e.IP.String(),
			h.NeighSet(&netlink.Neigh{LinkIndex: index, IP: e.IP.AsSlice(), HardwareAddr: mac, Flags: e.Flags, State: e.State}))
	}
	errs = append(errs, nic.restoreRoutes(home, index, away)...)
	if a.Alias != nic.Alias && len(errs) == 0 {
		step("give it its alias back", h.LinkSetAlias(l, nic.Alias))
	}
	return errors.Join(errs...)
}

// setFlags sets those of an interface's flags (IFF_*) that are in mask.
func (n *NS) setFlags(index int, flags, mask uint32) error {
	m := infomsg(index, false)
	m.Flags, m.Change = flags, mask
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.AddData(m)
	return n.execute(req)
}

// restoreRoutes puts the routes back. One may need another to reach its gateway,
// so those that fail are tried again for as long as any succeeds.
func (nic *NIC) restoreRoutes(home *NS, index int, away uint32) []error {
	over := map[netip.Addr]bool{}
	for _, a := range nic.Addresses {
		over[a.Prefix.Addr()] = a.Valid <= away
	}
	todo := nic.Routes
	for {
		var failed []NICRoute
		var errs []error
		for _, r := range todo {
			req, err := r.request(nic.Index, index, away, over)
			if err == nil && req != nil {
				err = home.execute(req)
			}
			if err != nil && !errors.Is(err, unix.EEXIST) {
				failed = append(failed, r)
				errs = append(errs, fmt.Errorf("add the route %s: %w", r.Text, err))
			}
		}
		if len(failed) == 0 || len(failed) == len(todo) {
			return errs
		}
		todo = failed
	}
}

// Restore makes the interface of that name in n what it was when it was saved: another
// one, made anew. What is right already is let be.
func (nic *NIC) Restore(n *NS) error {
	l, err := n.link(nic.Name)
	if err != nil {
		return err
	}
	return nic.restore(n, l.Attrs().Index, nil)
}
