package kernel

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
)

// cableEnd is a machine's end of a cable, with those addresses.
func cableEnd(addresses ...string) *Netif {
	n := &Netif{}
	for _, s := range addresses {
		a, err := ParseAddress(s)
		if err != nil {
			panic(err)
		}
		n.Addresses = append(n.Addresses, a)
	}
	return n
}

func cable(t *testing.T, l *Lab, a, b LinkEnd) *Link {
	t.Helper()
	k, err := l.Link(t.Context(), a, b, Cable{})
	if err != nil {
		needs(t, err)
		t.Fatalf("%v%s", err, hintOf(err))
	}
	return k
}

// carrier tells whether an interface of a machine's has a cable in it. It is up.
func carrier(t *testing.T, m *Machine, name string) string {
	t.Helper()
	return sh(t, m, "cat /sys/class/net/"+name+"/carrier")
}

// withSys is a network of its own and the /sys that shows it.
func withSys() []Resource {
	return []Resource{space("netspace"), &Mount{Source: "sysfs", Target: "/sys", Type: "sysfs"}}
}

func setUp(t *testing.T, k *Link, up bool) {
	t.Helper()
	if err := k.SetUp(t.Context(), up); err != nil {
		t.Fatal(err)
	}
	want(t, "up", up, k.Up())
}

func TestLinkMachines(t *testing.T) {
	l := netLab(t)
	a, b := forkNamed(t, l, "a", withSys()...), forkNamed(t, l, "b", withSys()...)
	k := cable(t, l, LinkEnd{Machine: a, Netif: cableEnd("10.0.0.1/30", "fd00::1/64")}, LinkEnd{Machine: b, Netif: cableEnd("10.0.0.2/30", "fd00::2/64")})
	want(t, "name", "a-b", k.Name())
	pings(t, a, "10.0.0.2", "fd00::2")
	pings(t, b, "10.0.0.1", "fd00::1")
	second := cable(t, l, LinkEnd{Machine: b, Netif: &Netif{Name: "x0"}}, LinkEnd{Machine: a, Netif: &Netif{}})
	want(t, "cables", true, slices.Equal([]*Link{k, second}, l.Links()))
	want(t, "interfaces of a", "eth0 eth1", strings.Join([]string{a.Netifs()[0].Name, a.Netifs()[1].Name}, " "))
	want(t, "interfaces of b", "eth0 x0", strings.Join([]string{b.Netifs()[0].Name, b.Netifs()[1].Name}, " "))

	for range 2 {
		setUp(t, k, false)
		for _, m := range []*Machine{a, b} {
			want(t, m.Name()+"'s carrier, pulled", "0", carrier(t, m, "eth0"))
			contains(t, sh(t, m, "ip -br link show eth0"), "NO-CARRIER", "UP")
			contains(t, sh(t, m, "ip addr show eth0"), "inet 10.0.0.", "inet6 fd00::") // it keeps what it has
		}
		want(t, "the other cable's", "1", carrier(t, a, "eth1"))
		cannotReach(t, a, "10.0.0.2")
		setUp(t, k, true)
		for _, m := range []*Machine{a, b} {
			want(t, m.Name()+"'s carrier", "1", carrier(t, m, "eth0"))
		}
		pings(t, a, "10.0.0.2", "fd00::2")
	}

	both, err := k.Stats()
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range []*Machine{a, b} {
		inside, err := m.NetifStats("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if c := both[i]; c.RxPackets == 0 || c.TxPackets == 0 || c.RxBytes > inside.RxBytes || c.TxBytes > inside.TxBytes {
			t.Errorf("at %s: the cable counts %+v, the machine %+v", m.Name(), c, inside)
		}
	}

	for range 2 {
		if err := k.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []*Machine{a, b} {
		want(t, "interfaces of "+m.Name(), 1, len(m.Netifs()))
		if r := try(t, m, "ip", "link", "show", "eth0"); r.Code == 0 {
			t.Errorf("%s has its end yet", m.Name())
		}
	}
	for what, err := range map[string]error{"up": k.SetUp(t.Context(), true), "set": k.Set(Cable{Named: []string{"loss"}}), "stats": func() error { _, err := k.Stats(); return err }()} {
		if err == nil {
			t.Errorf("%s: the cable is gone", what)
			continue
		}
		want(t, what, "link a-b: the cable has been destroyed", err.Error())
	}
	want(t, "cables", true, slices.Equal([]*Link{second}, l.Links()))

	// The end of one machine leaves the other's end hanging, until the cable goes.
	destroy(t, b)
	want(t, "cables", true, slices.Equal([]*Link{second}, l.Links()))
	want(t, "a's carrier", "0", carrier(t, a, "eth1"))
	if err := second.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	want(t, "cables", 0, len(l.Links()))
	want(t, "interfaces of a", 0, len(a.Netifs()))
	if r := try(t, a, "ip", "link", "show", "eth1"); r.Code == 0 {
		t.Error("a has its end yet")
	}
}

func TestLinkVNet(t *testing.T) {
	l := netLab(t)
	lan := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24", "fd00::/64")
	a := forkNamed(t, l, "a", on(lan))
	m := forkNamed(t, l, "m", withSys()...)
	there := cable(t, l, LinkEnd{Machine: m, Netif: &Netif{Name: "up0"}}, LinkEnd{VNet: lan})
	want(t, "its address is the vnet's next", "10.0.0.2", addressOf(t, m, "up0"))
	pings(t, m, "10.0.0.1", "fd00::1")
	want(t, "machines", []string{"a", "m"}, lan.Machines())
	setUp(t, there, false)
	want(t, "carrier, pulled", "0", carrier(t, m, "up0"))
	cannotReach(t, a, "10.0.0.2")
	setUp(t, there, true)
	want(t, "carrier", "1", carrier(t, m, "up0"))
	pings(t, a, "10.0.0.2", "fd00::2")
	both, err := there.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if both[0] != both[1].Turned() || both[0].RxPackets == 0 {
		t.Errorf("counted %+v at the machine, %+v at the switch", both[0], both[1])
	}
	if err := there.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "machines", []string{"a"}, lan.Machines())
	want(t, "taken", 2, len(lan.taken)) // a's
	want(t, "interfaces", 0, len(m.Netifs()))

	// Taken off the network, the cable is gone as well; and so with the network.
	back := cable(t, l, LinkEnd{VNet: lan}, LinkEnd{Machine: m, Netif: &Netif{}})
	if err := lan.Detach(m); err != nil {
		t.Fatal(err)
	}
	want(t, "cables", 0, len(l.Links()))
	want(t, "up", false, back.Up())
	cable(t, l, LinkEnd{VNet: lan}, LinkEnd{Machine: m, Netif: &Netif{}})
	if err := lan.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "cables", 0, len(l.Links()))
	want(t, "interfaces", 0, len(m.Netifs()))
}

