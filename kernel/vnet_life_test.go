package kernel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

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
