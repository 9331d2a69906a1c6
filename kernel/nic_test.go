package kernel

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
)

// nicIn makes an interface that can be given away, in a namespace: the end of a
// cable whose other end, far0, is in another. It has addresses, routes, an MTU and
// a MAC that are not the usual ones, and goes with the test.
func nicIn(t *testing.T, ns *netx.NS, name string) (other *netx.NS) {
	t.Helper()
	other, err := netx.Make(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	for _, ns := range []*netx.NS{ns, other} {
		inNS(t, ns, "/bin/sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
	}
	if err := ns.AddVeth(netx.Veth{End: netx.End{Name: name}, Far: netx.End{Name: "far0", Index: 5}, FarNS: other}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inNS(t, ns, "/bin/sh", "-c", "ip link del "+name+" 2>/dev/null || true") })
	inNS(t, other, "/bin/sh", "-ec", "ip link set far0 up; ip addr add 10.7.0.9/24 dev far0; ip addr add fd07::9/64 dev far0; ip addr add 192.0.2.9/32 dev far0; ip link set lo up")
	inNS(t, ns, "/bin/sh", "-ec", `n=`+name+`
ip link set $n address 02:00:00:00:07:01 mtu 1440 up
ip addr add 10.7.0.1/24 brd + dev $n; ip addr add 10.7.0.2/24 dev $n; ip addr add fd07::1/64 dev $n
ip route add 192.0.2.0/24 via 10.7.0.9 metric 7; ip route add 198.51.100.0/24 dev $n table 77; ip route add 2001:db8::/32 via fd07::9
echo 0 >/proc/sys/net/ipv4/conf/$n/accept_redirects`)
	return other
}

func inParent(device string) *Netif { return &Netif{Device: device, Exclusive: true} }

func withAddresses(n *Netif, addresses ...string) *Netif {
	n.Addresses = cableEnd(addresses...).Addresses
	return n
}

// netOf is the namespace of a machine's network, or the host's.
func netOf(t *testing.T, m *Machine) *netx.NS {
	t.Helper()
	if m.isHost() {
		return ownNet(t, nil)
	}
	return ownNet(t, m)
}

// An interface of the parent's, and how it comes back.
func TestNICExclusive(t *testing.T) {
	l := netLab(t)
	for _, c := range []struct {
		where  string
		parent func() *Machine
	}{
		{"of the host's", l.Host},
		{"of a machine's", func() *Machine { return forkNamed(t, l, "parent", space("netspace"), &Children{Max: 3}) }},
	} {
		t.Run(c.where, func(t *testing.T) {
			parent := c.parent()
			ns := netOf(t, parent)
			other := nicIn(t, ns, "nic0")
			before := networkOf(t, ns)
			back := func(when string) {
				t.Helper()
				sameNetwork(t, "the parent's network, "+when, ns, before)
				want(t, "claims", 0, claims(t, l.host))
			}
			give := func(n *Netif, rs ...Resource) *Machine {
				t.Helper()
				m := forkIn(t, l, parent, &Spec{Resources: append(rs, n, &Children{Max: 2})})
				if ns.Has("nic0") {
					t.Error("the parent has it yet")
				}
				return m
			}
			m := give(withAddresses(inParent("nic0"), "10.7.0.1/24", "fd07::1/64"))
			contains(t, sh(t, m, "ip -d link show nic0"), "state UP", "02:00:00:00:07:01", "mtu 1440")
			want(t, "routes", "10.7.0.0/24 dev nic0 proto kernel scope link src 10.7.0.1", sh(t, m, "ip route"))
			pings(t, m, "10.7.0.9", "fd07::9")
			for text, rs := range map[string][]Resource{
				`: netif: what: "nic0": ` + m.ID() + " has it":                 {inParent("nic0")},
				`: netif: what: "nic1": interface nic1: not there; there are `: {inParent("nic1")},
			} {
				contains(t, refused(t, l, parent, rs...), text)
			}
			contains(t, refusedVNet(t, l, parent, &VNetSpec{Name: "x", Uplink: "nic0"}), `"nic0": `+m.ID()+" has it")
			if list, err := parent.Resources("netif"); err != nil {
				t.Error(err)
			} else if i := slices.IndexFunc(list, func(a Available) bool { return a.Name == "nic0" }); i < 0 || list[i].Owner != m.ID() || list[i].Available {
				t.Errorf("listed as %+v", list)
			}
			destroy(t, m)
			back("after the machine's end")

			// Changed by whom it was given to, under another name.
			m = give(&Netif{Device: "nic0", Exclusive: true, Name: "wan", MAC: "02:00:00:00:00:55", MTU: 1300})
			contains(t, sh(t, m, "ip -d link show wan"), "02:00:00:00:00:55", "mtu 1300")
			sh(t, m, "ip link set wan down; ip link set wan name x9 mtu 900 address 02:00:00:00:00:56 txqueuelen 7; ip addr add 172.16.0.1/12 dev x9; ip link set x9 promisc on")
			destroy(t, m)
			back("changed")

			// Its machine's init is killed, and with it all that holds its network.
			m = give(inParent("nic0"), space("pidspace"))
			if err := m.Kill(t.Context(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "init is dead", func() bool { return m.State() == "dead" })
			contains(t, refused(t, l, parent, inParent("nic0")), m.ID()+" has it")
			destroy(t, m)
			back("after init was killed")

			// Given on, from machine to machine; the outer one ends first.
			m = give(inParent("nic0"))
			inner := forkIn(t, l, m, &Spec{Resources: []Resource{withAddresses(inParent("nic0"), "10.7.0.77/24"), &Children{Max: 1}}})
			innermost := forkIn(t, l, inner, &Spec{Resources: []Resource{withAddresses(inParent("nic0"), "10.7.0.78/24")}})
			pings(t, innermost, "10.7.0.9")
			contains(t, refused(t, l, m, inParent("nic0")), inner.ID()+" has it")
			destroy(t, innermost)
			pings(t, inner, "10.7.0.9")
			destroy(t, inner)
			want(t, "what the outer one has", []string{"nic0"}, devices(t, ownNet(t, m)))
			inner = forkIn(t, l, m, &Spec{Resources: []Resource{inParent("nic0")}})
			if err := m.Kill(t.Context(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			destroy(t, m)
			want(t, "the inner one", "dead", inner.State())
			back("given on")

			// A port of a switch, in the place of a machine's.
			v := makeVNet(t, l, parent, &VNetSpec{Name: "up", Uplink: "nic0"}, "10.7.0.0/24")
			on1, on2 := forkIn(t, l, parent, &Spec{Resources: []Resource{on(v)}}), forkIn(t, l, parent, &Spec{Resources: []Resource{on(v)}})
			pings(t, on1, "10.7.0.9", addressOf(t, on2, "eth0"))
			pings(t, on2, "10.7.0.9")
			inNS(t, other, "ping", "-n", "-c1", "-w5", addressOf(t, on1, "eth0"))
			contains(t, refused(t, l, parent, inParent("nic0")), l.Name()+"/up has it")
			contains(t, refusedVNet(t, l, parent, &VNetSpec{Name: "x", Uplink: "nic0"}), l.Name()+"/up has it")
			if err := v.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			back("as an uplink")
			destroy(t, on1)
			destroy(t, on2)

			// Given, and from there an uplink of a network that lies in the machine.
			m = give(inParent("nic0"))
			v = makeVNet(t, l, m, &VNetSpec{Name: "inner", Uplink: "nic0"}, "10.7.0.0/24")
			pings(t, forkIn(t, l, m, &Spec{Resources: []Resource{on(v)}}), "10.7.0.9")
			destroy(t, m)
			back("as an uplink of a machine's")
		})
	}
}

// What cannot be taken, or must not.
func TestNICBad(t *testing.T) {
	l := netLab(t)
	parent := forkNamed(t, l, "parent", space("netspace"), &Children{Max: 3})
	ns := ownNet(t, parent)
	nicIn(t, ns, "nic0")
	sh(t, parent, `ip link add br0 type bridge; ip link add p0 type veth peer name q0; ip link set p0 master br0; ip link set br0 up; ip link set p0 up
		ip link set q0 up; ip link add mv0 link q0 type macvlan; ip link add down0 type veth peer name down1; ip route add default via 10.7.0.9`)
	before := networkOf(t, ns)
	for _, c := range []struct {
		want string
		n    *Netif
	}{
		{`machine m: netif: what: got "nic0", want another interface: by this one go all default routes of parent`, inParent("nic0")},
		{`machine m: netif: what: "gone0": interface gone0: not there; there are br0, down0, down1, lo, mv0, nic0, p0, q0`, inParent("gone0")},
		{`machine m: netif: what: "p0": interface p0: it is a port of the bridge br0; take it out first (ip link set p0 nomaster)`, inParent("p0")},
		{`machine m: netif: what: "br0": interface br0: the kernel does not let it leave its network namespace: a bridge, bond, team, VRF or other local interface (netns-local) stays; give one of its ports instead`, inParent("br0")},
		{`machine m: netif: mtu: got 1501, want one that mv0 can have: invalid argument`, &Netif{Device: "mv0", Exclusive: true, MTU: 1501}},
		{`machine m: netif: what: "gone0": interface gone0: not there; there are br0, down0, down1, lo, mv0, nic0, p0, q0`, &Netif{Device: "gone0", Share: "macvlan"}},
		{`machine m: netif down0: share down0 by macvlan: it is down, and so would be all that share it: ip link set down0 up`, &Netif{Device: "down0", Share: "macvlan"}},
		{`machine m: netif nic0: share nic0 by macvlan: got an MTU of 1441, want at most its own, 1440`, &Netif{Device: "nic0", Share: "macvlan", MTU: 1441}},
		{`machine m: netif p0: share p0 by macvlan: it is a port of the bridge br0, which takes all that comes in: share br0 by bridge`, &Netif{Device: "p0", Share: "macvlan"}},
		{`machine m: netif nic0: share the bridge nic0: got a veth, want a bridge; share it by macvlan`, &Netif{Device: "nic0", Share: "bridge"}},
		{`machine m: netif br0: share the bridge br0: got an MTU of 1501, want at most its own, 1500`, &Netif{Device: "br0", Share: "bridge", MTU: 1501}},
	} {
		m, err := l.Fork(t.Context(), parent, &Spec{Name: "m", Resources: []Resource{c.n}})
		if err == nil {
			destroy(t, m)
			t.Errorf("%s: it was made", c.want)
			continue
		}
		want(t, "error", c.want, err.Error())
		sameNetwork(t, "the parent's network", ns, before)
	}
	want(t, "uplink", `vnet x: uplink: got "nic0", want another interface: by this one go all default routes of parent`, refusedVNet(t, l, parent, &VNetSpec{Name: "x", Uplink: "nic0"}))
	want(t, "claims", 0, claims(t, l.host))

	// Two of the same name: the second is refused, and the first comes back.
	lan := makeVNet(t, l, parent, &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	_, err := l.Fork(t.Context(), parent, &Spec{Name: "m", Resources: []Resource{&Netif{VNet: "lan", Name: "nic0"}, &Netif{Device: "nic0", Exclusive: true, Force: true}}})
	if err == nil {
		t.Fatal("two interfaces of one name")
	}
	want(t, "error", `netif: name: got "nic0", want a name that no other interface of the machine has`, err.Error())
	want(t, "taken", 0, len(lan.taken))

	// With force it goes, and the default route comes back with it.
	forced := &Netif{Device: "nic0", Exclusive: true, Force: true}
	m := forkIn(t, l, parent, &Spec{Name: "m", Resources: []Resource{forced, on(lan)}})
	want(t, "the machine's interfaces", []string{"eth0", "nic0"}, devices(t, ownNet(t, m)))
	destroy(t, m)
	v := makeVNet(t, l, parent, &VNetSpec{Name: "x", Uplink: "nic0", Force: true})
	if err := v.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameNetwork(t, "the parent's network", ns, before)
}

// Its home is gone before it comes back, or it is gone itself: nothing holds up
// the end.
func TestNICGone(t *testing.T) {
	l := netLab(t)
	parent := forkNamed(t, l, "parent", space("netspace"), &Children{Max: 1})
	nicIn(t, ownNet(t, parent), "nic0")
	m := forkIn(t, l, parent, &Spec{Resources: []Resource{inParent("nic0")}})
	if err := parent.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	destroy(t, m)
	destroy(t, parent)
	want(t, "claims", 0, claims(t, l.host))

	nicIn(t, ownNet(t, nil), "nic0")
	m = forkNamed(t, l, "m", inParent("nic0"))
	run(t, m, "ip", "link", "del", "nic0")
	destroy(t, m)
	want(t, "claims", 0, claims(t, l.host))
}

// Interfaces beside the parent's, and the parent none the wiser.
func TestNICShared(t *testing.T) {
	l := netLab(t)
	parent := forkNamed(t, l, "parent", space("netspace"), &Children{Max: 8})
	ns := ownNet(t, parent)
	other := nicIn(t, ns, "nic0")
	sh(t, parent, "ip link add br0 type bridge; ip link set br0 up; ip addr add 10.8.0.1/24 dev br0; ip link add p0 type veth peer name q0; ip link set p0 up master br0; ip link set q0 up")
	bridged := func() int { return strings.Count(sh(t, parent, "ip -o link show master br0")+"\n", "\n") }
	before := networkOf(t, ns)
	for _, share := range []string{"macvlan", "ipvlan"} {
		t.Run(share, func(t *testing.T) {
			two := func(n *Netif) *Machine {
				m, err := l.Fork(t.Context(), parent, &Spec{Resources: []Resource{n}})
				if err != nil {
					needs(t, err)
					t.Fatal(err)
				}
				return m
			}
			a := two(withAddresses(&Netif{Device: "nic0", Share: share}, "10.7.0.11/24", "fd07::11/64"))
			b := two(withAddresses(&Netif{Device: "nic0", Share: share, Name: "lan0", MTU: 1400}, "10.7.0.12/24"))
			pings(t, a, "10.7.0.9", "fd07::9", "10.7.0.12")
			pings(t, b, "10.7.0.9", "10.7.0.11")
			inNS(t, other, "ping", "-n", "-c1", "-w5", "10.7.0.11")
			cannotReach(t, a, "10.7.0.1") // the parent itself
			contains(t, sh(t, a, "ip -d link show eth0"), "mtu 1440", share)
			contains(t, sh(t, b, "ip -d link show lan0"), "mtu 1400")
			n, err := a.Netif("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if mac := sh(t, a, "cat /proc/self/net/arp >/dev/null; ip -o link show eth0 | sed 's/.*ether //; s/ .*//'"); share == "macvlan" && mac != n.HardwareAddr || share == "ipvlan" && mac != "02:00:00:00:07:01" {
				t.Errorf("%s: MAC %s, settled %q", share, mac, n.HardwareAddr)
			}
			if err := a.UpNetif(t.Context(), "eth0", false); err != nil {
				t.Error(err)
			}
			if err := a.UpNetif(t.Context(), "eth0", true); err != nil {
				t.Error(err)
			}
			pings(t, a, "10.7.0.9", "fd07::9")
			destroy(t, a)
			pings(t, b, "10.7.0.9")
			destroy(t, b)
			sameNetwork(t, "the parent's network", ns, before)
		})
	}
	t.Run("bridge", func(t *testing.T) {
		a := forkIn(t, l, parent, &Spec{Resources: []Resource{withAddresses(&Netif{Device: "br0", Share: "bridge", MAC: "02:00:00:00:00:33"}, "10.8.0.2/24")}})
		b := forkIn(t, l, parent, &Spec{Resources: []Resource{withAddresses(&Netif{Device: "br0", Share: "bridge"}, "10.8.0.3/24")}})
		pings(t, a, "10.8.0.1", "10.8.0.3")
		pings(t, parent, "10.8.0.3")
		contains(t, sh(t, a, "ip link show eth0"), "02:00:00:00:00:33")
		// What a link does to the traffic it does in the machine, where there is no port of msh's.
		if err := a.SetNetif("eth0", lossy(100, 0)); err != nil {
			t.Fatal(err)
		}
		cannotReach(t, a, "10.8.0.3")
		if err := a.SetNetif("eth0", lossy(0, 0)); err != nil {
			t.Fatal(err)
		}
		pings(t, a, "10.8.0.3")
		if err := a.Kill(t.Context(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its port has gone", func() bool { return bridged() == 2 })
		destroy(t, a)
		destroy(t, b)
		sameNetwork(t, "the parent's network", ns, before)
	})
}

// The pin of a network that has an interface of the parent's goes with the machine.
func TestNICPin(t *testing.T) {
	l := netLab(t)
	nicIn(t, ownNet(t, nil), "nic0")
	m := forkNamed(t, l, "m", inParent("nic0"))
	pin := filepath.Join(m.Dir(), pinFile)
	if ns, err := netx.Open(pin); err != nil {
		t.Error(err)
	} else {
		ns.Close()
	}
	lan := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	plain := forkNamed(t, l, "plain", on(lan))
	if _, err := os.Stat(filepath.Join(plain.Dir(), pinFile)); err == nil {
		t.Error("a network without one is pinned as well: it would outlive its machine")
	}
	destroy(t, m)
	if _, err := os.Stat(pin); err == nil {
		t.Error("the pin is there yet")
	}
}
