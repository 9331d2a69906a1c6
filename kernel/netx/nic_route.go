package netx

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// NICRoute is a route that an interface has taken along. The kernel's own message
// is kept and sent again, as `ip route save` and `restore` do: so nothing of a
// route is lost that the kernel can tell.
type NICRoute struct {
	Text    string // as a person would write it
	Message []byte // of RTM_NEWROUTE: struct rtmsg and attributes, in this host's byte order
	// It uses other interfaces too, and is put in the place of what is left of it.
	Shared bool `json:",omitempty"`
}

// native is the byte order of netlink(7).
var native = binary.NativeEndian

const (
	rtaVia      = 18 // RTA_VIA
	rtaNexthop  = 30 // RTA_NH_ID
	nexthopKeep = unix.RTNH_F_ONLINK | unix.RTNH_F_PERVASIVE
	userHZ      = 100 // what clock_t counts in, on every architecture
	offFlags    = 8   // of rtm_flags in struct rtmsg
	sizeofRtMsg = unix.SizeofRtMsg
)

// route is a route as the kernel lists it.
type route struct {
	header  unix.RtMsg
	message []byte
	attrs   []syscall.NetlinkRouteAttr
	table   int
	out     []int // the interfaces it goes out by
	source  netip.Addr
}

// routes lists all routes of a family, in all tables.
func (n *NS) routes(family int) ([]route, error) {
	all, err := n.dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family)}})
	if err != nil {
		return nil, err
	}
	var list []route
	for _, b := range all {
		m := nl.DeserializeRtMsg(b)
		if m.Flags&unix.RTM_F_CLONED != 0 || int(m.Family) != family {
			continue
		}
		r := route{header: m.RtMsg, message: b, table: int(m.Table)}
		if r.attrs, err = nl.ParseRouteAttr(b[sizeofRtMsg:]); err != nil {
			return nil, err
		}
		for _, a := range r.attrs {
			switch a.Attr.Type &^ unix.NLA_F_NESTED {
			case unix.RTA_TABLE:
				r.table = int(native.Uint32(a.Value))
			case unix.RTA_OIF:
				r.out = append(r.out, int(native.Uint32(a.Value)))
			case unix.RTA_MULTIPATH:
				for leg := range legs(a.Value) {
					r.out = append(r.out, int(native.Uint32(leg[4:])))
				}
			case unix.RTA_PREFSRC:
				r.source, _ = netip.AddrFromSlice(a.Value)
			}
		}
		list = append(list, r)
	}
	return list, nil
}

// legs yields each struct rtnexthop of RTA_MULTIPATH, with its attributes.
func legs(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) >= unix.SizeofRtNexthop {
			n := int(native.Uint16(b))
			if n < unix.SizeofRtNexthop || n > len(b) || !yield(b[:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// saveRoutes lists the routes that go when the interface goes: those out by it,
// and, with IPv4, those from its addresses (fib_sync_down_addr in the kernel).
func (n *NS) saveRoutes(nic *NIC) ([]NICRoute, error) {
	var saved []NICRoute
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := n.routes(family)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			if r.table == unix.RT_TABLE_LOCAL && r.header.Protocol == unix.RTPROT_KERNEL {
				continue // it comes with an address
			}
			// The kernel's others are kept: somebody may have written them in its name.
			by := slices.Contains(r.out, nic.Index)
			other := slices.ContainsFunc(r.out, func(i int) bool { return i != nic.Index })
			from := family == unix.AF_INET && slices.ContainsFunc(nic.Addresses, func(a NICAddress) bool { return a.Prefix.Addr() == r.source })
			if !by && !from {
				continue
			}
			if family == unix.AF_INET6 {
				other = false // its legs are routes of their own, which find together again
			}
			saved = append(saved, NICRoute{Text: r.text(), Message: r.message, Shared: other})
		}
	}
	return saved, nil
}

// text tells the route in the words of ip-route(8).
func (r route) text() string {
	dst, words := "default", []string{}
	for _, a := range r.attrs {
		addr, _ := netip.AddrFromSlice(a.Value)
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.RTA_DST:
			dst = netip.PrefixFrom(addr, int(r.header.Dst_len)).String()
		case unix.RTA_GATEWAY:
			words = append(words, "via "+addr.String())
		case rtaVia:
			addr, _ = netip.AddrFromSlice(a.Value[2:])
			words = append(words, "via "+addr.String())
		case unix.RTA_PREFSRC:
			words = append(words, "src "+addr.String())
		case unix.RTA_PRIORITY:
			words = append(words, fmt.Sprint("metric ", native.Uint32(a.Value)))
		case unix.RTA_MULTIPATH:
			words = append(words, fmt.Sprintf("by %d ways", len(r.out)))
		}
	}
	if r.table != unix.RT_TABLE_MAIN {
		words = append(words, fmt.Sprint("table ", r.table))
	}
	return strings.Join(append([]string{dst}, words...), " ")
}

// request makes the message that puts the route back; old and index are the
// interface's numbers, then and now, away the seconds between. It is nil for a
// route whose time is over, or that of the address that it is from.
func (r NICRoute) request(old, index int, away uint32, over map[netip.Addr]bool) (*nl.NetlinkRequest, error) {
	if len(r.Message) < sizeofRtMsg {
		return nil, fmt.Errorf("got %d bytes, want struct rtmsg", len(r.Message))
	}
	attrs, err := nl.ParseRouteAttr(r.Message[sizeofRtMsg:])
	if err != nil {
		return nil, err
	}
	head := slices.Clone(r.Message[:sizeofRtMsg])
	// The kernel tells the state of the link here as well, and refuses to be told.
	native.PutUint32(head[offFlags:], native.Uint32(head[offFlags:])&nexthopKeep)
	six := head[0] == unix.AF_INET6

	flags := unix.NLM_F_CREATE | unix.NLM_F_APPEND
	if r.Shared {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, flags|unix.NLM_F_ACK)
	req.AddRawData(head)
	add := func(kind uint16, b []byte) { req.AddRawData(nl.NewRtAttr(int(kind), b).Serialize()) }
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.RTA_OIF:
			add(a.Attr.Type, nl.Uint32Attr(uint32(renumber(int(native.Uint32(a.Value)), old, index))))
		case unix.RTA_MULTIPATH:
			add(a.Attr.Type, movedLegs(a.Value, old, index, six))
		case unix.RTA_CACHEINFO:
			if expires := native.Uint32(a.Value[8:]) / userHZ; expires != 0 && six {
				if expires <= away {
					return nil, nil
				}
				add(unix.RTA_EXPIRES, nl.Uint32Attr(expires-away))
			}
		case unix.RTA_PREFSRC:
			if source, _ := netip.AddrFromSlice(a.Value); over[source] {
				return nil, nil
			}
			add(a.Attr.Type, a.Value)
		case rtaNexthop: // the object is gone; the route tells as well what it said
		default:
			add(a.Attr.Type, a.Value)
		}
	}
	return req, nil
}

func renumber(i, old, index int) int {
	if i == old {
		return index
	}
	return i
}

// movedLegs are the legs of a route with the interface's new number; of IPv6 only
// those that it had itself.
func movedLegs(b []byte, old, index int, six bool) []byte {
	var out []byte
	for leg := range legs(b) {
		i := int(native.Uint32(leg[4:]))
		if six && i != old {
			continue
		}
		leg = slices.Clone(leg)
		leg[2] &= nexthopKeep
		native.PutUint32(leg[4:], uint32(renumber(i, old, index)))
		out = append(out, leg...)
		out = append(out, make([]byte, -len(leg)&3)...)
	}
	return out
}
