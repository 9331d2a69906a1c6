package netx

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctls reads parameters of a namespace.
func sysctls(t *testing.T, ns *NS, paths ...string) map[string]string {
	t.Helper()
	values := map[string]string{}
	must(t, ns.Do(func() error {
		for _, p := range paths {
			s, err := readSysctl(p)
			if err != nil {
				return err
			}
			values[p] = s.Was
		}
		return nil
	}))
	return values
}

// TestForwarding4: the interfaces asked for, and no others, and back.
func TestForwarding4(t *testing.T) {
	ns, far := makeNS(t), makeNS(t)
	for i, name := range []string{"a", "b.7", "c"} {
		must(t, ns.AddVeth(Veth{End: End{Name: name, Index: 10 + i}, Up: true, Far: End{Name: "far" + name, Index: 10 + i}, FarNS: far}))
	}
	paths := []string{"net/ipv4/conf/a/forwarding", "net/ipv4/conf/b.7/forwarding", "net/ipv4/conf/c/forwarding", "net/ipv4/ip_forward"}
	before := sysctls(t, ns, paths...)
	list, err := ns.Forwarding(unix.AF_INET, "a", "b.7")
	must(t, err)
	want := []Sysctl{{paths[0], "0", "1"}, {paths[1], "0", "1"}}
	if d := cmp.Diff(want, list); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
	if d := cmp.Diff(before, sysctls(t, ns, paths...)); d != "" {
		t.Errorf("only read (-want +got):\n%s", d)
	}
	must(t, ns.SetSysctls(list))
	if d := cmp.Diff(map[string]string{paths[0]: "1", paths[1]: "1", paths[2]: "0", paths[3]: "0"}, sysctls(t, ns, paths...)); d != "" {
		t.Errorf("set (-want +got):\n%s", d)
	}
	if again, err := ns.Forwarding(unix.AF_INET, "a", "b.7"); err != nil || len(again) != 0 {
		t.Errorf("again: got %v, %v; want nothing to do", again, err)
	}
	must(t, ns.Delete(11))
	for range 2 {
		must(t, ns.ResetSysctls(list)) // b.7 has gone
	}
	if d := cmp.Diff("0", sysctls(t, ns, paths[0])[paths[0]]); d != "" {
		t.Errorf("reset (-want +got):\n%s", d)
	}
	for _, bad := range []struct {
		family int
		dev    string
	}{{unix.AF_INET, "none"}, {unix.AF_INET, ""}, {unix.AF_INET6, "none"}, {unix.AF_UNIX, "a"}} {
		if list, err := ns.Forwarding(bad.family, bad.dev); err == nil {
			t.Errorf("%v: got %v, want an error", bad, list)
		}
	}
}

// TestForwarding6 has a host that learned its default route from a router, and
// keeps it when it begins to forward, in both ways that kernels have.
func TestForwarding6(t *testing.T) {
	for _, way := range []string{"force_forwarding", "all"} {
		t.Run(way, func(t *testing.T) {
			ns, router := makeNS(t), makeNS(t)
			for i, name := range []string{"up", "leg", "kept"} {
				must(t, ns.AddVeth(Veth{End: End{Name: name, Index: 10 + i}, Up: true, Far: End{Name: name, Index: 10 + i}, FarNS: router}))
				must(t, router.SetUp(10+i, true))
			}
			must(t, ns.SetSysctls([]Sysctl{{Path: "net/ipv6/conf/kept/forwarding", Want: "1"}}))
			advertise(t, router, ns)
			var paths []string
			for _, dev := range []string{"all", "default", "up", "leg", "kept", "lo"} {
				paths = append(paths, "net/ipv6/conf/"+dev+"/forwarding", "net/ipv6/conf/"+dev+"/accept_ra")
			}
			before := sysctls(t, ns, paths...)
			var list []Sysctl
			if way == "all" {
				must(t, ns.Do(func() (err error) {
					list, err = forwardingAll6(Sysctl{Path: "net/ipv6/conf/all/forwarding", Was: "0"}, []string{"up", "leg"})
					return err
				}))
			} else {
				if _, err := os.Stat("/proc/sys/net/ipv6/conf/lo/force_forwarding"); err != nil {
					t.Skip("this kernel has no force_forwarding (Linux 6.17)")
				}
				var err error
				list, err = ns.Forwarding(unix.AF_INET6, "up", "leg")
				must(t, err)
				if d := cmp.Diff([]Sysctl{{"net/ipv6/conf/up/force_forwarding", "0", "1"}, {"net/ipv6/conf/leg/force_forwarding", "0", "1"}}, list); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			}
			must(t, ns.SetSysctls(list))
			if way == "all" {
				want := map[string]string{}
				for p, v := range before {
					switch {
					case strings.HasSuffix(p, "/forwarding"):
						want[p] = "1"
					case strings.Contains(p, "/all/"), strings.Contains(p, "/kept/"):
						want[p] = v
					default:
						want[p] = "2"
					}
				}
				if d := cmp.Diff(want, sysctls(t, ns, paths...)); d != "" {
					t.Errorf("set (-want +got):\n%s", d)
				}
				if again, err := ns.Forwarding(unix.AF_INET6, "up", "leg"); err != nil || len(again) != 0 {
					t.Errorf("again: got %v, %v; want nothing to do", again, err)
				}
			}
			awaitRoutes(t, ns, unix.AF_INET6, 1)
			must(t, ns.ResetSysctls(list))
			if d := cmp.Diff(before, sysctls(t, ns, paths...)); d != "" {
				t.Errorf("reset (-want +got):\n%s", d)
			}
			awaitRoutes(t, ns, unix.AF_INET6, 1)
		})
	}
}

