package kernel

import (
	"net/netip"
	"strings"
	"testing"

	"msh/kernel/netx"
)

func TestNetifBad(t *testing.T) {
	a := func(texts ...string) *Netif { n := cableEnd(texts...); n.VNet = "lan"; return n }
	g := func(texts ...string) *Netif {
		n := &Netif{VNet: "lan"}
		for _, s := range texts {
			n.Gateway = append(n.Gateway, netip.MustParseAddr(s))
		}
		return n
	}
	for _, c := range []struct {
		want string
		n    *Netif
	}{
		{`netif: what: got "", want an interface's name: no blanks, no / : or %`, &Netif{}},
		{`netif: what: got "averylonginterface", want an interface's name, of at most 15 bytes; this has 18`, &Netif{Device: "averylonginterface", Exclusive: true}},
		{`netif: what: got "lo", want another interface: each network universe has a loopback of its own`, &Netif{Device: "lo", Exclusive: true}},
		{`netif: what: got "eth0", want how the parent's interface is taken: exclusive=True, or shared=`, &Netif{Device: "eth0"}},
		{`netif: exclusive: got "True", want an interface of the parent's: one on a vnet is the machine's alone`, &Netif{VNet: "lan", Exclusive: true}},
		{`netif: shared: got "macvlan", want an interface of the parent's: a vnet is shared by plugging in`, &Netif{VNet: "lan", Share: "macvlan"}},
		{`netif: shared: got "macvlan", want one of exclusive and shared`, &Netif{Device: "eth0", Exclusive: true, Share: "macvlan"}},
		{`netif: shared: got "vlan", want one of macvlan ipvlan bridge`, &Netif{Device: "eth0", Share: "vlan"}},
		{`netif: name: got "averylonginterface", want an interface's name, of at most 15 bytes; this has 18`, &Netif{VNet: "lan", Name: "averylonginterface"}},
		{`netif: name: got "lo", want another name: lo is the loopback`, &Netif{VNet: "lan", Name: "lo"}},
		{`netif: name: got "eth%d", want an interface's name: no blanks, no / : or %`, &Netif{VNet: "lan", Name: "eth%d"}},
		{`netif: name: got "..", want an interface's name: no blanks, no / : or %`, &Netif{VNet: "lan", Name: ".."}},
		{`netif: name: got "ä", want an interface's name: no blanks, no / : or %`, &Netif{VNet: "lan", Name: "ä"}},
		{`netif: name: got "all", want another name: the kernel's parameters for all interfaces are called so`, &Netif{VNet: "lan", Name: "all"}},
		{`netif: mtu: got 67, want 68 to 65535 bytes`, &Netif{VNet: "lan", MTU: 67}},
		{`netif: mtu: got 65536, want 68 to 65535 bytes`, &Netif{VNet: "lan", MTU: 65536}},
		{`netif: mac: got "02:00:00:00:00", want an Ethernet address that is no group's, as "02:00:00:00:00:01"`, &Netif{VNet: "lan", MAC: "02:00:00:00:00"}},
		{`netif: mac: got "02:00:00:00:00:00:00:01", want an Ethernet address that is no group's, as "02:00:00:00:00:01"`, &Netif{VNet: "lan", MAC: "02:00:00:00:00:00:00:01"}},
		{`netif: mac: got "ff:ff:ff:ff:ff:ff", want an Ethernet address that is no group's, as "02:00:00:00:00:01"`, &Netif{VNet: "lan", MAC: "ff:ff:ff:ff:ff:ff"}},
		{`netif: mac: got "00:00:00:00:00:00", want an Ethernet address that is no group's, as "02:00:00:00:00:01"`, &Netif{VNet: "lan", MAC: "00:00:00:00:00:00"}},
		{`netif: mac: got "02:00:00:00:00:01", want none: with ipvlan all have the address of the interface they share`, &Netif{Device: "eth0", Share: "ipvlan", MAC: "02:00:00:00:00:01"}},
		{`netif: address: got "10.0.0.1 twice", want each address once`, a("10.0.0.1", "10.0.0.1/24")},
		{`netif: address: got "0.0.0.0", want one that a machine can have`, a("0.0.0.0/8")},
		{`netif: address: got "::", want one that a machine can have`, a("::/64")},
		{`netif: address: got "224.0.0.1", want one that a machine can have`, a("224.0.0.1/24")},
		{`netif: address: got "ff02::1", want one that a machine can have`, a("ff02::1/64")},
		{`netif: address: got "127.0.0.1", want one that a machine can have`, a("127.0.0.1/8")},
		{`netif: address: got "::1", want one that a machine can have`, a("::1/128")},
		{`netif: address: got "::ffff:10.0.0.1", want one that a machine can have`, a("::ffff:10.0.0.1/120")},
		{`netif: address: got "10.0.0.1", want with its prefix length, as "10.0.0.2/24"`, &Netif{Device: "eth0", Exclusive: true, Addresses: a("10.0.0.1").Addresses}},
		{`netif: gateway: got "0.0.0.0", want one address, or one of each family`, g("0.0.0.0")},
		{`netif: gateway: got "10.0.0.2", want one address, or one of each family`, g("10.0.0.1", "10.0.0.2")},
		{`netif: gateway: got "fd00::2", want one address, or one of each family`, g("fd00::1", "10.0.0.1", "fd00::2")},
		{`netif: gateway: got "ff02::2", want one address, or one of each family`, g("ff02::2")},
		{`duplicate: got 100.5, want a percentage, 0 to 100`, &Netif{VNet: "lan", Cable: Cable{Out: netx.Impair{Duplicate: 100.5}}}},
	} {
		err := c.n.Validate()
		if err == nil {
			t.Errorf("%s: it was not refused", c.want)
			continue
		}
		want(t, "error", c.want, err.Error())
	}
	for _, n := range []*Netif{g("10.0.0.1", "fd00::1"), a("fe80::5/64"), a("255.255.255.254/31"), {Device: "enp0s31f6.4094", Share: "macvlan", MTU: 68}, {VNet: "lan", Name: "fifteen-bytes-x", Bare: true}, {Link: "a-b"}} {
		if err := n.Validate(); err != nil {
			t.Errorf("%+v: %v", n, err)
		}
	}
	err := (&Spec{Resources: []Resource{&Netif{VNet: "lan", Name: "a"}, &Netif{VNet: "dmz", Name: "a"}}}).Validate()
	if err == nil {
		t.Error("two interfaces of one name")
	} else {
		want(t, "error", "machine_rfork: resources: got netif(a) twice, want each once", err.Error())
	}
}

