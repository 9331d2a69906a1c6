package netx

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Interfaces that share one of n's. Each is made in the namespace where it is to
// be, by one message, and goes with that namespace; n keeps nothing of it.

// macvlanBridge has interfaces on the same lower one reach each other
// (MACVLAN_MODE_BRIDGE).
const macvlanBridge = 4

// AddMacvlan gives the namespace to an interface called name that shares n's
// interface lower: with a MAC of its own, mac or one that the kernel makes up, on
// the same Ethernet. It reaches others on lower, but not n itself, as the kernel
// does not send a frame back where it came from. mtu is in bytes, at most lower's;
// 0 is lower's. It is down; its index in to is returned.
func (n *NS) AddMacvlan(lower string, to *NS, name string, mac net.HardwareAddr, mtu int) (index int, err error) {
	return n.addUpper(lower, to, End{Name: name, MAC: mac, MTU: mtu}, "macvlan", "CONFIG_MACVLAN (modprobe macvlan)",
		func(data *nl.RtAttr) { data.AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(macvlanBridge)) })
}

// AddIpvlan is as AddMacvlan, but the interface has lower's MAC: frames are told
// apart by their IP addresses (ipvlan's mode l2). For switches that allow one MAC
// a port, and for Wi-Fi.
func (n *NS) AddIpvlan(lower string, to *NS, name string, mtu int) (index int, err error) {
	return n.addUpper(lower, to, End{Name: name, MTU: mtu}, "ipvlan", `CONFIG_IPVLAN (modprobe ipvlan); or share it as "macvlan"`,
		func(data *nl.RtAttr) {
			data.AddRtAttr(nl.IFLA_IPVLAN_MODE, nl.Uint16Attr(uint16(netlink.IPVLAN_MODE_L2)))
		})
}

func (n *NS) addUpper(lower string, to *NS, end End, kind, option string, parameters func(*nl.RtAttr)) (int, error) {
	fail := func(err error) (int, error) { return 0, fmt.Errorf("share %s by %s: %w", lower, kind, err) }
	l, err := n.link(lower)
	if err != nil {
		return 0, err
	}
	a := l.Attrs()
	switch {
	case a.RawFlags&unix.IFF_LOOPBACK != 0:
		return fail(errors.New("it is the loopback, which leads nowhere"))
	case a.RawFlags&unix.IFF_UP == 0:
		return fail(fmt.Errorf("it is down, and so would be all that share it: ip link set %s up", a.Name))
	case end.MTU > a.MTU:
		return fail(fmt.Errorf("got an MTU of %d, want at most its own, %d", end.MTU, a.MTU))
	case a.MasterIndex != 0:
		if master, of := n.master(a.MasterIndex); of == "bridge" {
			return fail(fmt.Errorf("it is a port of the bridge %s, which takes all that comes in: share %[1]s by bridge", master))
		}
	}
	create := func(end End) error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		req.AddData(infomsg(0, false))
		end.attrs(func(kind int, b []byte) *nl.RtAttr { a := nl.NewRtAttr(kind, b); req.AddData(a); return a })
		req.AddData(nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(uint32(a.Index))))
		req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(to.fd))))
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
		parameters(info.AddRtAttr(nl.IFLA_INFO_DATA, nil))
		req.AddData(info)
		return n.execute(req)
	}
	name := end.Name
	err = create(end)
	if errors.Is(err, unix.EEXIST) && !to.Has(name) {
		// Older kernels (6.1 for one) look in n whether the name is free, where it may
		// well be lower's own: made under another, it is renamed in its place.
		end.Name = "msh" + strings.ToLower(rand.Text()[:12])
		err = create(end)
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fail(&Missing{kind, "a kernel with " + option, err})
	case errors.Is(err, unix.EBUSY):
		return fail(errors.New("something else takes all that comes in by it: it is a port, or shared the other way (macvlan and ipvlan exclude each other)"))
	case errors.Is(err, unix.EEXIST):
		return fail(fmt.Errorf("there is an interface %s already", name))
	case err != nil:
		return fail(err)
	}
	index, err := to.Index(end.Name)
	if err != nil || end.Name == name {
		return index, err
	}
	h, err := to.Route()
	if err == nil {
		err = h.LinkSetName(byIndex(index), name)
	}
	if err != nil {
		return fail(errors.Join(fmt.Errorf("name it %s: %w", name, err), to.Delete(index)))
	}
	return index, nil
}

// AddBridgePort gives the namespace to an interface called name that is on n's
// bridge: the end of a cable whose other end is a port, up, called msh0, msh1, ….
// mtu is in bytes, at most the bridge's; 0 is the bridge's. The interface is down;
// its index in to is returned.
func (n *NS) AddBridgePort(bridge string, to *NS, name string, mac net.HardwareAddr, mtu int) (index int, err error) {
	fail := func(err error) (int, error) { return 0, fmt.Errorf("share the bridge %s: %w", bridge, err) }
	l, err := n.link(bridge)
	if err != nil {
		return 0, err
	}
	a := l.Attrs()
	if l.Type() != "bridge" {
		err := fmt.Errorf("got a %s, want a bridge; share it by macvlan", l.Type())
		if a.MasterIndex != 0 {
			master, of := n.master(a.MasterIndex)
			err = fmt.Errorf("got a port of the %s %s, want a bridge", of, master)
		}
		return fail(err)
	}
	if mtu > a.MTU {
		return fail(fmt.Errorf("got an MTU of %d, want at most its own, %d", mtu, a.MTU))
	}
	if mtu == 0 {
		mtu = a.MTU
	}
	// The bridge itself takes the smallest MTU and, unless it was given one, the
	// smallest MAC among its ports (br_mtu_auto_adjust, br_stp_recalculate_bridge_id):
	// the port must not be either.
	port := make(net.HardwareAddr, 6)
	rand.Read(port)
	port[0] = 0xfe
	switch err := n.AddVeth(Veth{
		End: End{Name: "msh%d", MAC: port, MTU: a.MTU}, Master: a.Index, Up: true,
		Far: End{Name: name, MAC: mac, MTU: mtu}, FarNS: to,
	}); {
	case errors.Is(err, unix.EEXIST):
		return fail(fmt.Errorf("there is an interface %s already", name))
	case err != nil:
		return fail(err)
	}
	return to.Index(name)
}
