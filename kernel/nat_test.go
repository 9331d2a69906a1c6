package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

// world is a network with a server, and a site on it: a machine whose network is
// that of a host, for networks with nat to lie in.
func world(t *testing.T, l *Lab) (site, server *Machine) {
	t.Helper()
	w := makeVNet(t, l, l.Host(), &VNetSpec{Name: "world"}, "192.0.2.0/24", "2001:db8::/64")
	server = forkNamed(t, l, "server", on(w))
	site = forkNamed(t, l, "site", on(w), &Children{Max: 32})
	run(t, site, "nft", "add table inet mine; add chain inet mine forward { type filter hook forward priority 0; policy accept; }; add rule inet mine forward accept")
	return site, server
}

// Machines reach what their parent reaches, by its address, and are not reached.
func TestNAT(t *testing.T) {
	l := netLab(t)
	site, server := world(t, l)
	own := ownNet(t, site)
	before := networkOf(t, own)
	same := func(when string) {
		t.Helper()
		sameNetwork(t, "the site, "+when, own, before)
	}
	names := []string{"x", "y"}
	for _, first := range []int{0, 1} { // to end
		var nets []*VNet
		var machines []*Machine
		for _, name := range names { // both with the same addresses
			v := makeVNet(t, l, site, &VNetSpec{Name: name, NAT: true}, "10.0.0.0/24", "fd00::/64")
			nets = append(nets, v)
			machines = append(machines, forkIn(t, l, site, &Spec{Name: "in-" + name, Resources: []Resource{on(v)}}))
		}
		reach := func(m *Machine) {
			t.Helper()
			pings(t, m, "10.0.0.1", "fd00::1", "192.0.2.2", "2001:db8::2", "192.0.2.1", "2001:db8::1")
		}
		for _, m := range machines {
			want(t, "address", "10.0.0.2", addressOf(t, m, "eth0"))
			reach(m)
			for address, seen := range map[string]string{"192.0.2.1": "192.0.2.2", "2001:db8::1": "2001:db8::2"} {
				c := connect(t, m, server, address)
				host, _, _ := strings.Cut(strings.TrimPrefix(c.to.RemoteAddr().String(), "["), "]")
				if i := strings.LastIndex(host, ":"); i > 0 && strings.Contains(host, ".") {
					host = host[:i]
				}
				want(t, "who the server thinks "+m.Name()+" is", seen, host)
				want(t, "a connection", true, c.carries(t, "text", long))
			}
		}
		run(t, server, "ip", "route", "replace", "10.0.0.0/24", "via", "192.0.2.2") // had it a way in, the site would have none
		cannotReach(t, server, "10.0.0.2")
		want(t, "what forwards", "0", sh(t, site, "cat /proc/sys/net/ipv4/ip_forward"))
		contains(t, strings.Join(networkOf(t, own), "\n"), "masquerade", "ipv4/conf/eth0/forwarding:1", " mine")

		if err := nets[first].Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		cannotReach(t, machines[first], "192.0.2.1")
		reach(machines[1-first]) // forwards yet
		if first == 0 {
			if err := nets[1].Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			destroy(t, machines[0])
			if err := nets[0].Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			destroy(t, machines[1])
		}
		same(fmt.Sprintf("after both, the end of %s first", names[first]))
		for _, m := range machines {
			destroy(t, m)
		}
	}

	// One family only, while another network has both.
	both := makeVNet(t, l, site, &VNetSpec{Name: "both", NAT: true}, "10.0.0.0/24", "fd00::/64")
	four := makeVNet(t, l, site, &VNetSpec{Name: "four", NAT: true}, "10.0.0.0/24")
	if err := both.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := forkIn(t, l, site, &Spec{Name: "m", Resources: []Resource{on(four)}})
	pings(t, m, "192.0.2.1")
	if err := four.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	same("at last")
	want(t, "claims", 0, claims(t, l.host))
}

