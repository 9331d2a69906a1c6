package kernel

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"msh/kernel/checkpoint"
	"msh/kernel/netx"
)

// A whole lab of two switches and a cable between them is saved, ended and woken in
// another: a connection over the cable goes on, and a network that nobody is on is
// there again.
func TestLabWhole(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	file := filepath.Join(t.TempDir(), "lab.msh")
	first := labOn(t, h, "")
	a, err := first.VNet(t.Context(), first.Host(), &VNetSpec{Name: "a", Subnets: prefixes("10.7.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	b, err := first.VNet(t.Context(), first.Host(), &VNetSpec{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.VNet(t.Context(), first.Host(), &VNetSpec{Name: "empty", MTU: 1400}); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Link(t.Context(), LinkEnd{VNet: a}, LinkEnd{VNet: b}, Cable{Out: netx.Impair{Rate: 100e6}, Named: []string{"rate"}}); err != nil {
		t.Fatal(err)
	}
	server := onNet(t, first, a, "server")
	client := forkNamed(t, first, "client", &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Netif{VNet: "b", Addresses: []Address{{netip.MustParsePrefix("10.7.0.9/24")}}})
	streamer(t, server, "serve", "")
	if err := server.WaitPort(t.Context(), 7000, long); err != nil {
		t.Fatal(err)
	}
	streamer(t, client, "get", server.Address())
	eventuallyIn(t, client, "/got", "0")
	got(t, client, 100)
	if _, err := first.Snapshot(t.Context(), file, SnapshotOptions{}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	got(t, client, got(t, client, 0)+100)
	r, err := first.Snapshot(t.Context(), file, SnapshotOptions{Hibernate: true})
	if err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	if !r.Info.Manifest.WholeLab || len(r.Info.Manifest.Machines) != 2 {
		t.Errorf("manifest %+v", r.Info.Manifest)
	}
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}

	second := labOn(t, h, "-2")
	all, err := second.WakeFile(t.Context(), file, WakeOptions{})
	if err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	for _, m := range all {
		if m.Name() == "client" {
			got(t, m, got(t, m, 0)+200)
		}
	}
	var nets []string
	for _, v := range second.VNets() {
		nets = append(nets, v.Name())
	}
	want(t, "networks", "a b empty", strings.Join(nets, " "))
	if links := second.Links(); len(links) != 1 || links[0].Cable().Out.Rate != 100e6 {
		t.Errorf("cables %v", links)
	}
	if _, err := second.Snapshot(t.Context(), t.TempDir()+"/no/such/dir", SnapshotOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// A manifest with networks or cables that are none is refused.
func TestSavedNetsHostile(t *testing.T) {
	for _, text := range []string{`7`, `[null]`, `[{}]`, `[{"MTU":1500}]`} {
		if got, err := savedNets(&checkpoint.Manifest{Networks: []byte(text)}); !errors.Is(err, checkpoint.ErrHostile) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{`7`, `[null]`, `[{}]`, `[{"Ends":[{"VNet":"a"},{"VNet":"b"}]}]`, `[{"Ends":[{"VNet":"a"},{"Machine":"m","Netif":"eth0"}]}]`,
		`[{"Ends":[{"VNet":"a","Machine":"m"},{"VNet":"a"}]}]`, `[{"Ends":[{"Machine":"m","Netif":"eth1"},{"VNet":"a"}]}]`,
		`[{"Ends":[{"Machine":"m","Netif":"eth0"},{"Machine":"m","Netif":"eth0"}]}]`, `[{"Ends":[{"VNet":"a"},{"VNet":"a"}],"Cable":{"Out":{"Loss":300}}}]`} {
		w := &waking{saved: &checkpoint.Machine{Name: "m"}, spec: &Spec{Name: "m", Resources: []Resource{&Netif{Name: "eth0", Link: "m-n"}, &Netif{Name: "eth2", VNet: "a"}}}}
		wk := &wake{manifest: &checkpoint.Manifest{Networks: []byte(`[{"Name":"a"}]`), Cables: []byte(text)}, all: []*waking{w}}
		w.wake = wk
		if err := wk.readCables(); !errors.Is(err, checkpoint.ErrHostile) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