func TestLinkSwitches(t *testing.T) {
	l := netLab(t)
	x := makeVNet(t, l, l.Host(), &VNetSpec{Name: "x"}, "10.0.0.0/24", "fd00::/64")
	y := makeVNet(t, l, l.Host(), &VNetSpec{Name: "y"})
	a, b := forkNamed(t, l, "a", on(x)), forkNamed(t, l, "b", on(y, "10.0.0.9/24", "fd00::9/64"))
	for range 2 {
		k := cable(t, l, LinkEnd{VNet: y}, LinkEnd{VNet: x})
		pings(t, a, "10.0.0.9", "fd00::9")
		setUp(t, k, false)
		cannotReach(t, a, "10.0.0.9")
		setUp(t, k, true)
		pings(t, a, "10.0.0.9")
		both, err := k.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if both[0].TxPackets == 0 || both[0].RxPackets == 0 {
			t.Errorf("counted %+v", both)
		}
		want(t, "machines on x", []string{"a"}, x.Machines())
		if err := k.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		cannotReach(t, a, "10.0.0.9")
		want(t, "ports of x", 1, len(x.ports))
	}
	k := cable(t, l, LinkEnd{VNet: y}, LinkEnd{VNet: x})
	destroy(t, b) // which does not take the cable with it
	want(t, "up", true, k.Up())
	if err := y.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "cables", 0, len(l.Links()))
	want(t, "interfaces in x: the bridge and a's port", 2, len(devices(t, x.net.ns)))
}

