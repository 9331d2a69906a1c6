package kernel

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"msh/kernel/netx"
)

// netLab makes a lab on a new host, and checks at the end of the test that the
// tests' network, which is the host's for them, is as it was.
func netLab(t *testing.T) *Lab {
	t.Helper()
	h := newHost(t)
	keepsNetwork(t)
	return labOn(t, h, "")
}

func keepsNetwork(t *testing.T) {
	t.Helper()
	own := ownNet(t, nil)
	before := networkOf(t, own)
	t.Cleanup(func() { sameNetwork(t, "the host's network, at the end", own, before) })
}

// networkOf is all that msh could change in a network: interfaces with their
// addresses, routes and rules of all tables, the packet filter's rules, and what
// is forwarded.
func networkOf(t *testing.T, ns *netx.NS) []string {
	t.Helper()
	out := inNS(t, ns, "/bin/sh", "-c", `set -e
ip -d -o link | sed 's/_timer *[0-9.]*//g; s/ state [A-Z]*//; s/NO-CARRIER,//'; ip -d -o addr; ip rule; ip -6 rule; ip route show table all | sort; ip -6 route show table all | sort; nft list ruleset
cd /proc/sys/net; grep -s . ipv4/ip_forward ipv[46]/conf/*/forwarding ipv6/conf/*/force_forwarding ipv6/conf/*/accept_ra ipv6/conf/*/disable_ipv6 || true`)
	// The kernel adds an interface's link-local address in its own time, and finds
	// out about its carrier as well.
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(strings.ReplaceAll(out, " linkdown", "")), "\n"), func(line string) bool { return strings.Contains(line, "fe80:") })
}

// sameNetwork compares, and gives the kernel a moment.
func sameNetwork(t *testing.T, what string, ns *netx.NS, before []string) {
	t.Helper()
	var after []string
	for range 100 {
		if after = networkOf(t, ns); slices.Equal(before, after) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	without := func(a, b []string, mark string) (diff []string) {
		for _, line := range a {
			if !slices.Contains(b, line) {
				diff = append(diff, mark+line)
			}
		}
		return diff
	}
	t.Errorf("%s (-before +after):\n%s", what, strings.Join(append(without(before, after, "-"), without(after, before, "+")...), "\n"))
}

func makeVNet(t *testing.T, l *Lab, parent *Machine, spec *VNetSpec, subnets ...string) *VNet {
	t.Helper()
	spec.Subnets = prefixes(subnets...)
	v, err := l.VNet(t.Context(), parent, spec)
	if err != nil {
		needs(t, err)
		t.Fatalf("%v%s", err, hintOf(err))
	}
	return v
}

// needs skips where the kernel lacks what is tested; in the machine of scripts/vm it
// must not.
func needs(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ErrNotSupported) && os.Getenv("MSH_VM") == "" {
		t.Skip(err)
	}
}

func forkNamed(t *testing.T, l *Lab, name string, rs ...Resource) *Machine {
	t.Helper()
	return forkIn(t, l, l.Host(), &Spec{Name: name, Resources: rs})
}

// addressOf is the first address of a machine's interface, without its length.
func addressOf(t *testing.T, m *Machine, name string) string {
	t.Helper()
	n, err := m.Netif(name)
	if err != nil {
		t.Fatal(err)
	}
	return n.Addresses[0].Addr().String()
}

// pings checks that m reaches those, sooner or later: a switch starts a new port in
// its own time, and a neighbour that did not answer is asked again after a second.
func pings(t *testing.T, m *Machine, to ...string) {
	t.Helper()
	for _, a := range to {
		if r := try(t, m, "ping", "-n", "-c1", "-i0.1", "-w5", a); r.Code != 0 {
			t.Errorf("%s does not reach %s:\n%s%s%s", m.Name(), a, r.Stdout, r.Stderr, sh(t, m, "ip -br addr; ip route; ip -6 route"))
		}
	}
}

// cannotReach checks that nobody answers within 0.1 s, and has m forget that it
// has asked.
func cannotReach(t *testing.T, m *Machine, to ...string) {
	t.Helper()
	for _, a := range to {
		if try(t, m, "ping", "-n", "-c1", "-W0.1", a).Code == 0 {
			t.Errorf("%s reaches %s", m.Name(), a)
		}
	}
	run(t, m, "ip", "neigh", "flush", "all")
}

// devices are the interfaces of a namespace, but for the loopback.
func devices(t *testing.T, ns *netx.NS) []string {
	t.Helper()
	links, err := ns.Links()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		if l.Name != "lo" {
			names = append(names, l.Name)
		}
	}
	return names
}

// refusedVNet is why a network was not made. Nothing is left of it.
func refusedVNet(t *testing.T, l *Lab, parent *Machine, spec *VNetSpec, subnets ...string) string {
	t.Helper()
	for _, s := range subnets {
		spec.Subnets = append(spec.Subnets, netip.MustParsePrefix(s))
	}
	v, err := l.VNet(t.Context(), parent, spec)
	if err == nil {
		v.Destroy(context.Background())
		t.Fatalf("vnet %+v should have been refused", spec)
	}
	if spec.Name != "" && spec.Name != "has" && l.FindVNet(spec.Name) != nil {
		t.Errorf("%v: it is in the lab all the same", err)
	}
	if l.host != nil {
		if _, err := os.Stat(filepath.Join(l.dir(), netsDir, spec.Name)); spec.Name != "" && err == nil {
			t.Errorf("%v: it has left a directory", err)
		}
	}
	return err.Error()
}

