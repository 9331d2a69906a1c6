package netx

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// MaxPorts is how many ports a Linux bridge has (BR_MAX_PORTS, less the one number
// that is none).
const MaxPorts = 1023

// BridgeIndex is the index of the bridge in a namespace made by MakeSwitch.
const BridgeIndex = 2

// MakeSwitch makes a namespace that holds a bridge of that name, up. It does no
// IPv6 of its own, which with many ports is most of the traffic, and its frames
// do not go through the packet filter.
func MakeSwitch(name string, mtu int) (*NS, error) {
	ns, err := MakePanel()
	if err != nil {
		return nil, err
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(infomsg(BridgeIndex, true))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if mtu > 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	// A plain switch floods multicast, as unmanaged ones do.
	data.AddRtAttr(nl.IFLA_BR_MCAST_SNOOPING, nl.Uint8Attr(0))
	req.AddData(info)
	if err := ns.execute(req); err != nil {
		ns.Close()
		return nil, fmt.Errorf("make the bridge %s: %w", name, err)
	}
	return ns, nil
}

// MakePanel makes a namespace for ports alone.
func MakePanel() (*NS, error) {
	return Make(func() error {
		// Before there are any; absent where IPv6 or br_netfilter are not there.
		for _, s := range []struct{ key, value string }{
			{"net.ipv6.conf.all.disable_ipv6", "1"},
			{"net.bridge.bridge-nf-call-iptables", "0"},
			{"net.bridge.bridge-nf-call-ip6tables", "0"},
			{"net.bridge.bridge-nf-call-arptables", "0"},
		} {
			if err := WriteSysctl(s.key, s.value); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		return nil
	})
}

func infomsg(index int, up bool) *nl.IfInfomsg {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	if up {
		m.Flags, m.Change = unix.IFF_UP, unix.IFF_UP
	}
	return m
}

// Veth is a cable of which both ends are made where they belong.
type Veth struct {
	End
	Master int  // index of the bridge that the near end is a port of, 0 for none
	Up     bool // the near end; the far one can only be taken up once it is made
	Far    End
	FarNS  *NS
}

// End is one end of it.
type End struct {
	Name  string
	Index int // 0 lets the kernel choose
	MAC   net.HardwareAddr
	MTU   int
}

func (e End) attrs(add func(int, []byte) *nl.RtAttr) {
	add(unix.IFLA_IFNAME, nl.ZeroTerminated(e.Name))
	if e.MTU > 0 {
		add(unix.IFLA_MTU, nl.Uint32Attr(uint32(e.MTU)))
	}
	if e.MAC != nil {
		add(unix.IFLA_ADDRESS, e.MAC)
	}
}

// AddVeth makes it, in one message: the near end in n, a port of its bridge where
// there is one, the far end in its own namespace. To move an end there later
// would cost a grace period of RCU.
func (n *NS) AddVeth(v Veth) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(infomsg(v.Index, v.Up))
	v.attrs(func(kind int, b []byte) *nl.RtAttr { a := nl.NewRtAttr(kind, b); req.AddData(a); return a })
	if v.Master != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.Master))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC).Index = int32(v.Far.Index)
	v.Far.attrs(peer.AddRtAttr)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.FarNS.fd)))
	req.AddData(info)
	return n.execute(req)
}

// Index is the index of an interface.
func (n *NS) Index(name string) (int, error) {
	h, err := n.Route()
	if err != nil {
		return 0, err
	}
	l, err := h.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}

// Enslave makes an interface a port of a bridge.
func (n *NS) Enslave(index, bridge int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.AddData(infomsg(index, false))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	return n.execute(req)
}

// SetUp takes an interface up or down.
func (n *NS) SetUp(index int, up bool) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	m := infomsg(index, up)
	m.Change = unix.IFF_UP
	req.AddData(m)
	return n.execute(req)
}

// Delete deletes an interface. One that is not there is no error.
func (n *NS) Delete(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(infomsg(index, false))
	if err := n.execute(req); err != nil && err != unix.ENODEV {
		return err
	}
	return nil
}

// AddAddress gives an interface an address, which may be used at once: msh hands
// out each only once, so that nobody need ask for duplicates (RFC 4862, 5.4).
func (n *NS) AddAddress(index int, p netip.Prefix) error {
	family, flags := unix.AF_INET, 0
	if p.Addr().Is6() {
		family, flags = unix.AF_INET6, unix.IFA_F_NODAD
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	m := nl.NewIfAddrmsg(family)
	m.Index, m.Prefixlen, m.IfAddrmsg.Flags = uint32(index), uint8(p.Bits()), uint8(flags)
	req.AddData(m)
	b := p.Addr().AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, b))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, b))
	if p.Addr().Is4() && p.Bits() < 31 {
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, Broadcast(p).AsSlice()))
	}
	return n.execute(req)
}

// Broadcast is the last address of an IPv4 network.
func Broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// AddDefaultRoute has what goes nowhere else go to a gateway.
func (n *NS) AddDefaultRoute(index int, via netip.Addr) error {
	h, err := n.Route()
	if err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: via.AsSlice()})
}

// Isolate keeps the port of a bridge from reaching other isolated ports.
func (n *NS) Isolate(index int) error {
	h, err := n.Route()
	if err != nil {
		return err
	}
	return h.LinkSetIsolated(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, true)
}

// OpenPort has the port of a bridge carry frames, or none in either direction. Its
// carrier stays, so that whoever is at the other end does not notice. One that is down
// carries none anyway; the bridge opens it by itself when its carrier comes back.
func (n *NS) OpenPort(index int, open bool) error {
	state := byte(brDisabled)
	if open {
		state = brForwarding
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	m := nl.NewIfInfomsg(unix.AF_BRIDGE)
	m.Index = int32(index)
	req.AddData(m)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_STATE, nl.Uint8Attr(state))
	req.AddData(info)
	if err := n.execute(req); err != unix.ENETDOWN {
		return err
	}
	return nil
}

// States of a bridge's port (linux/if_bridge.h).
const (
	brDisabled   = 0
	brForwarding = 3
)
