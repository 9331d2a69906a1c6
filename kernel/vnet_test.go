package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// line is a TCP connection between two machines.
type line struct{ from, to net.Conn }

func connect(t *testing.T, from, to *Machine, address string) *line {
	t.Helper()
	var l line
	var listener *net.TCPListener
	a := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 7))
	err := ownNet(t, to).Do(func() (err error) { listener, err = net.ListenTCP("tcp", a); return err })
	if err == nil {
		defer listener.Close()
		err = ownNet(t, from).Do(func() (err error) { l.from, err = net.DialTCP("tcp", nil, a); return err })
	}
	if err == nil {
		l.to, err = listener.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.from.Close(); l.to.Close() })
	return &l
}

// carries tells whether a text arrives within a time.
func (l *line) carries(t *testing.T, text string, within time.Duration) bool {
	t.Helper()
	if _, err := io.WriteString(l.from, text); err != nil {
		t.Fatal(err)
	}
	return l.arrives(t, text, within)
}

func (l *line) arrives(t *testing.T, text string, within time.Duration) bool {
	t.Helper()
	l.to.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, len(text))
	n, err := io.ReadFull(l.to, b)
	if err == nil {
		want(t, "what has come through", text, string(b))
		return true
	}
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%q, %v", b[:n], err)
	}
	return false
}

// Partitioned, connections stall; healed, they go on.
func TestVNetPartition(t *testing.T) {
	l := netLab(t)
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24", "fd00::/64")
	var m []*Machine
	for _, name := range []string{"a", "b", "c"} {
		m = append(m, forkNamed(t, l, name, on(v)))
	}
	for _, m := range m {
		pings(t, m, "10.0.0.1", "10.0.0.2", "10.0.0.3")
	}
	four, six := connect(t, m[0], m[2], "10.0.0.3"), connect(t, m[2], m[0], "fd00::1")
	for _, c := range []*line{four, six} {
		want(t, "while it is whole", true, c.carries(t, "one", long))
	}
	if err := v.Partition([][]string{{"a", "b"}, {"c"}}); err != nil {
		t.Fatal(err)
	}
	pings(t, m[0], "10.0.0.2", "fd00::2")
	cannotReach(t, m[2], "10.0.0.1", "fd00::2")
	// Who comes now is in no group, and so in the last one.
	d := forkNamed(t, l, "d", on(v))
	cannotReach(t, d, "10.0.0.1", "10.0.0.3")
	e := forkNamed(t, l, "e", space("netspace"))
	if _, err := v.Attach(t.Context(), e, &Netif{}); err != nil {
		t.Fatal(err)
	}
	pings(t, e, addressOf(t, d, "eth0"))
	cannotReach(t, e, "10.0.0.2")
	// And who comes back is where it was.
	destroy(t, m[1])
	back := forkNamed(t, l, "b", on(v))
	pings(t, back, "10.0.0.1")
	cannotReach(t, back, "10.0.0.3")

	for _, c := range []struct {
		want   string
		groups [][]string
	}{
		{"partition: groups: got \"none\", want at least one list of machines", nil},
		{`partition: groups: got "x", want a machine that is on lan`, [][]string{{"a"}, {"x"}}},
		{`partition: groups: got "a", want it in one group; it is in 1 and 2`, [][]string{{"a"}, {"a"}}},
	} {
		err := v.Partition(c.groups)
		if err == nil {
			t.Fatalf("%v should have been refused", c.groups)
		}
		want(t, "error", c.want, err.Error())
	}
	cannotReach(t, m[2], "10.0.0.1") // still
	for _, c := range []*line{four, six} {
		want(t, "while it is split", false, c.carries(t, "two", 100*time.Millisecond))
	}

	if err := v.Partition([][]string{{"a", "c"}}); err != nil { // in the place of the first
		t.Fatal(err)
	}
	want(t, "together again", true, four.arrives(t, "two", long))
	want(t, "together again, by IPv6", true, six.arrives(t, "two", long))
	cannotReach(t, back, "10.0.0.1")
	for range 2 {
		if err := v.Heal(); err != nil {
			t.Fatal(err)
		}
	}
	pings(t, back, "10.0.0.1", "10.0.0.3", addressOf(t, d, "eth0"))
	want(t, "healed", true, four.carries(t, "three", long))
}

