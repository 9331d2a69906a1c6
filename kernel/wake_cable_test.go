package kernel

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"msh/kernel/netx"
)

// cabled are a server and its client at the two ends of a cable, and on a switch by
// cables of their own, of which the client's is pulled.
func cabled(t *testing.T, l *Lab) (server, client *Machine) {
	t.Helper()
	lan, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", Subnets: prefixes("10.7.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	server = forkCalled(t, l, "server", &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"))
	client = forkCalled(t, l, "client", &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"))
	lay(t, l, LinkEnd{Machine: server, Netif: &Netif{Addresses: addressesOf("10.9.0.1/30")}}, LinkEnd{Machine: client, Netif: &Netif{Name: "direct", Addresses: addressesOf("10.9.0.2/30")}},
		Cable{Out: netx.Impair{Rate: 200e6}, In: netx.Impair{Rate: 100e6}, Named: []string{"rate"}})
	lay(t, l, LinkEnd{VNet: lan}, LinkEnd{Machine: server, Netif: &Netif{}}, Cable{Out: netx.Impair{Rate: 50e6}, In: netx.Impair{Rate: 60e6}, Named: []string{"rate"}})
	if err := lay(t, l, LinkEnd{Machine: client, Netif: &Netif{}}, LinkEnd{VNet: lan}, Cable{}).SetUp(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	streamer(t, server, "serve", "")
	if err := server.WaitPort(t.Context(), 7000, long); err != nil {
		t.Fatal(err)
	}
	streamer(t, client, "get", "10.9.0.1")
	eventuallyIn(t, client, "/got", "0")
	got(t, client, 100)
	return server, client
}

func addressesOf(texts ...string) (all []Address) {
	for _, p := range prefixes(texts...) {
		all = append(all, Address{p})
	}
	return all
}

func lay(t *testing.T, l *Lab, a, b LinkEnd, c Cable) *Link {
	t.Helper()
	k, err := l.Link(t.Context(), a, b, c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// links are the lab's cables in words.
func links(l *Lab) string {
	var all []string
	for _, k := range l.Links() {
		text := k.Name() + " " + k.Cable().Out.String() + " | " + k.Cable().In.String()
		if !k.Up() {
			text += " down"
		}
		all = append(all, text)
	}
	return strings.Join(all, "\n")
}

// A connection over a cable between two machines goes on when both are saved, and when
// both have slept, in one process and, from what is written down, in another; and the
// cables are what they were.
func TestHibernateCables(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	dir := t.TempDir()
	first := labOn(t, h, "")
	_, client := cabled(t, first)
	cables := links(first)
	want(t, "cables", "server-client rate 200mbit | rate 100mbit\nlan-server rate 50mbit | rate 60mbit\nclient-lan  |  down", cables)
	if _, err := first.Snapshot(t.Context(), filepath.Join(dir, "snapshot"), SnapshotOptions{}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	got(t, client, got(t, client, 0)+200)
	file := filepath.Join(dir, "lab")
	if _, err := first.Snapshot(t.Context(), file, SnapshotOptions{Hibernate: true}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	want(t, "hibernated, cables", "", links(first))
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}

	look := func(l *Lab, file string, keep bool) *Machine {
		t.Helper()
		all, err := l.WakeFile(t.Context(), file, WakeOptions{Keep: keep})
		if err != nil {
			explainCriu(t, err)
			t.Fatal(err)
		}
		want(t, "woken, cables", cables, links(l))
		client := all[slices.IndexFunc(all, func(m *Machine) bool { return m.Name() == "client" })]
		got(t, client, got(t, client, 0)+200)
		want(t, "woken, carriers", "1\n0", sh(t, client, "cat /sys/class/net/direct/carrier /sys/class/net/eth0/carrier"))
		return client
	}
	second := labOn(t, h, "-2")
	client = look(second, file, true)
	for _, k := range second.Links() { // they are as those that a script has laid
		if err := k.SetUp(t.Context(), k.Name() != "server-client"); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, client, "ping -c1 -W2 10.7.0.1")
	if r := try(t, client, "ping", "-c1", "-W1", "10.9.0.1"); r.Code == 0 {
		t.Error("a cable that is pulled carries")
	}
	for _, k := range second.Links() {
		if err := k.SetUp(t.Context(), k.Name() != "client-lan"); err != nil {
			t.Fatal(err)
		}
	}
	got(t, client, got(t, client, 0)+200)
	if err := second.Close(context.Background()); err != nil {
		t.Fatal(err)
	}

	// As `msh hibernate LAB` does.
	all, whole, err := h.FindAll(second.Name())
	if err != nil || !whole || len(all) != 2 {
		t.Fatal(all, whole, err)
	}
	file = filepath.Join(dir, "kept")
	if _, err := SnapshotFile(t.Context(), file, all, SnapshotOptions{Hibernate: true, Whole: whole}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	for _, m := range all {
		m.Close()
	}
	look(labOn(t, h, "-3"), file, false)
}

// One end of a cable alone is not saved: the other is named. An end whose other end is
// gone wakes as it was: loose.
func TestHibernateCableEnd(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	server, client := cabled(t, l)
	file := filepath.Join(t.TempDir(), "m")
	for _, o := range []SnapshotOptions{{}, {FilesOnly: true}} {
		_, err := client.Snapshot(t.Context(), file, o)
		if err == nil {
			t.Fatal("saved")
		}
		contains(t, err.Error(), "client, whose interface direct is an end of a cable to server", "want the machines at both ends")
		contains(t, hintOf(err), "lab.snapshot")
	}
	got(t, client, got(t, client, 0)+100)
	destroy(t, server)
	want(t, "loose", "0", sh(t, client, "ip -br link show direct | grep -c ' UP '; true"))
	w := wakeUp(t, l, hibernate(t, client), WakeOptions{})
	want(t, "loose still", "0", sh(t, w, "ip -br link show direct | grep -c ' UP '; true"))
	contains(t, sh(t, w, "ip -br addr show direct"), "10.9.0.2/30")
	want(t, "cables", "client-lan  |  down", links(l))
	c, err := w.Clone(t.Context(), WakeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "cables with the clone's", "client-lan  |  down\n"+c.Name()+"-lan  |  down", links(l))
}

// All machines of a lab move with their cables; one of two that a cable joins does not.
func TestMigrateCables(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	_, client := cabled(t, l)
	o := newOther(t, l)
	_, err := client.Migrate(t.Context(), &Remote{Host: "other"}, MigrateOptions{dial: o.dial})
	if err == nil {
		t.Fatal("moved from its cable")
	}
	contains(t, err.Error(), "an end of a cable to server")
	r, err := Migrate(t.Context(), l.Machines(), &Remote{Host: "other"}, MigrateOptions{dial: o.dial, Whole: true})
	if err != nil {
		explainCriu(t, err)
		t.Fatal(err, o.errs)
	}
	there := o.machines()
	got(t, there["client"], got(t, there["client"], 0)+200)
	cables, err := o.cables(r.Lab, func(savedCable) bool { return true }, func(name string) *Spec { return there[name].Spec() })
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, c := range cables {
		words = append(words, fmt.Sprintf("%s%s-%s%s %v %v", c.Ends[0].Machine, c.Ends[0].VNet, c.Ends[1].Machine, c.Ends[1].VNet, c.Cable.Out.Rate, c.Down))
	}
	want(t, "cables there", "server-client 200000000 false\nlan-server 50000000 false\nclient-lan 0 true", strings.Join(words, "\n"))
}
