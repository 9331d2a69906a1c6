package netx

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sysctl is a parameter of a namespace, what it was and what is wanted. It is
// plain data, for a ledger.
type Sysctl struct {
	Path string // below /proc/sys; an interface's name may have dots, so with slashes
	Was  string
	Want string
}

func (s Sysctl) file() string { return "/proc/sys/" + s.Path }

// Forwarding tells what has to be set for packets that come in by these interfaces
// to be forwarded; nothing where they are already. It only reads: the caller
// writes the list to its ledger, hands it to SetSysctls and, at the end, when
// nobody else needs it any more, to ResetSysctls. family is AF_INET or AF_INET6.
//
// IPv4 has a switch for each interface. IPv6 has one since Linux 6.17,
// force_forwarding; until then only conf.all.forwarding counts, and that makes a
// router of every interface: one with accept_ra=1 hears no more router
// advertisements, and the default routes it learned from them are removed at once,
// a host's own way out among them (rt6_purge_dflt_routers). With accept_ra=2 it
// goes on listening, so every 1 becomes a 2 first. To set conf.DEV.forwarding
// alone would remove those routes all the same and forward nothing.
func (n *NS) Forwarding(family int, devs ...string) ([]Sysctl, error) {
	var list []Sysctl
	err := n.Do(func() (err error) {
		switch family {
		case unix.AF_INET:
			list, err = switches("ipv4", "forwarding", devs)
		case unix.AF_INET6:
			list, err = forwarding6(devs)
		default:
			err = fmt.Errorf("got family %d, want %d or %d", family, unix.AF_INET, unix.AF_INET6)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("forward packets from %s: %w", strings.Join(devs, ", "), err)
	}
	return list, nil
}

func forwarding6(devs []string) ([]Sysctl, error) {
	all, err := readSysctl("net/ipv6/conf/all/forwarding")
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Missing{"IPv6", "boot without ipv6.disable=1, with CONFIG_IPV6", err}
	} else if err != nil || all.Was == "1" {
		return nil, err
	}
	if _, err := readSysctl("net/ipv6/conf/default/force_forwarding"); errors.Is(err, os.ErrNotExist) {
		return forwardingAll6(all, devs)
	}
	return switches("ipv6", "force_forwarding", devs)
}

// switches are those of a switch's values that are not 1 yet.
func switches(family, key string, devs []string) ([]Sysctl, error) {
	var list []Sysctl
	for _, dev := range devs {
		if err := checkName(dev); err != nil {
			return nil, err
		}
		s, err := readSysctl(filepath.Join("net", family, "conf", dev, key))
		if err != nil {
			return nil, err
		}
		if s.Was != "1" {
			s.Want = "1"
			list = append(list, s)
		}
	}
	return list, nil
}

// forwardingAll6 is the way without force_forwarding. all overwrites the switch of
// every interface, and of those to come. What was 1 stays 1 and is in the list for
// the way back: that is taken in the reverse order, after all has been reset, and
// before accept_ra, or it would remove the routes.
func forwardingAll6(all Sysctl, devs []string) ([]Sysctl, error) {
	if _, err := switches("ipv6", "forwarding", devs); err != nil {
		return nil, err // one of them is not there
	}
	folders, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return nil, err
	}
	var listen, kept []Sysctl
	for _, d := range folders {
		if d.Name() == "all" {
			continue
		}
		path := "net/ipv6/conf/" + d.Name()
		forwarding, err := readSysctl(path + "/forwarding")
		if errors.Is(err, os.ErrNotExist) {
			continue // the interface has gone
		} else if err != nil {
			return nil, err
		}
		if forwarding.Was == "1" {
			forwarding.Want = "1"
			kept = append(kept, forwarding)
			continue // a router already, which listens or not as it is
		}
		ra, err := readSysctl(path + "/accept_ra")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if ra.Was == "1" {
			ra.Want = "2"
			listen = append(listen, ra)
		}
	}
	all.Want = "1"
	return slices.Concat(listen, kept, []Sysctl{all}), nil
}

// SetSysctls sets parameters in the order of the list.
func (n *NS) SetSysctls(list []Sysctl) error {
	return n.Do(func() error {
		for _, s := range list {
			if err := writeFile(s.file(), s.Want); err != nil {
				return err
			}
		}
		return nil
	})
}

// ResetSysctls sets them back to what they were, in the reverse order. What has
// gone, with its interface, is passed over.
func (n *NS) ResetSysctls(list []Sysctl) error {
	return n.Do(func() error {
		var errs []error
		for _, s := range slices.Backward(list) {
			if err := writeFile(s.file(), s.Was); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// readSysctl reads a parameter of the calling thread's namespace.
func readSysctl(path string) (Sysctl, error) {
	s := Sysctl{Path: path}
	b, err := os.ReadFile(s.file())
	s.Was = strings.TrimSpace(string(b))
	return s, err
}

func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// DefaultRoute is a way out of a namespace.
type DefaultRoute struct {
	Dev     string
	Index   int
	Gateway netip.Addr // invalid where the link itself leads on; IPv6 also for an IPv4 route (RFC 5549)
	Table   int        // RT_TABLE_MAIN, 254, is everybody's; others need a rule
	Metric  int        // among routes of a table the least wins
}

// DefaultRoutes are the routes for everything that has no other, in all tables:
// those of the main table first, then by metric. A route over several gateways is
// several here. family is AF_INET or AF_INET6.
func (n *NS) DefaultRoutes(family int) ([]DefaultRoute, error) {
	h, err := n.Route()
	if err != nil {
		return nil, err
	}
	var routes []netlink.Route
	for range tries {
		routes, err = h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list the default routes: %w", err)
	}
	names := map[int]string{}
	var all []DefaultRoute
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST {
			continue // blackhole, unreachable, …
		}
		hops := r.MultiPath
		if len(hops) == 0 {
			hops = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via}}
		}
		for _, hop := range hops {
			name, ok := names[hop.LinkIndex]
			if !ok {
				l, err := h.LinkByIndex(hop.LinkIndex)
				if gone := (netlink.LinkNotFoundError{}); errors.As(err, &gone) {
					continue // gone since
				} else if err != nil {
					return nil, fmt.Errorf("default route by interface %d: %w", hop.LinkIndex, err)
				}
				name = l.Attrs().Name
				names[hop.LinkIndex] = name
			}
			all = append(all, DefaultRoute{Dev: name, Index: hop.LinkIndex, Gateway: gateway(hop), Table: r.Table, Metric: r.Priority})
		}
	}
	slices.SortStableFunc(all, func(a, b DefaultRoute) int {
		if main := a.Table == unix.RT_TABLE_MAIN; main != (b.Table == unix.RT_TABLE_MAIN) {
			if main {
				return -1
			}
			return 1
		}
		if a.Table != b.Table {
			return a.Table - b.Table
		}
		return a.Metric - b.Metric
	})
	return all, nil
}

func gateway(hop *netlink.NexthopInfo) netip.Addr {
	if via, ok := hop.Via.(*netlink.Via); ok {
		a, _ := netip.AddrFromSlice(via.Addr)
		return a
	}
	a, _ := netip.AddrFromSlice(hop.Gw)
	return a.Unmap()
}