func claims(t *testing.T, h *Host) int {
	t.Helper()
	all, err := h.book.Claims("")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// What is on the way is not msh's to take: interfaces and tables of the names that
// it would use, forwarding that is on already.
func TestNATOthers(t *testing.T) {
	l := netLab(t)
	site, _ := world(t, l)
	own := ownNet(t, site)
	run(t, site, "ip", "link", "add", "msh-nat0", "type", "veth", "peer", "name", "mine")
	run(t, site, "nft", "add table inet msh-nat0; add chain inet msh-nat0 mine")
	sh(t, site, "echo 1 >/proc/sys/net/ipv4/conf/eth0/forwarding; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	before := networkOf(t, own)
	v := makeVNet(t, l, site, &VNetSpec{Name: "x", NAT: true}, "10.0.0.0/24", "fd00::/64")
	m := forkIn(t, l, site, &Spec{Name: "m", Resources: []Resource{on(v)}})
	pings(t, m, "192.0.2.1", "2001:db8::1")
	if err := v.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameNetwork(t, "the site", own, before)
}

// A firewall of the parent's that drops what it does not know lets the network's
// packets through, and is as it was afterwards.
func TestNATFirewall(t *testing.T) {
	l := netLab(t)
	site, _ := world(t, l)
	own := ownNet(t, site)
	run(t, site, "nft", "chain inet mine forward { policy drop; }; flush chain inet mine forward")
	before := networkOf(t, own)
	v := makeVNet(t, l, site, &VNetSpec{Name: "x", NAT: true}, "10.0.0.0/24", "fd00::/64")
	m := forkIn(t, l, site, &Spec{Name: "m", Resources: []Resource{on(v)}})
	pings(t, m, "192.0.2.1", "2001:db8::1")
	if err := v.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameNetwork(t, "the site", own, before)
}

// The parent's end takes all with it, also where the network was made by another.
func TestNATParentEnds(t *testing.T) {
	l := netLab(t)
	site, _ := world(t, l)
	v := makeVNet(t, l, site, &VNetSpec{Name: "x", NAT: true}, "10.0.0.0/24")
	inner := forkIn(t, l, site, &Spec{Name: "inner", Resources: []Resource{on(v), &Children{Max: 1}}})
	w := makeVNet(t, l, inner, &VNetSpec{Name: "w", NAT: true}, "10.0.0.0/24")
	m := forkIn(t, l, inner, &Spec{Name: "m", Resources: []Resource{on(w)}})
	pings(t, m, "192.0.2.1") // through both
	destroy(t, site)
	want(t, "claims", 0, claims(t, l.host))
	want(t, "networks", 1, len(l.VNets()))
	entries, err := os.ReadDir(l.dir() + "/" + netsDir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// Many at once, in one parent: whoever ends last puts its parameters back.
func TestNATParallel(t *testing.T) {
	l := netLab(t)
	site, _ := world(t, l)
	own := ownNet(t, site)
	before := networkOf(t, own)
	ctx := t.Context()
	together(t, 8, func(i int) error {
		for range 2 {
			v, err := l.VNet(ctx, site, &VNetSpec{NAT: true, Subnets: prefixes("10.0.0.0/24", "fd00::/64")})
			if err != nil {
				return err
			}
			m, err := l.Fork(ctx, site, &Spec{Resources: []Resource{&Netif{VNet: v.Name()}}})
			if err != nil {
				return err
			}
			for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
				r, err := m.Run(ctx, &Command{Argv: []string{"ping", "-n", "-c1", "-i0.1", "-w5", to}}, nil, long)
				if err != nil || r.Code != 0 {
					return fmt.Errorf("%s does not reach %s: %v", m.Name(), to, err)
				}
			}
			if i%2 == 0 {
				err = m.Destroy(ctx)
			}
			if err := errors.Join(err, v.Destroy(ctx)); err != nil {
				return err
			}
		}
		return nil
	})
	sameNetwork(t, "the site", own, before)
	want(t, "claims", 0, claims(t, l.host))
}

// The legs' networks do not meet, whatever their number.
func TestLegs(t *testing.T) {
	seen := map[netip.Addr]bool{}
	for _, n := range []int{0, 1, 126, 127, 128, 129, 255, 256, 8191, legs - 1} {
		for _, v6 := range []bool{false, true} {
			parent, sw := (&leg{Number: n}).addresses(v6)
			within := legs4
			if v6 {
				within = legs6
			}
			if parent.Masked() != sw.Masked() || parent.Addr().Next() != sw.Addr() || !within.Contains(sw.Addr()) || seen[sw.Addr()] || seen[parent.Addr()] {
				t.Errorf("leg %d: %v and %v", n, parent, sw)
			}
			seen[parent.Addr()], seen[sw.Addr()] = true, true
		}
	}
}

// Where all interfaces have to forward, the way back is: all, then each, and only
// then who listens to advertisements; see netx.NS.Forwarding.
func TestForwardRank(t *testing.T) {
	paths := []string{"net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra", "net/ipv4/conf/eth0/forwarding", "net/ipv6/conf/eth1/forwarding", "net/ipv6/conf/all.x/accept_ra"}
	slices.SortStableFunc(paths, func(a, b string) int { return forwardRank(a) - forwardRank(b) })
	want(t, "order", []string{"net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/all.x/accept_ra", "net/ipv4/conf/eth0/forwarding", "net/ipv6/conf/eth1/forwarding", "net/ipv6/conf/all/forwarding"}, paths)
}
