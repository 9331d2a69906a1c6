package netx

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestV2NICDummy is TestNICComesBackAsItWas in small, without ip(8), on another kernel.
func TestV2NICDummy(t *testing.T) {
	home, machine := makeNS(t), makeNS(t)
	h, err := home.Route()
	if err != nil {
		t.Fatal(err)
	}
	err = h.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "eth1", Index: 7, MTU: 1400, TxQLen: 500, Group: 7, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}})
	if errors.Is(err, unix.EOPNOTSUPP) && os.Getenv("MSH_VM") == "" {
		t.Skip("the kernel has no dummy interfaces (CONFIG_DUMMY)")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetAlias(byIndex(7), "uplink"); err != nil {
		t.Fatal(err)
	}
	if err := home.Do(func() error { return WriteSysctl("net.ipv4.conf.eth1.rp_filter", "2") }); err != nil {
		t.Fatal(err)
	}
	if err := home.SetUp(7, true); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.7.0.1/24", "10.7.0.2/24", "fd07::1/64", "fd08::1/64"} {
		if err := home.AddAddress(7, netip.MustParsePrefix(a)); err != nil {
			t.Fatal(err)
		}
	}
	if err := home.AddDefaultRoute(7, netip.MustParseAddr("10.7.0.254")); err != nil {
		t.Fatal(err)
	}
	if err := home.AddDefaultRoute(7, netip.MustParseAddr("fd07::9")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // its own link-local address, and its route
	nic := given(t, home, machine, "eth1", "eth0")
	if err := TakeNICBack(nic, machine, home); err != nil {
		t.Fatal(err)
	}
	alike(t, home, nic, "back")
	nic = given(t, home, machine, "eth1", "eth0")
	machine.Close()
	if err := TakeNICBack(nic, nil, home); !errors.Is(err, ErrGone) {
		t.Errorf("its namespace died: got %v, want ErrGone", err)
	}
}

// TestRealNICV2 wants a NIC that the kernel throws into the initial namespace when
// the one it is in dies, and runs where there is one to spare:
//
//	scripts/vm -n "-netdev hubport,id=a,hubid=0 -device virtio-net-pci,netdev=a,romfile= -netdev hubport,id=b,hubid=0 -device virtio-net-pci,netdev=b,romfile=" …
func TestRealNICV2(t *testing.T) {
	if os.Getenv("MSH_VM") == "" {
		t.Skip("takes real interfaces away: only in the machine of scripts/vm")
	}
	host, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	h, err := host.Route()
	if err != nil {
		t.Fatal(err)
	}
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	links = slices.DeleteFunc(links, func(l netlink.Link) bool { return l.Type() != "device" || l.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 })
	if len(links) == 0 {
		t.Skip("this machine has no real NIC; the command above gives it two")
	}
	name := links[0].Attrs().Name
	index := links[0].Attrs().Index
	if err := host.SetUp(index, true); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.7.0.1/24", "fd07::1/64"} {
		if err := host.AddAddress(index, netip.MustParsePrefix(a)); err != nil {
			t.Fatal(err)
		}
	}
	if err := host.AddDefaultRoute(index, netip.MustParseAddr("10.7.0.254")); err != nil {
		t.Fatal(err)
	}
	nic0, err := host.SaveNIC(name)
	if err != nil {
		t.Fatal(err)
	}
	if nic0.PermanentMAC == "" || nic0.Device == "" || !nic0.physical() {
		t.Errorf("got %+v, want a permanent MAC and a device", nic0)
	}
	for _, c := range []struct {
		what string
		do   func(machine *NS, index int)
	}{
		{"taken back in good time", nil},
		{"its namespace died", func(machine *NS, index int) { machine.SetUp(index, true) }},
		{"its namespace died, and its name is taken", func(machine *NS, index int) {
			if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth7"}}); err != nil {
				t.Fatal(err)
			}
		}},
		{"its namespace died, and it had lost its mark and its MAC", func(machine *NS, index int) {
			m, err := machine.Route()
			if err != nil {
				t.Fatal(err)
			}
			l, err := m.LinkByIndex(index)
			if err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{m.LinkSetAlias(l, "mine"), m.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 7})} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		machine := makeNS(t)
		nic, err := host.SaveNIC(name)
		if err != nil {
			t.Fatal(err)
		}
		there, err := host.GiveNIC(nic, machine, "eth7")
		if err != nil {
			t.Fatal(err)
		}
		if host.Has(name) {
			t.Errorf("%s is still at home", name)
		}
		from := machine
		if c.do != nil {
			c.do(machine, there)
			machine.Close()
			from = nil
		}
		if err := TakeNICBack(nic, from, host); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		alike(t, host, nic0, c.what)
	}
	// A machine's machine: thrown into the initial namespace, it goes to the machine.
	outer, inner := makeNS(t), makeNS(t)
	first, err := host.SaveNIC(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.GiveNIC(first, outer, "eth0"); err != nil {
		t.Fatal(err)
	}
	second, err := outer.SaveNIC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := outer.GiveNIC(second, inner, "eth0"); err != nil {
		t.Fatal(err)
	}
	inner.Close()
	if err := TakeNICBack(second, nil, outer); err != nil {
		t.Error(err)
	}
	if !outer.Has("eth0") {
		t.Error("it is not back in the outer machine")
	}
	if err := TakeNICBack(first, outer, host); err != nil {
		t.Error(err)
	}
	alike(t, host, nic0, "by way of two machines")
}