// Refused, nothing is half-made: not the first end where the second fails.
func TestLinkBad(t *testing.T) {
	l := netLab(t)
	lan := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	gone := makeVNet(t, l, l.Host(), &VNetSpec{Name: "gone"}, "10.1.0.0/24")
	if err := gone.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, b := forkNamed(t, l, "a", space("netspace")), forkNamed(t, l, "b", space("netspace"))
	shares, dead := forkNamed(t, l, "shares"), forkNamed(t, l, "dead", space("netspace"))
	if err := dead.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	run(t, b, "ip", "link", "add", "taken", "type", "veth", "peer", "name", "taken2")
	machine := func(m *Machine, n *Netif) LinkEnd { return LinkEnd{Machine: m, Netif: n} }
	sw := func(v *VNet) LinkEnd { return LinkEnd{VNet: v} }
	state := func() string {
		return strings.Join([]string{sh(t, a, "ip -o link; ip -o addr"), sh(t, b, "ip -o link; ip -o addr"), fmt.Sprint(len(a.Netifs()), len(b.Netifs()), len(l.Links()), lan.Machines(), len(lan.taken))}, "\n")
	}
	before := state()
	for _, c := range []struct {
		want  string
		a, b  LinkEnd
		cable Cable
	}{
		{"link: got shares, which shares its parent's network, want a machine with a network of its own", machine(a, &Netif{}), machine(shares, &Netif{}), Cable{}},
		{"link: got shares, which shares its parent's network, want a machine with a network of its own", machine(shares, &Netif{}), sw(lan), Cable{}},
		{"machine dead: machine is dead", machine(a, &Netif{}), machine(dead, &Netif{}), Cable{}},
		{"machine dead: machine is dead", sw(lan), machine(dead, &Netif{}), Cable{}},
		{"link: host: got the host, want a machine", machine(l.Host(), &Netif{}), machine(a, &Netif{}), Cable{}},
		{`link: b: got "lan", want another switch than the one at the other end: a cable from a switch to itself is a loop`, sw(lan), sw(lan), Cable{}},
		{"link lan-gone: vnet gone: the network has been destroyed", sw(lan), sw(gone), Cable{}},
		{"link a-gone: netif: vnet gone: the network has been destroyed", machine(a, &Netif{}), sw(gone), Cable{}},
		{`netif: name: got "averylonginterface", want an interface's name, of at most 15 bytes; this has 18`, machine(a, &Netif{}), machine(b, &Netif{Name: "averylonginterface"}), Cable{}},
		{`link a-lan: netif: name: got "default", want another name: the kernel's parameters for all interfaces are called so`, machine(a, &Netif{Name: "default"}), sw(lan), Cable{}},
		{`netif: address: got "10.9.0.1", want with its prefix length, as "10.0.0.2/24"`, machine(a, &Netif{}), machine(b, cableEnd("10.9.0.1")), Cable{}},
		{`link a-b: netif: name: got "taken", want a name that no other interface of the machine has`, machine(a, cableEnd("10.9.0.1/30")), machine(b, &Netif{Name: "taken"}), Cable{}},
		{`link b-a: netif: name: got "taken", want a name that no other interface of the machine has`, machine(b, &Netif{Name: "taken"}), machine(a, &Netif{}), Cable{}},
		{`link a-lan: netif: address: got "10.9.0.1", want an address of vnet lan; this is outside lan's [10.0.0.0/24]`, machine(a, cableEnd("10.9.0.1/24")), sw(lan), Cable{}},
		{`link lan-b: attach b to lan: netif: name: got "taken", want a name that no other interface of the machine has`, sw(lan), machine(b, &Netif{Name: "taken"}), Cable{}},
		{"loss: got 101, want a percentage, 0 to 100", machine(a, &Netif{}), machine(b, &Netif{}), Cable{Out: netx.Impair{Loss: 101}}},
		{"loss: got -1, want a percentage, 0 to 100", sw(lan), machine(b, &Netif{}), Cable{In: netx.Impair{Loss: -1}}},
	} {
		k, err := l.Link(t.Context(), c.a, c.b, c.cable)
		if err == nil {
			k.Destroy(t.Context())
			t.Errorf("%s: it was made", c.want)
			continue
		}
		want(t, "error", c.want, err.Error())
		want(t, "after: "+c.want, before, state())
	}
	// Impairments that this kernel does not have, found out last of all.
	delayed := Cable{Out: netx.Impair{Delay: 1e6}, In: netx.Impair{Delay: 1e6}, Named: []string{"delay"}}
	for _, ends := range [][2]LinkEnd{{machine(a, &Netif{}), machine(b, &Netif{})}, {machine(a, &Netif{}), sw(lan)}} {
		k, err := l.Link(t.Context(), ends[0], ends[1], delayed)
		if err == nil {
			if err := k.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
			continue // netem is here
		}
		if !errors.Is(err, ErrNotSupported) || hintOf(err) == "" {
			t.Errorf("got %v, want an error that tells what is missing, and the mend", err)
		}
		want(t, "after a delay", before, state())
	}
}