func TestVNetAttach(t *testing.T) {
	l := netLab(t)
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	a := forkNamed(t, l, "a", on(v))
	m := forkNamed(t, l, "m", space("netspace"))
	n, err := v.Attach(t.Context(), m, &Netif{Name: "wan0", MAC: "02:00:00:00:00:09"})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "name and address", "wan0 10.0.0.2/24", n.Name+" "+n.Addresses[0].String())
	contains(t, sh(t, m, "ip link show wan0"), "02:00:00:00:00:09", "state UP")
	pings(t, m, "10.0.0.1")
	_, err = v.Attach(t.Context(), m, &Netif{Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "a second one", "lo wan0 eth0", sh(t, m, "ip -o link | sed 's/[0-9]*: //; s/[@:].*//' | xargs"))

	for what, n := range map[string]*Netif{
		`netif: name: got "wan0", want a name that no other interface of the machine has`:                   {Name: "wan0"},
		`netif: address: got "10.0.0.1", want a free address of vnet lan; this one is a's eth0`:             on(v, "10.0.0.1"),
		`netif: mac: got "02:00:00:00:00:09", want one that is free on vnet lan: m's wan0 has it`:           {MAC: "02:00:00:00:00:09", Bare: true},
		`netif: name: got "averylonginterface", want an interface's name, of at most 15 bytes; this has 18`: {Name: "averylonginterface", Bare: true},
	} {
		if _, err := v.Attach(t.Context(), m, n); err == nil {
			t.Errorf("%v should have been refused", n)
		} else {
			want(t, "error", what, err.Error())
		}
	}
	// A name that the machine has given away by itself is the kernel's to refuse.
	run(t, m, "ip", "link", "add", "mine", "type", "veth", "peer", "name", "mine2")
	if _, err := v.Attach(t.Context(), m, &Netif{Name: "mine", Bare: true}); err == nil {
		t.Error("an interface of that name is there")
	} else {
		want(t, "error", `attach m to lan: netif: name: got "mine", want a name that no other interface of the machine has`, err.Error())
	}
	want(t, "after the refusals", 2, len(m.Netifs()))
	want(t, "taken", 2, len(v.taken))

	if err := v.Detach(m); err != nil {
		t.Fatal(err)
	}
	want(t, "what is left", "lo mine2 mine", sh(t, m, "ip -o link | sed 's/[0-9]*: //; s/[@:].*//' | xargs"))
	want(t, "machines", []string{"a"}, v.Machines())
	want(t, "taken", 1, len(v.taken))
	if err := v.Detach(m); err == nil {
		t.Error("detached twice")
	} else {
		want(t, "error", `detach: m: got "m", want a machine that is on lan`, err.Error())
	}
	// It has a network of its own all the same, and can come back.
	if _, err := v.Attach(t.Context(), m, on(v, "10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	run(t, a, "ip", "neigh", "flush", "all") // which knows it by another MAC
	pings(t, a, "10.0.0.2")

	// The last interface of a machine that had no other reason for a network.
	if err := v.Detach(a); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Attach(t.Context(), a, &Netif{}); err != nil {
		t.Fatal(err)
	}
	pings(t, a, "10.0.0.2")
}

func TestVNetAttachBad(t *testing.T) {
	l := netLab(t)
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	shares := forkNamed(t, l, "shares", space("pidspace"))
	dead, gone := forkNamed(t, l, "dead", space("netspace")), forkNamed(t, l, "gone", space("netspace"))
	if err := dead.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	destroy(t, gone)
	kept := forkNamed(t, l, "m", space("netspace"))
	inner := makeVNet(t, l, kept, &VNetSpec{Name: "inner"}, "10.1.0.0/24")
	for _, c := range []struct {
		want string
		v    *VNet
		m    *Machine
	}{
		{"attach: got shares, which shares its parent's network, want a machine with a network of its own", v, shares},
		{"machine dead: machine is dead", v, dead},
		{"machine gone: machine is dead", v, gone},
		{"attach: host: got the host, want a machine", v, l.Host()},
		{`netif: what: got "inner", want a vnet of m2, or of a machine that it is in; this one lies in m`, inner, forkIn(t, l, l.Host(), &Spec{Name: "m2", Resources: []Resource{space("netspace")}})},
	} {
		_, err := c.v.Attach(t.Context(), c.m, &Netif{})
		if err == nil {
			t.Errorf("%s: should have been refused", c.want)
			continue
		}
		want(t, "error", c.want, err.Error())
		want(t, c.m.Name()+"'s interfaces", 0, len(c.m.Netifs()))
	}
	want(t, "machines on it", 0, len(v.Machines()))
	want(t, "taken", 0, len(v.taken))
	// A machine may be on its own network, as a router would.
	if _, err := inner.Attach(t.Context(), kept, &Netif{}); err != nil {
		t.Fatal(err)
	}
	if err := v.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Attach(t.Context(), kept, &Netif{}); err == nil {
		t.Error("attached to a network that has gone")
	} else {
		want(t, "error", "netif: vnet lan: the network has been destroyed", err.Error())
	}
	for what, err := range map[string]error{"partition": v.Partition([][]string{{"m"}}), "heal": v.Heal(), "detach": v.Detach(kept)} {
		if err == nil || err.Error() != "vnet lan: the network has been destroyed" {
			t.Errorf("%s: got %v", what, err)
		}
	}
	contains(t, refused(t, l, l.Host(), on(v)), "vnet lan: the network has been destroyed")
}

// What goes wrong at the very end of an attach is taken back as well.
func TestVNetAttachHalf(t *testing.T) {
	l := netLab(t)
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	a := forkNamed(t, l, "a", on(v), space("mountspace"))
	tree := smallRoot(t)
	if err := os.MkdirAll(filepath.Join(tree, "etc/hosts"), 0o755); err != nil { // on which no file can be mounted
		t.Fatal(err)
	}
	m := forkNamed(t, l, "m", space("netspace"), &Root{Source: tree, Write: "overlay"})
	_, err := v.Attach(t.Context(), m, &Netif{})
	if err == nil {
		t.Fatal("the names were mounted on a directory")
	}
	contains(t, err.Error(), "attach m to lan: mount the names of its networks on /etc/hosts: ")
	want(t, "its interfaces", 0, len(m.Netifs()))
	want(t, "machines", []string{"a"}, v.Machines())
	want(t, "taken", 1, len(v.taken))
	want(t, "names", "a localhost localhost", names(t, a))
	want(t, "in the machine", 0, len(devices(t, ownNet(t, m))))
}

// The end of a machine, in each way, and what it leaves on the network: nothing.
func TestVNetMachineEnds(t *testing.T) {
	l := netLab(t)
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/29")
	a := forkNamed(t, l, "a", on(v))
	ports := func() int {
		t.Helper()
		return len(devices(t, v.net.ns)) - 1 // the bridge
	}
	for i := range 7 {
		b := forkNamed(t, l, "b", on(v))
		pings(t, b, "10.0.0.1")
		if i%2 == 1 {
			if err := b.Kill(t.Context(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the port has gone", func() bool { return ports() == 1 })
			counts, err := v.Stats()
			if err != nil || len(counts) != 1 {
				t.Errorf("stats: %v, %v, want a's alone", counts, err)
			}
		}
		destroy(t, b)
		want(t, "machines", []string{"a"}, v.Machines())
		want(t, "taken", 1, len(v.taken))
	}
	eventually(t, "the ports have gone", func() bool { return ports() == 1 })

	// An address that it had can be had at once.
	for range 5 {
		b := forkNamed(t, l, "b", on(v, "10.0.0.6"))
		pings(t, a, "10.0.0.6")
		destroy(t, b)
	}

	// One that does not come to be leaves none either.
	for range 3 {
		spec := &Spec{Name: "b", Init: []string{"/no/such/init"}, Resources: []Resource{on(v)}}
		if _, err := l.Fork(t.Context(), l.Host(), spec); err == nil {
			t.Fatal("made without an init")
		}
	}
	want(t, "taken", 1, len(v.taken))
	want(t, "machines", []string{"a"}, v.Machines())
	eventually(t, "the ports have gone", func() bool { return ports() == 1 })

	// A machine that deletes its interface by itself.
	c := forkNamed(t, l, "c", on(v))
	run(t, c, "ip", "link", "del", "eth0")
	counts, err := v.Stats()
	if err != nil || len(counts) != 1 {
		t.Errorf("stats: %v, %v, want a's alone", counts, err)
	}
	for what, err := range map[string]error{"up": c.UpNetif(t.Context(), "eth0", true), "set": c.SetNetif("eth0", lossy(50, 50))} {
		if err == nil {
			t.Errorf("%s: the interface is gone", what)
		}
	}
	if err := v.Detach(c); err != nil {
		t.Error(err)
	}
}

// The network ends while machines are on it: they lose their interfaces.
func TestVNetDestroy(t *testing.T) {
	l := netLab(t)
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	other := makeVNet(t, l, l.Host(), &VNetSpec{Name: "other"}, "10.1.0.0/24")
	a := forkNamed(t, l, "a", on(v), on(other))
	b := forkNamed(t, l, "b", on(other))
	if _, err := l.Link(t.Context(), LinkEnd{VNet: v}, LinkEnd{VNet: other}, Cable{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := v.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "interfaces", "lo eth1", sh(t, a, "ip -o link | sed 's/[0-9]*: //; s/[@:].*//' | xargs"))
	want(t, "as msh knows them", 1, len(a.Netifs()))
	want(t, "cables", 0, len(l.Links()))
	pings(t, a, addressOf(t, b, "eth0"))
	want(t, "networks", true, slices.Equal([]*VNet{other}, l.VNets()))

	// The name is free, and the machine can be on the new one.
	again := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	if _, err := again.Attach(t.Context(), a, &Netif{}); err != nil {
		t.Fatal(err)
	}
	c := forkNamed(t, l, "c", on(again))
	pings(t, c, addressOf(t, a, "eth0"))
}

// A network in a machine ends with it, however the machine ends.
func TestVNetNested(t *testing.T) {
	l := netLab(t)
	nets := func() string {
		left, err := filepath.Glob(filepath.Join(l.dir(), netsDir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range left {
			left[i] = filepath.Base(left[i])
		}
		return strings.Join(left, " ")
	}
	outer := makeVNet(t, l, l.Host(), &VNetSpec{Name: "outer"}, "10.0.0.0/24")
	for i, end := range []func(m *Machine){
		func(m *Machine) { destroy(t, m) },
		func(m *Machine) {
			if err := m.Kill(t.Context(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			destroy(t, m)
		},
	} {
		site := forkNamed(t, l, "site", on(outer), space("pidspace"), &Children{Max: 3})
		lan := makeVNet(t, l, site, &VNetSpec{Name: "lan", NAT: true}, "10.0.0.0/24", "fd00::/64") // the same as outside
		a := forkIn(t, l, site, &Spec{Name: "a", Resources: []Resource{on(lan), space("pidspace"), &Children{Max: 1}}})
		b := forkIn(t, l, a, &Spec{Name: "b", Resources: []Resource{on(lan)}})
		both := forkIn(t, l, site, &Spec{Name: "both", Resources: []Resource{on(lan), on(outer, "10.0.0.99/32")}})
		pings(t, b, addressOf(t, a, "eth0"), addressOf(t, both, "eth0"))
		want(t, "networks", "lan outer", nets())
		want(t, "the parent", "site", lan.Parent().Name())
		contains(t, refused(t, l, l.Host(), on(lan)), `netif: what: got "lan", want a vnet of host, or of a machine that it is in; this one lies in site`)
		end(site)
		want(t, fmt.Sprintf("networks after end %d", i), "outer", nets())
		want(t, "as the lab knows them", 1, len(l.VNets()))
		want(t, "machines", 0, len(outer.Machines()))
		if _, err := lan.Stats(); err == nil {
			t.Error("it is there yet")
		}
	}
	if _, err := l.VNet(t.Context(), func() *Machine { m := forkNamed(t, l, "m", space("netspace")); destroy(t, m); return m }(), &VNetSpec{Name: "x"}); err == nil {
		t.Error("a network in a dead machine")
	} else {
		contains(t, err.Error(), "vnet x: machine m: machine is dead")
	}
}

// A vnet that a kept machine is on is kept with it.
func TestVNetKept(t *testing.T) {
	h := newHost(t)
	keepsNetwork(t)
	l := labOn(t, h, "")
	lan := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	late := makeVNet(t, l, l.Host(), &VNetSpec{Name: "late"}, "10.1.0.0/24")
	makeVNet(t, l, l.Host(), &VNetSpec{Name: "lost"}, "10.2.0.0/24")
	keep := func(name string) *Machine {
		return forkIn(t, l, l.Host(), &Spec{Name: name, Keep: true, Resources: []Resource{on(lan), space("mountspace"), &Children{Max: 1}}})
	}
	a, b := keep("a"), keep("b")
	forkNamed(t, l, "c", on(lan))
	for _, m := range []*Machine{a, b} {
		if _, err := late.Attach(t.Context(), m, &Netif{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Link(t.Context(), LinkEnd{Machine: a, Netif: cableEnd("10.3.0.1/30")}, LinkEnd{Machine: b, Netif: cableEnd("10.3.0.2/30")}, Cable{}); err != nil {
		t.Fatal(err)
	}
	nested := makeVNet(t, l, a, &VNetSpec{Name: "nested"}, "10.4.0.0/24")
	forkIn(t, l, a, &Spec{Name: "inside", Keep: true, Resources: []Resource{on(nested)}})
	want(t, "names while it runs", "a a b b c localhost localhost", names(t, a))
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}

	want(t, "kept", "a b inside", strings.Join(lastNames(machines(t, h)), " "))
	found, err := h.Find("a")
	if err != nil {
		t.Fatal(err)
	}
	pings(t, found, "10.0.0.2", "10.1.0.2", "10.3.0.2")
	want(t, "names afterwards", "a a b b localhost localhost", names(t, found))
	want(t, "what is swept", []string(nil), sweep(t, h, true))
	pings(t, found, "10.0.0.2")
	inside, err := h.Find("inside")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, sh(t, inside, "ip link show eth0"), "state UP")
	inside.Close()
	left, err := filepath.Glob(filepath.Join(h.State, l.Name(), netsDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "networks", ".patch lan late nested", strings.Join(lastNames(left), " "))
	destroy(t, found) // and what lies in it
	found.Close()
	left, _ = filepath.Glob(filepath.Join(h.State, l.Name(), netsDir, "*"))
	want(t, "networks without a", ".patch lan late", strings.Join(lastNames(left), " "))
	if _, err := h.Down(t.Context(), l.Name(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.State, l.Name())); err == nil {
		t.Errorf("left: %v", leftOf(t, h))
	}
}

func lastNames(paths []string) []string {
	var all []string
	for _, p := range paths {
		all = append(all, filepath.Base(p))
	}
	return all
}

// Many at once: forks on one network, and each other's ends.
func TestVNetParallel(t *testing.T) {
	l := netLab(t)
	ctx := t.Context()
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	hub := forkNamed(t, l, "hub", space("netspace"), space("mountspace"))
	together(t, 12, func(i int) error {
		name := fmt.Sprintf("p%d", i)
		m, err := l.Fork(ctx, l.Host(), &Spec{Name: name, Keep: i == 5, Resources: []Resource{&Netif{VNet: "lan"}, space("mountspace")}})
		if err != nil {
			return err
		}
		if _, err := v.Stats(); err != nil {
			return err
		}
		switch i % 4 {
		case 0:
			if _, err := v.Attach(ctx, hub, &Netif{Bare: true}); err != nil {
				return err
			}
		case 1:
			k, err := l.Link(ctx, LinkEnd{Machine: hub, Netif: &Netif{}}, LinkEnd{Machine: m, Netif: &Netif{}}, Cable{})
			if err != nil {
				return err
			}
			if err := k.SetUp(t.Context(), false); err != nil {
				return err
			}
		case 2:
			if err := v.Detach(m); err != nil {
				return err
			}
		case 3:
			if err := v.Partition([][]string{{name}}); err != nil {
				return err
			}
			return v.Heal()
		}
		return m.Destroy(ctx)
	})
	want(t, "machines", 3, len(slices.DeleteFunc(v.Machines(), func(s string) bool { return s == "hub" })))
	want(t, "the hub's interfaces", 6, len(hub.Netifs()))
	want(t, "taken", 3, len(v.taken))
	want(t, "cables, which hang loose", 3, len(l.Links()))
}
