package netx

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrGone is in the chain of TakeNICBack's error where the interface is nowhere
// to be found, and so cannot come back.
var ErrGone = errors.New("is gone")

// NIC is what it takes to put an interface back as it was, after it has been in
// another namespace: plain data, for a file. The kernel takes all that lies in the
// namespace off an interface that leaves it: addresses, routes, neighbours,
// parameters. What stays on the interface itself (name, MAC, MTU, …) may be
// changed by whoever has it.
//
// Not kept, as the kernel cannot tell it in a form that it also takes: queueing
// disciplines and filters, which a move takes off, and the multicast groups of
// programs. What ethtool(8) sets moves with the interface.
type NIC struct {
	ID           string // random; in the mark
	Name         string
	Index        int
	Kind         string         // "device", or what it is made of: "veth", "dummy", …
	Device       string         `json:",omitempty"` // the bus and the device behind it, as in /sys
	PermanentMAC string         `json:",omitempty"`
	MAC          string         `json:",omitempty"`
	MTU          int            // bytes
	TxQueue      int            // packets
	Group        uint32         `json:",omitempty"`
	Up           bool           `json:",omitempty"`
	Flags        uint32         `json:",omitempty"` // those of nicFlags that are set
	Alias        string         `json:",omitempty"`
	AltNames     []string       `json:",omitempty"`
	Addresses    []NICAddress   `json:",omitempty"` // as the kernel lists them
	Routes       []NICRoute     `json:",omitempty"`
	Neighbours   []NICNeighbour `json:",omitempty"`
	// Parameters under /proc/sys/net that differ from the namespace's default; the
	// others follow that. "ipv4/conf/rp_filter" is the one of this interface.
	Sysctls map[string]string `json:",omitempty"`
	Saved   int64             // CLOCK_BOOTTIME in seconds: lifetimes go on while it is away
}

// nicFlags can be set from outside; IFF_UP is apart.
const nicFlags = unix.IFF_NOARP | unix.IFF_PROMISC | unix.IFF_ALLMULTI | unix.IFF_MULTICAST | unix.IFF_DYNAMIC

// Mark is the text that the interface carries as its alias (ifalias) while it is
// away, so that it is found under any name.
func (nic *NIC) Mark() string { return "msh-nic:" + nic.ID }

// physical tells whether the interface outlives a namespace that dies with it
// inside: the kernel deletes those that netlink made, and throws the others into
// the initial namespace (default_device_exit_net in net/core/dev.c).
func (nic *NIC) physical() bool { return nic.Kind == "device" }

// SaveNIC takes down what TakeNICBack puts back. It changes nothing. An interface
// that cannot be given away is an error that says why, and what would help.
func (n *NS) SaveNIC(name string) (*NIC, error) {
	h, err := n.Route()
	if err != nil {
		return nil, err
	}
	l, err := n.link(name)
	if err != nil {
		return nil, err
	}
	a := l.Attrs()
	if err := n.mayLeave(l); err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	nic := &NIC{
		ID: rand.Text(), Name: a.Name, Index: a.Index, Kind: l.Type(), PermanentMAC: a.PermHWAddr.String(), MAC: a.HardwareAddr.String(),
		MTU: a.MTU, TxQueue: a.TxQLen, Group: a.Group, Up: a.RawFlags&unix.IFF_UP != 0, Flags: a.RawFlags & nicFlags,
		Alias: a.Alias, AltNames: a.AltNames, Saved: bootTime(),
	}
	if a.ParentDev != "" {
		nic.Device = a.ParentDevBus + "/" + a.ParentDev
	}
	if nic.Addresses, err = n.saveAddresses(nic); err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	if nic.Routes, err = n.saveRoutes(nic); err != nil {
		return nil, fmt.Errorf("list the routes of %s: %w", name, err)
	}
	if nic.Neighbours, err = saveNeighbours(h, a.Index); err != nil {
		return nil, fmt.Errorf("list the neighbours of %s: %w", name, err)
	}
	err = n.Do(func() error { nic.Sysctls, err = saveSysctls(a.Name); return err })
	if err != nil {
		return nil, fmt.Errorf("read the parameters of %s: %w", name, err)
	}
	return nic, nil
}

// link finds an interface by its name. The error for one that is not there lists
// those that are.
func (n *NS) link(name string) (netlink.Link, error) {
	h, err := n.Route()
	if err != nil {
		return nil, err
	}
	l, err := h.LinkByName(name)
	if err == nil {
		return l, nil
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	all, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	var names []string
	for _, l := range all {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return nil, fmt.Errorf("interface %s: not there; there are %s", name, strings.Join(names, ", "))
}

// mayLeave refuses what cannot be given away.
func (n *NS) mayLeave(l netlink.Link) error {
	a := l.Attrs()
	if a.RawFlags&unix.IFF_LOOPBACK != 0 {
		return errors.New("every network has a loopback of its own: it cannot be given away")
	}
	if a.MasterIndex != 0 {
		master, kind := n.master(a.MasterIndex)
		return fmt.Errorf("it is a port of the %s %s; take it out first (ip link set %s nomaster)", kind, master, a.Name)
	}
	switch l.Type() {
	case "bridge", "bond", "team", "vrf":
		return errors.New(kept)
	}
	return nil
}

// kept is what EINVAL means for an interface that was to be moved.
const kept = "the kernel does not let it leave its network namespace: a bridge, bond, team, VRF or other local interface (netns-local) stays; give one of its ports instead"

// master names the interface with that index, and its kind.
func (n *NS) master(index int) (name, kind string) {
	h, err := n.Route()
	if err != nil {
		return fmt.Sprintf("number %d", index), "interface"
	}
	l, err := h.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("number %d", index), "interface"
	}
	return l.Attrs().Name, l.Type()
}

// CarriesCaller tells whether all default routes of IPv4, or all of IPv6, in the
// main table go out by the interface, and by no other: without it, whoever is not
// on a network of this host's is cut off. Where there is none it carries nobody.
func (n *NS) CarriesCaller(name string) (bool, error) {
	l, err := n.link(name)
	if err != nil {
		return false, err
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := n.routes(family)
		if err != nil {
			return false, fmt.Errorf("list the routes: %w", err)
		}
		by, other := false, false
		for _, r := range routes {
			if r.header.Dst_len != 0 || r.table != unix.RT_TABLE_MAIN || r.header.Type != unix.RTN_UNICAST {
				continue
			}
			by = by || slices.Contains(r.out, l.Attrs().Index)
			other = other || slices.ContainsFunc(r.out, func(i int) bool { return i != l.Attrs().Index })
		}
		if by && !other {
			return true, nil
		}
	}
	return false, nil
}

// dump asks for a list that lies in the namespace, on a socket of its own. The
// kernel says when it changed half-way; then it is asked again.
func (n *NS) dump(kind int, answer uint16, header nl.NetlinkRequestData) ([][]byte, error) {
	s, err := openNetlink(n)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for range 20 {
		req := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
		req.AddData(header)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		var all [][]byte
		if all, err = req.Execute(unix.NETLINK_ROUTE, answer); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}

// bootTime is the time since the host was started, in seconds.
func bootTime() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Sec
}
