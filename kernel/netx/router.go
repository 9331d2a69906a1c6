package netx

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouterOn has the namespace forward packets; IPv6, where it is asked for, goes on
// for these interfaces alone.
func (n *NS) RouterOn(v6 bool, devs ...string) error {
	return n.Do(func() error {
		if !v6 {
			return WriteSysctl("net.ipv4.ip_forward", "1")
		}
		for _, d := range devs {
			if err := WriteSysctl("net/ipv6/conf/"+d+"/disable_ipv6", "0"); os.IsNotExist(err) {
				return &Missing{"IPv6", "boot without ipv6.disable=1, with CONFIG_IPV6", err}
			} else if err != nil {
				return err
			}
		}
		return WriteSysctl("net.ipv6.conf.all.forwarding", "1")
	})
}

// RoutedDevices are the interfaces that routes of the main table lead out by, but
// for the loopback. family is AF_INET or AF_INET6.
func (n *NS) RoutedDevices(family int) ([]string, error) {
	h, err := n.Route()
	if err != nil {
		return nil, err
	}
	routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the routes: %w", err)
	}
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	used := map[int]bool{}
	for _, r := range routes {
		used[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			used[hop.LinkIndex] = true
		}
	}
	var names []string
	for _, l := range links {
		if a := l.Attrs(); used[a.Index] && a.Name != "lo" {
			names = append(names, a.Name)
		}
	}
	return names, nil
}
