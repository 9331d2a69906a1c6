package netx

import (
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// NICAddress is an address of an interface, as rtnetlink(7) has it.
type NICAddress struct {
	Prefix    netip.Prefix
	Peer      netip.Addr `json:",omitzero"` // of a point-to-point address
	Broadcast netip.Addr `json:",omitzero"`
	Label     string     `json:",omitempty"` // where it is not the interface's name
	Scope     uint8      `json:",omitempty"`
	Flags     uint32     `json:",omitempty"` // IFA_F_*, those that can be set
	Metric    uint32     `json:",omitempty"` // of the route that comes with it
	Proto     uint8      `json:",omitempty"` // who made it, see if_addr.h
	Valid     uint32     // seconds; forever is no end
	Preferred uint32     // seconds
}

const forever = ^uint32(0)

const (
	ifaProto = 11 // IFA_PROTO, since Linux 5.18
	// What a caller may set. The others are the kernel's own bookkeeping.
	ifaFlags = unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN | unix.IFA_F_NODAD
)

func openNetlink(n *NS) (*nl.NetlinkSocket, error) {
	return n.socket()
}

// saveAddresses lists the addresses of an interface. Temporary ones (RFC 8981) are
// left out: the kernel alone can make them, and will.
func (n *NS) saveAddresses(nic *NIC) ([]NICAddress, error) {
	all, err := n.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC))
	if err != nil {
		return nil, err
	}
	var saved []NICAddress
	for _, b := range all {
		m := nl.DeserializeIfAddrmsg(b)
		if int(m.Index) != nic.Index || m.Family != unix.AF_INET && m.Family != unix.AF_INET6 {
			continue
		}
		attrs, err := nl.ParseRouteAttr(b[m.Len():])
		if err != nil {
			return nil, err
		}
		a := NICAddress{Scope: m.Scope, Flags: uint32(m.IfAddrmsg.Flags), Valid: forever, Preferred: forever}
		var local, address netip.Addr
		for _, attr := range attrs {
			v := attr.Value
			switch attr.Attr.Type {
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(v)
			case unix.IFA_ADDRESS:
				address, _ = netip.AddrFromSlice(v)
			case unix.IFA_BROADCAST:
				a.Broadcast, _ = netip.AddrFromSlice(v)
			case unix.IFA_LABEL:
				a.Label = strings.TrimRight(string(v), "\x00")
			case unix.IFA_FLAGS:
				a.Flags = native.Uint32(v)
			case unix.IFA_RT_PRIORITY:
				a.Metric = native.Uint32(v)
			case ifaProto:
				a.Proto = v[0]
			case unix.IFA_CACHEINFO:
				a.Preferred, a.Valid = native.Uint32(v), native.Uint32(v[4:])
			}
		}
		if !local.IsValid() { // IPv6 tells it only where there is a peer
			local = address
		}
		if address != local {
			a.Peer = address
		}
		if a.Label == nic.Name {
			a.Label = ""
		}
		if m.Family == unix.AF_INET6 && a.Flags&unix.IFA_F_TEMPORARY != 0 {
			continue
		}
		a.Flags &= ifaFlags
		a.Prefix = netip.PrefixFrom(local, int(m.Prefixlen))
		saved = append(saved, a)
	}
	return saved, nil
}

// request makes the message that adds the address with these flags, or changes
// the one that is there. away is how long the interface has been away, in seconds;
// it is nil for an address whose time is over.
func (a NICAddress) request(index int, away uint32, flags uint32) *nl.NetlinkRequest {
	family := unix.AF_INET
	if a.Prefix.Addr().Is6() {
		family = unix.AF_INET6
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	m := nl.NewIfAddrmsg(family)
	m.Index, m.Prefixlen, m.Scope = uint32(index), uint8(a.Prefix.Bits()), a.Scope
	req.AddData(m)
	add := func(kind int, b []byte) { req.AddData(nl.NewRtAttr(kind, b)) }
	local, peer := a.Prefix.Addr().AsSlice(), a.Prefix.Addr().AsSlice()
	if a.Peer.IsValid() {
		peer = a.Peer.AsSlice()
	}
	add(unix.IFA_LOCAL, local)
	add(unix.IFA_ADDRESS, peer)
	if a.Broadcast.IsValid() {
		add(unix.IFA_BROADCAST, a.Broadcast.AsSlice())
	}
	if a.Label != "" {
		add(unix.IFA_LABEL, nl.ZeroTerminated(a.Label))
	}
	add(unix.IFA_FLAGS, nl.Uint32Attr(flags))
	if a.Metric != 0 {
		add(unix.IFA_RT_PRIORITY, nl.Uint32Attr(a.Metric))
	}
	if a.Proto != 0 {
		add(ifaProto, nl.Uint8Attr(a.Proto))
	}
	valid, preferred := a.Valid, a.Preferred
	if valid != forever {
		if valid <= away {
			return nil
		}
		valid -= away
	}
	if preferred != forever {
		preferred -= min(preferred, away)
	}
	if valid != forever || preferred != forever {
		info := make([]byte, unix.SizeofIfaCacheinfo)
		native.PutUint32(info, preferred)
		native.PutUint32(info[4:], valid)
		add(unix.IFA_CACHEINFO, info)
	}
	return req
}

// restoreAddress puts an address back, ready for use at once: it was in use here
// before, so nobody is asked for duplicates (RFC 4862, 5.4). The second message
// takes the flag that says so off again.
func (n *NS) restoreAddress(index int, a NICAddress, away uint32) error {
	first := a.Flags
	if a.Prefix.Addr().Is6() {
		first |= unix.IFA_F_NODAD
	}
	req := a.request(index, away, first)
	if req == nil {
		return nil
	}
	if err := n.execute(req); err != nil || first == a.Flags {
		return err
	}
	return n.execute(a.request(index, away, a.Flags))
}

// deleteAddress takes an address off, if it is there.
func (n *NS) deleteAddress(index int, a NICAddress) {
	if req := a.request(index, 0, a.Flags); req != nil {
		req.Type, req.Flags = unix.RTM_DELADDR, unix.NLM_F_REQUEST|unix.NLM_F_ACK
		n.execute(req)
	}
}

// NICNeighbour is a neighbour that somebody has entered by hand.
type NICNeighbour struct {
	IP    netip.Addr
	MAC   string `json:",omitempty"`
	Flags int    `json:",omitempty"` // NTF_*
	State int
}

// saveNeighbours lists the permanent neighbours of an interface, and those it
// answers for (NTF_PROXY).
func saveNeighbours(h *netlink.Handle, index int) ([]NICNeighbour, error) {
	all, err := h.NeighList(index, 0)
	if err != nil {
		return nil, err
	}
	proxied, err := h.NeighProxyList(index, 0)
	if err != nil {
		return nil, err
	}
	var saved []NICNeighbour
	for _, e := range append(all, proxied...) {
		ip, ok := netip.AddrFromSlice(e.IP)
		if !ok || e.State&netlink.NUD_PERMANENT == 0 && e.Flags&netlink.NTF_PROXY == 0 {
			continue
		}
		saved = append(saved, NICNeighbour{IP: ip.Unmap(), MAC: e.HardwareAddr.String(), Flags: e.Flags, State: e.State})
	}
	return saved, nil
}
