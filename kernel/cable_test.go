package kernel

import (
	"testing"
	"time"

	"msh/kernel/netx"
)

// What is not named stays as it was.
func TestCableOver(t *testing.T) {
	old := Cable{Out: netx.Impair{Rate: 1, Burst: 2, Limit: 3, Delay: 4, Jitter: 5, Distribution: "normal", Loss: 6, Duplicate: 7, Reorder: 8, Corrupt: 9},
		In: netx.Impair{Rate: 10, Delay: 40}, Named: []string{"rate"}}
	want(t, "nothing named", old, Cable{Out: netx.Impair{Loss: 50}}.over(old))
	changed := Cable{Out: netx.Impair{Loss: 60, Delay: time.Second}, In: netx.Impair{Loss: 70}, Named: []string{"loss"}}.over(old)
	is := old
	is.Out.Loss, is.In.Loss, is.Named = 60, 70, []string{"rate", "loss"}
	want(t, "the loss", is, changed)
	want(t, "the old one's names", []string{"rate"}, old.Named)
	cleared := Cable{Named: CableOptions}.over(old)
	want(t, "all cleared", Cable{Named: cleared.Named}, cleared)
	want(t, "named", len(CableOptions), len(cleared.Named))
	if err := CheckCableChange(Cable{}); err == nil {
		t.Error("a change of nothing")
	} else {
		want(t, "error", "set: want at least one of [rate burst limit delay jitter distribution loss duplicate reorder corrupt]", err.Error())
	}
}

// lossy is a change of the loss alone, for each direction.
func lossy(out, in float64) Cable {
	return Cable{Out: netx.Impair{Loss: out}, In: netx.Impair{Loss: in}, Named: []string{"loss"}}
}

// sent counts what came in at b of ten frames that a has sent it, by IP, for a
// neighbour that it knows.
func sent(t *testing.T, a, b *Machine, name, to string) uint64 {
	t.Helper()
	before, err := b.NetifStats(name)
	if err != nil {
		t.Fatal(err)
	}
	try(t, a, "ping", "-n", "-c10", "-l10", "-W0.01", to)
	after, err := b.NetifStats(name)
	if err != nil {
		t.Fatal(err)
	}
	return after.RxPackets - before.RxPackets
}

