package netx

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Route is a way to a network.
type Route struct {
	Dst         netip.Prefix // of length 0: what no other route is for
	Via         netip.Addr   // the gateway, or none
	Index       int          // of the interface; 0 lets the kernel find it by the gateway
	Metric      uint32       // among those to the same network, the lowest is taken; 0 is the kernel's own choice
	Src         netip.Addr   // the source of what has none yet
	Table       uint32
	Unreachable bool  // there is no way
	Protocol    uint8 // RTPROT_*: who has made it
}

// Unreachable is the route of a table that ends the search: the last there is.
func Unreachable(table uint32, six bool) Route {
	r := Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Metric: LastMetric, Table: table, Unreachable: true, Protocol: unix.RTPROT_KERNEL}
	if six {
		r.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return r
}

// LastMetric is the metric of Unreachable.
const LastMetric = ^uint32(0)

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func tableRequest(kind, flags int, m unix.RtMsg, table uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	if table < 256 {
		m.Table = uint8(table)
	}
	req.AddData(&nl.RtMsg{RtMsg: m})
	req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(table)))
	return req
}

func (r Route) request(kind, flags int) *nl.NetlinkRequest {
	m := unix.RtMsg{Family: familyOf(r.Dst.Addr()), Dst_len: uint8(r.Dst.Bits()), Protocol: r.Protocol, Type: unix.RTN_UNICAST}
	switch {
	case r.Unreachable:
		m.Type = unix.RTN_UNREACHABLE
	case r.Dst.Addr().Is4() && !r.Via.IsValid():
		m.Scope = unix.RT_SCOPE_LINK
	}
	if kind == unix.RTM_DELROUTE {
		m.Scope = unix.RT_SCOPE_NOWHERE // any
	}
	req := tableRequest(kind, flags|unix.NLM_F_ACK, m, r.Table)
	if r.Dst.Bits() > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()))
	}
	if r.Metric != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(r.Metric)))
	}
	if r.Via.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Via.AsSlice()))
	}
	if r.Index != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(r.Index))))
	}
	if r.Src.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, r.Src.AsSlice()))
	}
	return req
}

// AddRoute adds a route. One to the same network with the same metric is EEXIST.
func (n *NS) AddRoute(r Route) error {
	return n.execute(r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL))
}

// PutRoute adds a route in the place of one to the same network with the same metric.
func (n *NS) PutRoute(r Route) error {
	return n.execute(r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE))
}

// RemoveRoute removes one. That it is not there is no error.
func (n *NS) RemoveRoute(r Route) error {
	err := n.execute(r.request(unix.RTM_DELROUTE, 0))
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// tableRoutes lists the routes of one table; the kernel picks them, where there
// may be a million of others (NETLINK_GET_STRICT_CHK, since Linux 4.20).
func (n *NS) tableRoutes(family int, table uint32) ([]Route, error) {
	s, err := openNetlink(n)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return nil, fmt.Errorf("ask for one table: %w", err)
	}
	var all [][]byte
	for range 20 {
		req := tableRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.RtMsg{Family: uint8(family)}, table)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		if all, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) { // no such table, no such family
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list table %d: %w", table, err)
	}
	var list []Route
	for _, b := range all {
		m := nl.DeserializeRtMsg(b)
		if int(m.Family) != family {
			continue // an empty answer of another family's, for a table it does not have
		}
		attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
		if err != nil {
			return nil, err
		}
		r := Route{Table: table, Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Unreachable: m.Type == unix.RTN_UNREACHABLE, Protocol: m.Protocol}
		if family == unix.AF_INET6 {
			r.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		for _, a := range attrs {
			addr, _ := netip.AddrFromSlice(a.Value)
			switch a.Attr.Type {
			case unix.RTA_DST:
				r.Dst = netip.PrefixFrom(addr, int(m.Dst_len))
			case unix.RTA_GATEWAY:
				r.Via = addr
			case unix.RTA_PREFSRC:
				r.Src = addr
			case unix.RTA_OIF:
				r.Index = int(native.Uint32(a.Value))
			case unix.RTA_PRIORITY:
				r.Metric = native.Uint32(a.Value)
			}
		}
		list = append(list, r)
	}
	return list, nil
}

// TableRoutes lists the routes of a table, IPv4 first.
func (n *NS) TableRoutes(table uint32) ([]Route, error) {
	four, err := n.tableRoutes(unix.AF_INET, table)
	if err != nil {
		return nil, err
	}
	six, err := n.tableRoutes(unix.AF_INET6, table)
	return append(four, six...), err
}

// ClearTable removes every route of a table, whoever has put it there.
func (n *NS) ClearTable(table uint32) error {
	for range 20 { // somebody may be adding some
		all, err := n.TableRoutes(table)
		if err != nil || len(all) == 0 {
			return err
		}
		for _, r := range all {
			req := tableRequest(unix.RTM_DELROUTE, unix.NLM_F_ACK, unix.RtMsg{Family: familyOf(r.Dst.Addr()), Dst_len: uint8(r.Dst.Bits()), Scope: unix.RT_SCOPE_NOWHERE}, table)
			if r.Dst.Bits() > 0 {
				req.AddData(nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()))
			}
			if r.Metric != 0 {
				req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(r.Metric)))
			}
			if err := n.execute(req); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove the route to %s from table %d: %w", r.Dst, table, err)
			}
		}
	}
	return fmt.Errorf("clear table %d: its routes keep coming back", table)
}

// Held is an address of an interface's.
type Held struct {
	Prefix netip.Prefix // with its network
	Device string
}

// Addresses lists the addresses of all interfaces, IPv4 first.
func (n *NS) Addresses() ([]Held, error) {
	names, err := n.Devices()
	if err != nil {
		return nil, err
	}
	var list []Held
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := n.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(family))
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the addresses: %w", err)
		}
		for _, b := range all {
			m := nl.DeserializeIfAddrmsg(b)
			attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfAddrmsg:])
			if err != nil {
				return nil, err
			}
			if int(m.Family) != family {
				continue
			}
			var a netip.Addr
			for _, attr := range attrs {
				switch attr.Attr.Type {
				case unix.IFA_LOCAL: // which, where there is a peer, is the other one
					a, _ = netip.AddrFromSlice(attr.Value)
				case unix.IFA_ADDRESS:
					if !a.IsValid() {
						a, _ = netip.AddrFromSlice(attr.Value)
					}
				}
			}
			list = append(list, Held{netip.PrefixFrom(a, int(m.Prefixlen)), names[int(m.Index)].Name})
		}
	}
	return list, nil
}

// Device is an interface.
type Device struct {
	Name string
	Up   bool
}

// Devices lists the interfaces by their index.
func (n *NS) Devices() (map[int]Device, error) {
	h, err := n.Route()
	if err != nil {
		return nil, err
	}
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	all := map[int]Device{}
	for _, l := range links {
		a := l.Attrs()
		all[a.Index] = Device{a.Name, a.Flags&unix.IFF_UP != 0}
	}
	return all, nil
}
