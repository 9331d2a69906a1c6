package netx

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VXLAN is a port of a switch that leads over UDP to the switches of other hosts.
type VXLAN struct {
	ID, Port int
	Local    netip.Addr // the zero value lets the kernel choose
	Peers    []netip.Addr
	MTU      int
	Index    int
}

// AddVXLAN makes it a port of the bridge in n. Its packets go through the network
// under, where nothing of it is to be seen but a UDP port: a vxlan keeps to the
// namespace that it was made from (rtnl_newlink's source namespace).
func (n *NS) AddVXLAN(x VXLAN, under *NS) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(infomsg(x.Index, false))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("vxlan")))
	req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(n.fd))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(uint32(x.ID)))
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, []byte{byte(x.Port >> 8), byte(x.Port)})
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(1))
	switch {
	case x.Local.Is4():
		data.AddRtAttr(nl.IFLA_VXLAN_LOCAL, x.Local.AsSlice())
	case x.Local.Is6():
		data.AddRtAttr(nl.IFLA_VXLAN_LOCAL6, x.Local.AsSlice())
	}
	req.AddData(info)
	if err := under.execute(req); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return &Missing{Feature: "VXLAN (CONFIG_VXLAN)", Mend: "modprobe vxlan", Err: err}
		}
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("another VXLAN of this host has that id and port: %w", err)
		}
		return fmt.Errorf("make the VXLAN port: %w", err)
	}
	h, err := n.Route()
	if err != nil {
		return err
	}
	for _, p := range x.Peers {
		// What has no known place, and what is for all, goes to every peer.
		all := &netlink.Neigh{LinkIndex: x.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{0, 0, 0, 0, 0, 0}, IP: p.AsSlice()}
		if err := h.NeighAppend(all); err != nil {
			return fmt.Errorf("add the peer %s: %w", p, err)
		}
	}
	if err := n.SetMTU(x.Index, x.MTU); err != nil {
		return fmt.Errorf("give the VXLAN port the MTU %d: %w", x.MTU, err)
	}
	if err := n.Enslave(x.Index, BridgeIndex); err != nil {
		return err
	}
	return n.SetUp(x.Index, true)
}

// SetMTU sets an interface's MTU, in bytes.
func (n *NS) SetMTU(index, mtu int) error {
	h, err := n.Route()
	if err != nil {
		return err
	}
	return h.LinkSetMTU(byIndex(index), mtu)
}

// SetMAC sets an interface's Ethernet address.
func (n *NS) SetMAC(index int, mac net.HardwareAddr) error {
	h, err := n.Route()
	if err != nil {
		return err
	}
	return h.LinkSetHardwareAddr(byIndex(index), mac)
}

// Has tells whether there is an interface of that name.
func (n *NS) Has(name string) bool {
	_, err := n.Index(name)
	return err == nil
}

func byIndex(index int) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
}