// What each end of each sort of cable loses, in its own direction: all or nothing,
// so that no chance is in it.
func TestCableDirections(t *testing.T) {
	l := netLab(t)
	lan := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	other := makeVNet(t, l, l.Host(), &VNetSpec{Name: "other"})
	a := forkNamed(t, l, "a", on(lan), space("netspace"))
	b := forkNamed(t, l, "b", space("netspace"))
	c := forkNamed(t, l, "c", on(other, "10.0.0.77/24"))
	trunk := cable(t, l, LinkEnd{VNet: other}, LinkEnd{VNet: lan})
	patch := cable(t, l, LinkEnd{Machine: b, Netif: cableEnd("10.1.0.2/30")}, LinkEnd{Machine: a, Netif: cableEnd("10.1.0.1/30")})
	port := cable(t, l, LinkEnd{VNet: lan}, LinkEnd{Machine: b, Netif: &Netif{Name: "port"}})
	neighbours := func(m *Machine, dev, ip, at string, of *Machine) {
		t.Helper()
		n, err := of.Netif(at)
		if err != nil {
			t.Fatal(err)
		}
		run(t, m, "ip", "neigh", "replace", ip, "dev", dev, "lladdr", n.HardwareAddr, "nud", "permanent")
	}
	pings(t, a, "10.0.0.77", addressOf(t, b, "port"), "10.1.0.2")
	for _, c := range []struct {
		what       string
		set        func(Cable) error
		m, o       *Machine // Out is from m to o
		dev, other string
		far, near  string
	}{
		{"switch to switch", trunk.Set, c, a, "eth0", "eth0", "10.0.0.1", "10.0.0.77"},
		{"machine to machine", patch.Set, b, a, "eth0", "eth1", "10.1.0.1", "10.1.0.2"},
		{"machine to machine, by an end of it", func(c Cable) error { return a.SetNetif("eth1", c) }, a, b, "eth1", "eth0", "10.1.0.2", "10.1.0.1"},
		{"switch to machine", port.Set, a, b, "eth0", "port", addressOf(t, b, "port"), "10.0.0.1"},
		{"switch to machine, by an end of it", func(c Cable) error { return b.SetNetif("port", c) }, b, a, "port", "eth0", "10.0.0.1", addressOf(t, b, "port")},
		{"an interface on a vnet", func(c Cable) error { return a.SetNetif("eth0", c) }, a, c, "eth0", "eth0", "10.0.0.77", "10.0.0.1"},
	} {
		neighbours(c.m, c.dev, c.far, c.other, c.o)
		neighbours(c.o, c.other, c.near, c.dev, c.m)
		set := func(cable Cable) {
			t.Helper()
			if err := c.set(cable); err != nil {
				needs(t, err)
				t.Fatalf("%s: %v", c.what, err)
			}
		}
		set(lossy(100, 0))
		// A multicast of the kernel's may be among what has come in.
		if got := sent(t, c.m, c.o, c.other, c.far); got > 4 {
			t.Errorf("%s: with all lost on the way out, %d of 10 went out", c.what, got)
		}
		if got := sent(t, c.o, c.m, c.dev, c.near); got < 10 {
			t.Errorf("%s: with all lost on the way out, %d of 10 came in", c.what, got)
		}
		set(lossy(0, 100))
		if got := sent(t, c.o, c.m, c.dev, c.near); got > 4 {
			t.Errorf("%s: with all lost on the way in, %d of 10 came in", c.what, got)
		}
		if got := sent(t, c.m, c.o, c.other, c.far); got < 10 {
			t.Errorf("%s: with all lost on the way in, %d of 10 went out", c.what, got)
		}
		set(lossy(0, 0))
		pings(t, c.m, c.far)
	}
	want(t, "at last the port's cable", Cable{Named: []string{"loss"}}, func() Cable { n, _ := b.Netif("port"); return n.Cable }())
}

// A change that is refused, or that the kernel cannot make, leaves all as it was.
func TestCableSetBad(t *testing.T) {
	l := netLab(t)
	lan := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	a := forkNamed(t, l, "a", &Netif{VNet: "lan", Cable: lossy(100, 0)})
	b := forkNamed(t, l, "b", on(lan))
	cannotReach(t, a, addressOf(t, b, "eth0"))
	for _, c := range []struct {
		want, name string
		cable      Cable
	}{
		{`netif: name: got "eth5", want one of a's: [eth0]`, "eth5", lossy(0, 0)},
		{"loss: got 200, want a percentage, 0 to 100", "eth0", lossy(0, 200)},
		{"jitter: got 1ms, want a delay beside it, which it varies", "eth0", Cable{Out: netx.Impair{Jitter: time.Millisecond}, Named: []string{"jitter"}}},
		{"delay: got -1ns, want 0 to 4h0m0s", "eth0", Cable{Out: netx.Impair{Delay: -1}, Named: []string{"delay"}}},
		{`distribution: got "flat", want one of uniform, normal, pareto, paretonormal`, "eth0", Cable{Out: netx.Impair{Delay: 5e6, Jitter: 1e6, Distribution: "flat"}, Named: []string{"delay", "jitter", "distribution"}}},
	} {
		if err := a.SetNetif(c.name, c.cable); err == nil {
			t.Errorf("%s: it was set", c.want)
		} else {
			want(t, "error", c.want, err.Error())
		}
	}
	n, err := a.Netif("eth0")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "what it is", lossy(100, 0), n.Cable)
	cannotReach(t, a, addressOf(t, b, "eth0"))
	if err := a.Set(&Netif{VNet: "lan", Cable: lossy(0, 0)}); err != nil { // the only one there
		t.Fatal(err)
	}
	pings(t, a, addressOf(t, b, "eth0"))
}