// A cable with both ends in one machine, as somebody with a long arm would plug it.
func TestLinkLoop(t *testing.T) {
	l := netLab(t)
	a := forkNamed(t, l, "a", withSys()...)
	k := cable(t, l, LinkEnd{Machine: a, Netif: &Netif{}}, LinkEnd{Machine: a, Netif: &Netif{}})
	want(t, "interfaces", 2, len(a.Netifs()))
	setUp(t, k, false)
	want(t, "carriers", "0 0", carrier(t, a, "eth0")+" "+carrier(t, a, "eth1"))
	if err := k.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "interfaces", 0, len(a.Netifs()))
	cable(t, l, LinkEnd{Machine: a, Netif: &Netif{}}, LinkEnd{Machine: a, Netif: &Netif{}})
	destroy(t, a)
	want(t, "cables", 0, len(l.Links()))
}

// Many cables at once, all to one machine: each has a name of its own there.
func TestLinkParallel(t *testing.T) {
	l := netLab(t)
	ctx := t.Context()
	hub := forkNamed(t, l, "hub", space("netspace"))
	other := forkNamed(t, l, "other", space("netspace"))
	together(t, 8, func(i int) error {
		a, b := LinkEnd{Machine: hub, Netif: &Netif{}}, LinkEnd{Machine: other, Netif: &Netif{}}
		if i%2 == 1 {
			a, b = b, a
		}
		k, err := l.Link(ctx, a, b, Cable{})
		if err != nil {
			return err
		}
		if _, err := k.Stats(); err != nil {
			return err
		}
		if i%4 == 3 {
			return k.Destroy(ctx)
		}
		return k.SetUp(ctx, i%4 == 0)
	})
	want(t, "cables", 6, len(l.Links()))
	want(t, "interfaces", 6, len(hub.Netifs()))
	want(t, "the others'", 6, len(other.Netifs()))
	panel, err := filepath.Glob(filepath.Join(l.dir(), netsDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "patch panels", 1, len(panel))
	want(t, "ports in the panel", 12, len(devices(t, l.patch.ns)))
}

// A machine that has taken its own end down has it so after the cable was pulled
// and put back; when it takes it up, the cable works.
func TestLinkEndDown(t *testing.T) {
	l := netLab(t)
	a, b := forkNamed(t, l, "a", withSys()...), forkNamed(t, l, "b", withSys()...)
	k := cable(t, l, LinkEnd{Machine: a, Netif: cableEnd("10.0.0.1/30")}, LinkEnd{Machine: b, Netif: cableEnd("10.0.0.2/30")})
	sh(t, a, "ip link set eth0 down")
	setUp(t, k, false)
	setUp(t, k, true)
	want(t, "a's end", "down", sh(t, a, "cat /sys/class/net/eth0/operstate"))
	want(t, "b's carrier", "1", carrier(t, b, "eth0")) // its cable is in the panel
	if err := a.UpNetif(t.Context(), "eth0", true); err != nil {
		t.Fatal(err)
	}
	pings(t, a, "10.0.0.2")
	setUp(t, k, false)
	if err := b.UpNetif(t.Context(), "eth0", true); err != nil { // up, but pulled
		t.Fatal(err)
	}
	want(t, "b's carrier, pulled", "0", carrier(t, b, "eth0"))
}
