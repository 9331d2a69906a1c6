package kernel

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// What a lab hands out is settled without asking the kernel: these tests need no
// root.

// paperLab is a lab whose networks stand on paper only.
func paperLab() *Lab {
	l := &Lab{name: "paper", names: map[string]bool{}}
	l.root = with(&Spec{Name: "host"}, &Machine{lab: l, pidfd: -1})
	return l
}

// onPaper plans a vnet.
func onPaper(t *testing.T, l *Lab, spec *VNetSpec, subnets ...string) *VNet {
	t.Helper()
	spec.Subnets = prefixes(subnets...)
	v, err := l.PlanVNet(l.root, spec)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// on is an interface on a vnet, with those addresses; none are the vnet's next.
func on(v *VNet, addresses ...string) *Netif {
	n := &Netif{VNet: v.Name()}
	for _, s := range addresses {
		a, err := ParseAddress(s)
		if err != nil {
			panic(err)
		}
		n.Addresses = append(n.Addresses, a)
	}
	return n
}

// handOut settles an interface and tells what it has got, or why it got nothing.
func handOut(l *Lab, n *Netif, machine string, others ...*Netif) string {
	c := *n
	if err := l.settleOne(l.root, &c, others, machine); err != nil {
		return "error: " + err.Error()
	}
	*n = c
	words := []string{c.Name}
	for _, a := range c.Addresses {
		words = append(words, a.String())
	}
	for _, g := range c.Gateways {
		words = append(words, "via "+g.String())
	}
	return strings.Join(words, " ")
}

func TestHandOut(t *testing.T) {
	for _, c := range []struct {
		name    string
		nat     bool
		subnets []string
		asked   [][]string // of one machine after the other
		want    []string
	}{
		{"v4", false, []string{"10.0.0.0/24"}, [][]string{nil, nil}, []string{"eth0 10.0.0.1/24", "eth0 10.0.0.2/24"}},
		{"v6", false, []string{"fd00::/64"}, [][]string{nil, nil}, []string{"eth0 fd00::1/64", "eth0 fd00::2/64"}},
		{"both", false, []string{"10.0.0.0/24", "fd00::/64"}, [][]string{nil, nil}, []string{"eth0 10.0.0.1/24 fd00::1/64", "eth0 10.0.0.2/24 fd00::2/64"}},
		{"no subnet", false, nil, [][]string{nil, {"192.0.2.1/24"}}, []string{"eth0", "eth0 192.0.2.1/24"}},
		{"the gateway is the first", true, []string{"10.0.0.0/24", "fd00::/64"}, [][]string{nil, nil},
			[]string{"eth0 10.0.0.2/24 fd00::2/64 via 10.0.0.1 via fd00::1", "eth0 10.0.0.3/24 fd00::3/64 via 10.0.0.1 via fd00::1"}},
		{"a gateway only of the families it has", true, []string{"10.0.0.0/24", "fd00::/64"}, [][]string{{"fd00::9"}}, []string{"eth0 fd00::9/64 via fd00::1"}},
		{"those asked for are passed over", false, []string{"10.0.0.0/24"}, [][]string{{"10.0.0.1"}, {"10.0.0.3/24"}, nil, nil},
			[]string{"eth0 10.0.0.1/24", "eth0 10.0.0.3/24", "eth0 10.0.0.2/24", "eth0 10.0.0.4/24"}},
		{"full", false, []string{"10.0.0.0/30"}, [][]string{nil, nil, nil},
			[]string{"eth0 10.0.0.1/30", "eth0 10.0.0.2/30", "error: netif: address: the subnet 10.0.0.0/30 of vnet n1 is full: 2 addresses are taken"}},
		{"full, with a gateway", true, []string{"10.0.0.0/30"}, [][]string{nil, nil},
			[]string{"eth0 10.0.0.2/30 via 10.0.0.1", "error: netif: address: the subnet 10.0.0.0/30 of vnet n1 is full: 2 addresses are taken"}},
		{"the second subnet is full", false, []string{"10.0.0.0/24", "10.1.0.0/31"}, [][]string{nil, nil, nil, {"10.0.0.3"}},
			[]string{"eth0 10.0.0.1/24 10.1.0.0/31", "eth0 10.0.0.2/24 10.1.0.1/31", "error: netif: address: the subnet 10.1.0.0/31 of vnet n1 is full: 2 addresses are taken", "eth0 10.0.0.3/24"}},
		{"/31", false, []string{"10.0.0.0/31"}, [][]string{nil, nil, nil},
			[]string{"eth0 10.0.0.0/31", "eth0 10.0.0.1/31", "error: netif: address: the subnet 10.0.0.0/31 of vnet n1 is full: 2 addresses are taken"}},
		{"/31 with a gateway", true, []string{"10.0.0.0/31"}, [][]string{nil}, []string{"eth0 10.0.0.0/31 via 10.0.0.1"}},
		{"/127", false, []string{"fd00::/127"}, [][]string{nil, nil}, []string{"eth0 fd00::/127", "eth0 fd00::1/127"}},
		{"/126 keeps the routers' anycast address", false, []string{"fd00::/126"}, [][]string{nil, nil, nil, nil},
			[]string{"eth0 fd00::1/126", "eth0 fd00::2/126", "eth0 fd00::3/126", "error: netif: address: the subnet fd00::/126 of vnet n1 is full: 3 addresses are taken"}},
		{"taken", false, []string{"10.0.0.0/24"}, [][]string{nil, {"10.0.0.1"}}, []string{"eth0 10.0.0.1/24", `error: netif: address: got "10.0.0.1", want a free address of vnet n1; this one is m0's eth0`}},
		{"the gateway's", true, []string{"10.0.0.0/24"}, [][]string{{"10.0.0.1"}}, []string{`error: netif: address: got "10.0.0.1", want a free address of vnet n1; this one is the gateway`}},
		{"outside", false, []string{"10.0.0.0/24", "fd00::/64"}, [][]string{{"10.0.1.1/24"}, {"10.0.1.1"}, {"fd01::1"}, {"10.0.0.7", "fd01::1/64"}, {"10.0.0.7"}}, []string{
			`error: netif: address: got "10.0.1.1", want an address of vnet n1; this is outside n1's [10.0.0.0/24 fd00::/64]`,
			`error: netif: address: got "10.0.1.1", want with its prefix length: the address is outside n1's [10.0.0.0/24 fd00::/64]`,
			`error: netif: address: got "fd01::1", want with its prefix length: the address is outside n1's [10.0.0.0/24 fd00::/64]`,
			`error: netif: address: got "fd01::1", want an address of vnet n1; this is outside n1's [10.0.0.0/24 fd00::/64]`,
			"eth0 10.0.0.7/24", // which the one before has given back
		}},
		{"of a family that the vnet has no subnet of", false, []string{"10.0.0.0/24"}, [][]string{{"fd00::1/64"}, {"fd00::1"}},
			[]string{"eth0 fd00::1/64", `error: netif: address: got "fd00::1", want with its prefix length: the address is outside n1's [10.0.0.0/24]`}},
		{"without a subnet or a length", false, nil, [][]string{{"10.0.0.1"}}, []string{`error: netif: address: got "10.0.0.1", want with its prefix length: the address is on vnet n1, which has no subnet`}},
		{"first and last", false, []string{"10.0.0.0/24", "fd00::/64"}, [][]string{{"10.0.0.0"}, {"10.0.0.255"}, {"fd00::"}, {"fd00::ffff:ffff:ffff:ffff"}}, []string{
			`error: netif: address: got "10.0.0.0", want an address that a machine can have: it is the first or last of 10.0.0.0/24`,
			`error: netif: address: got "10.0.0.255", want an address that a machine can have: it is the first or last of 10.0.0.0/24`,
			`error: netif: address: got "fd00::", want an address that a machine can have: it is the first or last of fd00::/64`,
			"eth0 fd00::ffff:ffff:ffff:ffff/64",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := paperLab()
			v := onPaper(t, l, &VNetSpec{NAT: c.nat}, c.subnets...)
			for i, asked := range c.asked {
				want(t, fmt.Sprintf("machine %d", i), c.want[i], handOut(l, on(v, asked...), fmt.Sprintf("m%d", i)))
			}
		})
	}
}

// An address that has come back is the last one to be handed out again: who still
// knows it would reach another machine.
func TestHandOutAgain(t *testing.T) {
	l := paperLab()
	v := onPaper(t, l, &VNetSpec{}, "10.0.0.0/29")
	var all []*Netif
	for i := range 4 {
		n := on(v)
		want(t, "first round", fmt.Sprintf("eth0 10.0.0.%d/29", i+1), handOut(l, n, "m"))
		all = append(all, n)
	}
	l.unsettle(all[1:2])
	for _, last := range []int{5, 6, 2} {
		want(t, "next", fmt.Sprintf("eth0 10.0.0.%d/29", last), handOut(l, on(v), "m"))
	}
	contains(t, handOut(l, on(v), "m"), "is full: 6 addresses are taken")
	l.unsettle(all)
	want(t, "all given back", "eth0 10.0.0.1/29", handOut(l, on(v), "m"))
	want(t, "one of them by name", "eth0 10.0.0.3/29", handOut(l, on(v, "10.0.0.3"), "m"))
}

// What a machine that is not made had reserved is free again.
func TestSettleFails(t *testing.T) {
	l := paperLab()
	v := onPaper(t, l, &VNetSpec{}, "10.0.0.0/29")
	s := &Spec{Resources: []Resource{on(v), &Pids{Max: 5}, on(v, "10.0.0.1")}}
	err := l.settle(l.root, s, "m")
	if err == nil {
		t.Fatal("one address for two interfaces")
	}
	want(t, "error", `netif: address: got "10.0.0.1", want a free address of vnet n1; this one is m's eth0`, err.Error())
	want(t, "taken", 0, len(v.taken))
	s.Resources = s.Resources[:2]
	if err := l.settle(l.root, s, "m"); err != nil {
		t.Fatal(err)
	}
	want(t, "taken", 1, len(v.taken))
	want(t, "the caller's spec", 1, len(netifsOf(s)))
}

func TestSettle(t *testing.T) {
	l := paperLab()
	lan := onPaper(t, l, &VNetSpec{Name: "lan", NAT: true, MTU: 1400}, "10.0.0.0/24", "fd00::/64")
	dmz := onPaper(t, l, &VNetSpec{Name: "dmz", NAT: true}, "10.1.0.0/24")
	low := onPaper(t, l, &VNetSpec{Name: "low"}, "10.0.0.0/16")
	first := on(lan)
	want(t, "first", "eth0 10.0.0.2/24 fd00::2/64 via 10.0.0.1 via fd00::1", handOut(l, first, "m"))
	want(t, "its MTU is the vnet's", 1400, first.MTU)
	want(t, "IPv6", true, first.IPv6)
	want(t, "the second has the next name, and no default route", "eth1 10.1.0.2/24", handOut(l, on(dmz), "m", first))
	dev := &Netif{Device: "enp1s0", Exclusive: true}
	want(t, "a real one keeps its name", "enp1s0", handOut(l, dev, "m", first))
	want(t, "and its MAC", "", dev.HardwareAddr)
	want(t, "the address of ipvlan is the device's", "eth0", handOut(l, &Netif{Device: "enp1s0", Share: "ipvlan"}, "m"))
	again := on(lan)
	handOut(l, again, "m")
	want(t, "the MAC is made of the names", first.HardwareAddr, again.HardwareAddr)
	other := on(lan)
	handOut(l, other, "o")
	if mac := other.mac(); other.HardwareAddr == first.HardwareAddr || mac[0]&3 != 2 {
		t.Errorf("MACs %v and %v, want two that are locally administered and no group's", first.HardwareAddr, mac)
	}

	gate := func(addresses []string, gateways ...string) *Netif {
		n := on(low, addresses...)
		for _, g := range gateways {
			n.Gateway = append(n.Gateway, netip.MustParseAddr(g))
		}
		return n
	}
	named := func(n *Netif, name string) *Netif { n.Name = name; return n }
	for _, c := range []struct {
		what, want string
		n          *Netif
		others     []*Netif
	}{
		{"a name twice", `error: netif: name: got "eth0", want a name that no other interface of the machine has`, named(on(dmz), "eth0"), []*Netif{first}},
		{"a gateway of its own", "eth0 10.0.0.9/16 via 10.0.5.5", gate([]string{"10.0.0.9"}, "10.0.5.5"), nil},
		{"a link-local gateway", "eth0 10.0.0.10/16 via fe80::1", gate([]string{"10.0.0.10"}, "fe80::1"), nil},
		{"a gateway elsewhere", `error: netif: gateway: got "10.9.0.1", want an address of a network that eth0 is in: 10.0.0.0/16`, gate([]string{"10.0.0.11"}, "10.9.0.1"), nil},
		{"a network in a larger one", "eth1 10.0.0.1/16", on(low), []*Netif{first}},
		{"the same network twice, on one vnet", "eth1 10.0.0.5/24 fd00::5/64", on(lan), []*Netif{first}},
		{"the same network twice, on two", `error: netif: address: got "10.0.0.50/24", want another network than 10.0.0.2/24 of eth0`, on(low, "10.0.0.50/24"), []*Netif{first}},
		{"a host's address in another's network", "eth1 10.0.3.4/32", on(low, "10.0.3.4/32"), []*Netif{first}},
		{"an MTU that the vnet does not have", "error: netif: mtu: got 1500, want at most 1400: vnet lan has no more", &Netif{VNet: "lan", MTU: 1500}, nil},
		{"a vnet that has gone", "error: netif: vnet gone: the network has been destroyed", &Netif{VNet: "gone"}, nil},
	} {
		before := len(lan.taken) + len(dmz.taken) + len(low.taken)
		got := handOut(l, c.n, "m", c.others...)
		want(t, c.what, c.want, got)
		if after := len(lan.taken) + len(dmz.taken) + len(low.taken); strings.HasPrefix(got, "error") && after != before {
			t.Errorf("%s: an address has been taken", c.what)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for text, say := range map[string]string{
		"10.0.0.2/24": "10.0.0.2/24", "10.0.0.2": "10.0.0.2/0", "fd00::2/64": "fd00::2/64", "fd00::2": "fd00::2/0", "10.0.0.2/32": "10.0.0.2/32",
	} {
		a, err := ParseAddress(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		want(t, text, say, a.String())
	}
	for _, text := range []string{"", "x", "10.0.0.2/", "10.0.0.2/33", "10.0.0.2/0", "10.0.0", "10.0.0.256", "fe80::1%eth0", "fe80::1%eth0/64", "fd00::/129", " 10.0.0.2/24", "10.0.0.2/24\n"} {
		if a, err := ParseAddress(text); err == nil {
			t.Errorf("%q: got %v, want an error", text, a)
		} else {
			want(t, text, fmt.Sprintf(`got %q, want an address, as "10.0.0.2/24" or "fd00::2/64"`, text), err.Error())
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"10.0.0.2/24", "fd00::2", "::ffff:1.2.3.4/96", "fe80::1%x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAddress(text)
		if err != nil {
			return
		}
		if !a.Addr().IsValid() || a.Addr().Zone() != "" || a.Bits() < 0 || a.Bits() > a.Addr().BitLen() {
			t.Errorf("%q: got %v", text, a)
		}
		v := &VNet{lab: paperLab(), spec: &VNetSpec{Name: "v", Subnets: prefixes("10.0.0.0/24", "fd00::/64")}, taken: map[netip.Addr]string{}, cursor: make([]netip.Addr, 2)}
		n := &Netif{VNet: "v", Addresses: []Address{a}}
		if v.reserve(n, "m") != nil && len(v.taken) > 0 {
			t.Errorf("%q: refused, but %v is taken", text, v.taken)
		}
	})
}