// advertise sends router advertisements (RFC 4861, 4.2) over the cable "up" until
// the other end has a default route from them.
func advertise(t *testing.T, router, to *NS) {
	t.Helper()
	must(t, router.SetSysctls([]Sysctl{{Path: "net/ipv6/conf/up/accept_dad", Want: "0"}, {Path: "net/ipv6/conf/up/forwarding", Want: "1"}}))
	must(t, router.SetUp(10, false))
	must(t, router.SetUp(10, true)) // its link-local address anew, without a wait
	var c net.PacketConn
	must(t, router.Do(func() (err error) { c, err = net.ListenPacket("ip6:ipv6-icmp", "::"); return err }))
	defer c.Close()
	raw, err := c.(*net.IPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
		must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, 10))
	}))
	for try := range 200 {
		ra := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // a router for 1800 s
		c.WriteTo(ra, &net.IPAddr{IP: net.ParseIP("ff02::1")})
		routes, err := to.DefaultRoutes(unix.AF_INET6)
		must(t, err)
		if len(routes) == 1 {
			if r := routes[0]; r.Dev != "up" || !r.Gateway.IsLinkLocalUnicast() {
				t.Fatalf("got %+v, want one by up, to a link-local address", r)
			}
			return
		}
		if try == 199 {
			t.Fatalf("got %v, want a route from the advertisement", routes)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestDefaultRoutes(t *testing.T) {
	ns, far := makeNS(t), makeNS(t)
	if routes, err := ns.DefaultRoutes(unix.AF_INET); err != nil || len(routes) != 0 {
		t.Errorf("an empty namespace: got %v, %v; want none", routes, err)
	}
	for i, name := range []string{"a", "b"} {
		must(t, ns.AddVeth(Veth{End: End{Name: name, Index: 10 + i}, Up: true, Far: End{Name: name, Index: 10 + i}, FarNS: far}))
		must(t, far.SetUp(10+i, true))
		must(t, ns.AddAddress(10+i, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 2}), 24)))
		must(t, ns.AddAddress(10+i, netip.MustParsePrefix([]string{"fd01::2/64", "fd02::2/64"}[i])))
	}
	h, err := ns.Route()
	must(t, err)
	hop := func(dev int, gw string) *netlink.NexthopInfo {
		return &netlink.NexthopInfo{LinkIndex: dev, Gw: net.ParseIP(gw)}
	}
	every := net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	other := net.IPNet{IP: net.IPv4(192, 0, 2, 0).To4(), Mask: net.CIDRMask(24, 32)}
	for _, r := range []netlink.Route{
		{LinkIndex: 11, Table: 100, Dst: &every},
		{LinkIndex: 11, Gw: net.ParseIP("10.1.0.1"), Priority: 200},
		{LinkIndex: 10, Gw: net.ParseIP("10.0.0.1"), Priority: 100},
		{LinkIndex: 10, Gw: net.ParseIP("10.0.0.3"), Dst: &other},
		{Type: unix.RTN_BLACKHOLE, Priority: 300, Dst: &every},
		{MultiPath: []*netlink.NexthopInfo{hop(10, "10.0.0.9"), hop(11, "10.1.0.9")}, Priority: 400, Dst: &every},
		{LinkIndex: 10, Priority: 500, Dst: &every, Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fd01::1")}},
		{LinkIndex: 11, Gw: net.ParseIP("fd02::1"), Priority: 600},
	} {
		must(t, h.RouteAdd(&r))
	}
	for family, want := range map[int][]DefaultRoute{
		unix.AF_INET: {
			{"a", 10, netip.MustParseAddr("10.0.0.1"), 254, 100},
			{"b", 11, netip.MustParseAddr("10.1.0.1"), 254, 200},
			{"a", 10, netip.MustParseAddr("10.0.0.9"), 254, 400},
			{"b", 11, netip.MustParseAddr("10.1.0.9"), 254, 400},
			{"a", 10, netip.MustParseAddr("fd01::1"), 254, 500},
			{"b", 11, netip.Addr{}, 100, 0},
		},
		unix.AF_INET6: {{"b", 11, netip.MustParseAddr("fd02::1"), 254, 600}},
	} {
		got, err := ns.DefaultRoutes(family)
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); err != nil || d != "" {
			t.Errorf("family %d: %v (-want +got):\n%s", family, err, d)
		}
	}
}