// Up again, an interface has what the kernel took from it.
func TestNetifUp(t *testing.T) {
	l := netLab(t)
	site := fork(t, l, space("netspace"), &Children{Max: 1})
	v := makeVNet(t, l, site, &VNetSpec{Name: "lan", NAT: true}, "10.0.0.0/24", "fd00::/64")
	m := forkIn(t, l, site, &Spec{Name: "m", Resources: []Resource{on(v)}})
	state := func() string { return sh(t, m, "ip -o addr show scope global; ip route; ip -6 route") }
	before := state()
	contains(t, before, "10.0.0.2/24", "fd00::2/64", "default via 10.0.0.1 dev eth0", "default via fd00::1 dev eth0")
	for range 2 {
		if err := m.UpNetif(t.Context(), "eth0", false); err != nil {
			t.Fatal(err)
		}
		contains(t, sh(t, m, "ip link show eth0"), "state DOWN")
		want(t, "routes of one that is down", "", sh(t, m, "ip route; ip -6 route"))
		if err := m.UpNetif(t.Context(), "eth0", true); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its own link-local address and routes", func() bool { return state() == before })
		pings(t, m, "10.0.0.1", "fd00::1")
	}
	if err := m.UpNetif(t.Context(), "eth0", true); err != nil { // which it is
		t.Error(err)
	}
	// What the machine has taken off by itself comes back as well.
	sh(t, m, "ip route del default; ip addr flush dev eth0 scope global")
	if err := m.UpNetif(t.Context(), "eth0", true); err != nil {
		t.Fatal(err)
	}
	pings(t, m, "10.0.0.1", "fd00::1")
	contains(t, state(), "default via 10.0.0.1", "default via fd00::1")
	for what, name := range map[string]string{
		`netif: name: got "eth7", want one of m's: [eth0]`: "eth7",
		`netif: name: got "lo", want one of m's: [eth0]`:   "lo",
	} {
		if err := m.UpNetif(t.Context(), name, true); err == nil {
			t.Errorf("%s: took it up", name)
		} else {
			want(t, "error", what, err.Error())
		}
		if _, err := m.NetifStats(name); err == nil || err.Error() != what {
			t.Errorf("stats: %v", err)
		}
	}
	if _, err := site.Netif("eth0"); err == nil {
		t.Error("it has none")
	} else {
		want(t, "error", `netif: name: got "eth0", want an interface that msh has given m1: it has none`, err.Error())
	}
	destroy(t, m)
	if err := m.UpNetif(t.Context(), "eth0", true); err == nil {
		t.Error("took up what is dead")
	} else {
		contains(t, err.Error(), "machine is dead")
	}
}