func TestVNetBad(t *testing.T) {
	l := paperLab()
	onPaper(t, l, &VNetSpec{Name: "has"})
	for _, c := range []struct {
		want    string
		spec    VNetSpec
		subnets []string
	}{
		{`vnet: name: got "Lan", want a name of a-z, 0-9 and -, at most 63 long, that does not begin with -`, VNetSpec{Name: "Lan"}, nil},
		{`vnet: name: got ".patch", want a name of a-z, 0-9 and -, at most 63 long, that does not begin with -`, VNetSpec{Name: patchName}, nil},
		{`vnet: name: got "has", want a name that is free in lab paper: a vnet has it`, VNetSpec{Name: "has"}, nil},
		{`vnet: subnet: got "10.0.0.1/24", want a network, whose host bits are 0`, VNetSpec{}, []string{"10.0.0.1/24"}},
		{`vnet: subnet: got "0.0.0.0/0", want a prefix length of 1 to 31`, VNetSpec{}, []string{"0.0.0.0/0"}},
		{`vnet: subnet: got "10.0.0.1/32", want a prefix length of 1 to 31`, VNetSpec{}, []string{"10.0.0.1/32"}},
		{`vnet: subnet: got "fd00::1/128", want a prefix length of 1 to 127`, VNetSpec{}, []string{"fd00::1/128"}},
		{`vnet: subnet: got "224.0.0.0/24", want addresses that machines can have`, VNetSpec{}, []string{"224.0.0.0/24"}},
		{`vnet: subnet: got "127.0.0.0/8", want addresses that machines can have`, VNetSpec{}, []string{"127.0.0.0/8"}},
		{`vnet: subnet: got "::ffff:10.0.0.0/120", want addresses that machines can have`, VNetSpec{}, []string{"::ffff:10.0.0.0/120"}},
		{`vnet: subnet: got "10.0.0.0/16 and 10.0.3.0/24", want networks that do not overlap`, VNetSpec{}, []string{"10.0.0.0/16", "10.0.3.0/24"}},
		{`vnet: subnet: got "fd00::/64 and fd00::/64", want networks that do not overlap`, VNetSpec{}, []string{"fd00::/64", "10.0.0.0/8", "fd00::/64"}},
		{"vnet: mtu: got 67, want 68 to 65535 bytes", VNetSpec{MTU: 67}, nil},
		{"vnet: mtu: got 65536, want 68 to 65535 bytes", VNetSpec{MTU: 65536}, nil},
		{"vnet: mtu: got -1, want 68 to 65535 bytes", VNetSpec{MTU: -1}, nil},
		{"vnet: mtu: got 1279, want at least 1280 for IPv6", VNetSpec{MTU: 1279}, []string{"10.0.0.0/24", "fd00::/64"}},
		{"vnet: nat: got True, want a subnet, of which the gateway gets the first address", VNetSpec{NAT: true}, nil},
		{`vnet: uplink: got "averylonginterface", want an interface's name, of at most 15 bytes; this has 18`, VNetSpec{Uplink: "averylonginterface"}, nil},
		{`vnet: uplink: got "e th0", want an interface's name: no blanks, no / : or %`, VNetSpec{Uplink: "e th0"}, nil},
		{`vnet: uplink: got "all", want another name: the kernel's parameters for all interfaces are called so`, VNetSpec{Uplink: "all"}, nil},
	} {
		want(t, "error", c.want, refusedVNet(t, l, l.root, &c.spec, c.subnets...))
	}
	want(t, "networks", 1, len(l.VNets()))
	want(t, "the name that is made up", "n1", onPaper(t, l, &VNetSpec{}).Name())
	onPaper(t, l, &VNetSpec{Name: "n3"})
	want(t, "the next", "n2", onPaper(t, l, &VNetSpec{}).Name())
	want(t, "and then", "n4", onPaper(t, l, &VNetSpec{}).Name())
}

// Two machines on one Ethernet, seen from inside.
func TestVNet(t *testing.T) {
	l := netLab(t)
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan", MTU: 1400}, "10.0.0.0/24", "fd00::/64")
	a := forkNamed(t, l, "a", on(v), &Mount{Source: "sysfs", Target: "/sys", Type: "sysfs"})
	b := forkNamed(t, l, "b", on(v))
	c := forkNamed(t, l, "c", &Netif{VNet: "lan", Name: "x0", Bare: true, MTU: 1300})
	pings(t, a, "10.0.0.2", "fd00::2")
	pings(t, b, "10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2", "::1", "127.0.0.1")
	want(t, "machines", []string{"a", "b", "c"}, v.Machines())

	// Of the size of the MTU and no larger, as on a real one.
	run(t, a, "ping", "-n", "-c1", "-W2", "-Mdo", "-s1372", "10.0.0.2")
	if r := try(t, a, "ping", "-n", "-c1", "-W0.1", "-Mdo", "-s1373", "10.0.0.2"); r.Code == 0 {
		t.Error("1401 bytes went through an MTU of 1400")
	}

	// A fresh network, nothing else in it; indices as on a computer that has just started.
	want(t, "interfaces of a", "lo eth0", strings.Join(strings.Fields(sh(t, a, "ls -v /sys/class/net | sort -r")), " "))
	want(t, "index, carrier, state, MTU", "2 1 up 1400", sh(t, a, "cd /sys/class/net/eth0; echo $(cat ifindex carrier operstate mtu)"))
	n, err := a.Netif("eth0")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "MAC", n.HardwareAddr, sh(t, a, "cat /sys/class/net/eth0/address"))
	contains(t, run(t, c, "ip", "link", "show", "x0"), " mtu 1300 ")
	want(t, "addresses", "10.0.0.1/24 brd 10.0.0.255 scope global; fd00::1/64 scope global nodad",
		strings.ReplaceAll(sh(t, a, "ip -o addr show eth0 scope global | sed 's/.* inet6* //; s/ eth0.*//; s/ \\\\.*//'"), "\n", "; "))
	want(t, "routes", "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.1", sh(t, a, "ip route"))
	want(t, "what a bare one has", "", run(t, c, "ip", "-o", "addr", "show", "x0", "scope", "global"))

	counts, err := v.Stats()
	if err != nil {
		t.Fatal(err)
	}
	var ports []string
	for _, c := range counts {
		ports = append(ports, c.Machine+" "+c.Netif)
		if c.Machine != "c" && (c.TxPackets < 3 || c.RxPackets < 3) {
			t.Errorf("%s has sent %d frames and received %d, want some", c.Machine, c.TxPackets, c.RxPackets)
		}
	}
	want(t, "ports", []string{"a eth0", "b eth0", "c x0"}, ports)
	inside, err := a.NetifStats("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts[:1] {
		if c.TxBytes > inside.TxBytes || c.RxBytes > inside.RxBytes {
			t.Errorf("the port has counted %+v, the machine %+v", c.Counters, inside)
		}
	}
}

// IPv6 is on where the vnet has such a subnet; MPTCP nowhere.
func TestVNetIPv6(t *testing.T) {
	l := netLab(t)
	v4 := makeVNet(t, l, l.Host(), &VNetSpec{Name: "four"}, "10.4.0.0/24")
	v6 := makeVNet(t, l, l.Host(), &VNetSpec{Name: "six"}, "fd06::/64")
	state := func(m *Machine) string {
		return sh(t, m, "cd /proc/sys/net; for c in lo eth0 eth1; do [ ! -e ipv6/conf/$c ] || echo -n $c=$(cat ipv6/conf/$c/disable_ipv6)' '; done; echo mptcp=$(cat mptcp/enabled)")
	}
	four, six := forkNamed(t, l, "four", on(v4)), forkNamed(t, l, "six", on(v6))
	want(t, "without IPv6", "lo=1 eth0=1 mptcp=0", state(four))
	want(t, "with IPv6", "lo=0 eth0=0 mptcp=0", state(six))
	want(t, "with both", "lo=0 eth0=0 eth1=0 mptcp=0", state(forkNamed(t, l, "both", on(v4), on(v6))))
	want(t, "asked for by an address", "lo=0 eth0=0 mptcp=0", state(forkNamed(t, l, "asked", on(v4, "fd04::1/64"))))
	want(t, "asked for by a parameter", "lo=0 eth0=0 mptcp=0", state(forkNamed(t, l, "param", on(v4), &Sysctl{"net.ipv6.conf.all.forwarding", "1"})))
	want(t, "in the switch", "1", strings.TrimSpace(inNS(t, v6.net.ns, "cat", "/proc/sys/net/ipv6/conf/switch/disable_ipv6")))

	// Plugged in later, it reaches others, and itself.
	if _, err := v6.Attach(t.Context(), four, &Netif{}); err != nil {
		t.Fatal(err)
	}
	want(t, "with IPv6 by now", "lo=0 eth0=1 eth1=0 mptcp=0", state(four))
	pings(t, four, addressOf(t, six, "eth0"), addressOf(t, four, "eth1"), "::1")
	pings(t, six, addressOf(t, four, "eth1"))
}

func TestVNetIsolated(t *testing.T) {
	l := netLab(t)
	site := fork(t, l, space("netspace"), &Children{Max: 2})
	v := makeVNet(t, l, site, &VNetSpec{Isolated: true, NAT: true}, "10.0.0.0/24", "fd00::/64")
	a := forkIn(t, l, site, &Spec{Resources: []Resource{on(v)}})
	b := forkIn(t, l, site, &Spec{Resources: []Resource{on(v)}})
	pings(t, a, "10.0.0.1", "fd00::1")
	pings(t, b, "10.0.0.1", "fd00::1")
	cannotReach(t, a, "10.0.0.3", "fd00::3")
	cannotReach(t, b, "10.0.0.2")
}