// In a plan there is an interface as there would be, and nothing is done.
func TestNetifPlan(t *testing.T) {
	h := newHost(t)
	l := labOn(t, h, "")
	v, err := l.PlanVNet(l.Host(), &VNetSpec{Name: "lan", NAT: true, Subnets: prefixes("10.0.0.0/24", "fd00::/64")})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "the vnet", "vnet lan, 10.0.0.0/24, fd00::/64, mtu 1500, nat", v.Plan())
	rate := &Netif{VNet: "lan", Bare: true, Cable: Cable{Out: netx.Impair{Rate: 1e6}, In: netx.Impair{Loss: 5}, Named: []string{"rate", "loss"}}}
	p, err := l.Plan(l.Host(), &Spec{Name: "m", Resources: []Resource{&Netif{Device: "eth9", Exclusive: true}, on(v), rate, &Netif{Device: "eth8", Share: "macvlan"}}})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := p.Print(&text); err != nil {
		t.Fatal(err)
	}
	contains(t, text.String(), "  interface: eth0 on lan, 10.0.0.2/24, fd00::2/64, default via 10.0.0.1, default via fd00::1\n",
		"  interface: eth1 on lan", "rate 1mbit", "loss 5%", "  interface: eth9: the parent's eth9\n", "  interface: eth2: macvlan on the parent's eth8\n")
	m := l.Planned(l.Host(), p)
	want(t, "machines", []string{"m"}, v.Machines())
	if err := m.SetNetif("eth0", Cable{Out: netx.Impair{Loss: 1}, Named: []string{"loss"}}); err != nil {
		t.Error(err)
	}
	if _, err := v.PlanAttach(m, &Netif{Bare: true}); err != nil {
		t.Error(err)
	}
	if err := m.UpNetif(t.Context(), "eth3", false); err != nil {
		t.Error(err)
	}
	want(t, "interfaces", 5, len(m.Netifs()))
	if err := v.Partition([][]string{{"m"}}); err != nil {
		t.Error(err)
	}
	if err := v.Detach(m); err != nil {
		t.Error(err)
	}
	want(t, "interfaces", 2, len(m.Netifs()))
	nested, err := l.PlanVNet(m, &VNetSpec{Name: "nested"})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "a network in it", "vnet nested in m, mtu 1500", nested.Plan())
	l.PlanEnd(m, true)
	want(t, "networks", []string{"lan"}, func() (all []string) {
		for _, v := range l.VNets() {
			all = append(all, v.Name())
		}
		return all
	}())
}
