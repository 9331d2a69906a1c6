package netx

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNICComesBackAsItWas(t *testing.T) {
	home, machine := nicHome(t), makeNS(t)
	furnish(t, home)
	in(t, home, "sysctl -qw net.ipv6.conf.eth1.dad_transmits=1") // what comes back is ready at once all the same
	before := state(t, home)
	nic := given(t, home, machine, "eth1", "eth7")
	if out := in(t, machine, "ip -o link show eth7"); !strings.Contains(out, "state DOWN") || !strings.Contains(out, "alias "+nic.Mark()) {
		t.Errorf("in the machine, want it down and marked: %s", out)
	}
	if away := in(t, home, "ip link"); strings.Contains(away, "eth1") {
		t.Errorf("at home there is still:\n%s", away)
	}
	abuse(t, machine, "eth7")
	if err := TakeNICBack(nic, machine, home); err != nil {
		t.Fatal(err)
	}
	if out := in(t, home, "ip addr"); strings.Contains(out, "tentative") {
		t.Errorf("addresses are asked for again, not there at once:\n%s", out)
	}
	unchanged(t, home, before, "back")
	// Again, and with the machine's namespace gone: nothing is to be done.
	for _, from := range []*NS{machine, nil} {
		if err := TakeNICBack(nic, from, home); err != nil {
			t.Error(err)
		}
	}
	unchanged(t, home, before, "taken back twice")
	// And all of it once more, with what was restored.
	nic = given(t, home, machine, "eth1", "")
	if err := TakeNICBack(nic, machine, home); err != nil {
		t.Fatal(err)
	}
	unchanged(t, home, before, "the second time away")
}

// TestNICHalfBack interrupts the way there and back at every stage.
func TestNICHalfBack(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(home, machine *NS, nic *NIC)
	}{
		{"saved only", func(home, machine *NS, nic *NIC) {}},
		{"marked", func(home, machine *NS, nic *NIC) { in(t, home, "ip link set eth1 alias "+nic.Mark()) }},
		{"moved home", func(home, machine *NS, nic *NIC) {
			home.GiveNIC(nic, machine, "eth7")
			in(t, machine, "ip link set eth7 netns "+pathOf(home))
		}},
		{"moved home and named", func(home, machine *NS, nic *NIC) {
			home.GiveNIC(nic, machine, "eth7")
			in(t, machine, "ip link set eth7 name eth1 netns "+pathOf(home))
		}},
		{"up at home, some of it there", func(home, machine *NS, nic *NIC) {
			home.GiveNIC(nic, machine, "eth1")
			in(t, machine, "ip link set eth1 netns "+pathOf(home))
			for _, line := range []string{"ip link set eth1 up", "ip addr add 10.1.0.1/24 brd + dev eth1", "ip route add 10.21.0.0/16 dev eth1 table 100 tos 4"} {
				in(t, home, line)
			}
		}},
		{"the mark taken off inside", func(home, machine *NS, nic *NIC) {
			home.GiveNIC(nic, machine, "eth7")
			in(t, machine, "ip link set eth7 name foo alias hidden")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			home, machine := nicHome(t), makeNS(t)
			furnish(t, home)
			before := state(t, home)
			nic, err := home.SaveNIC("eth1")
			if err != nil {
				t.Fatal(err)
			}
			c.do(home, machine, nic)
			if err := TakeNICBack(nic, machine, home); err != nil {
				t.Fatal(err)
			}
			unchanged(t, home, before, "back")
		})
	}
}

func TestNICDown(t *testing.T) {
	home, machine := nicHome(t), makeNS(t)
	for _, line := range []string{"ip link set eth1 down", "ip addr add 10.1.0.1/24 dev eth1", "sysctl -qw net.ipv6.conf.eth1.disable_ipv6=1"} {
		in(t, home, line)
	}
	settled(t, home)
	before := state(t, home)
	nic := given(t, home, machine, "eth1", "")
	in(t, machine, "ip link set eth1 up")
	if err := TakeNICBack(nic, machine, home); err != nil {
		t.Fatal(err)
	}
	unchanged(t, home, before, "back")
}

// TestNICLifetimes: a lease runs on while the interface is away.
func TestNICLifetimes(t *testing.T) {
	home, machine := nicHome(t), makeNS(t)
	for _, line := range []string{
		"ip addr add 10.1.0.1/24 dev eth1 valid_lft 1000 preferred_lft 100", "ip addr add fd00::1/64 dev eth1 nodad valid_lft 2000 preferred_lft 100",
		"ip addr add 10.2.0.1/24 dev eth1 valid_lft 200 preferred_lft 100", "ip -6 route add fd00:b::/64 dev eth1 expires 900",
		"ip -6 route add fd00:c::/64 dev eth1 expires 200",
	} {
		in(t, home, line)
	}
	nic := given(t, home, machine, "eth1", "")
	nic.Saved -= 300
	if err := TakeNICBack(nic, machine, home); err != nil {
		t.Fatal(err)
	}
	out := in(t, home, "ip addr show eth1") + in(t, home, "ip -6 route")
	for pattern, want := range map[string]int{
		`10\.1\.0\.1/24(?s:.*?)valid_lft (\d+)sec`: 700, `fd00::1/64(?s:.*?)valid_lft (\d+)sec`: 1700,
		`10\.1\.0\.1/24(?s:.*?)preferred_lft (\d+)sec`: 0, `fd00:b::/64 .*expires (\d+)sec`: 600,
	} {
		got := -1
		if m := regexp.MustCompile(pattern).FindStringSubmatch(out); m != nil {
			fmt.Sscan(m[1], &got)
		}
		if got > want || got < want-60 { // a slow minute
			t.Errorf("%s: got %d, want %d", pattern, got, want)
		}
	}
	for _, over := range []string{"10.2.0.1", "fd00:c::"} {
		if strings.Contains(out, over) {
			t.Errorf("%s had 200 s to live, and is there after 300:\n%s", over, out)
		}
	}
}

func TestNICNameTaken(t *testing.T) {
	home, machine := nicHome(t), makeNS(t)
	furnish(t, home)
	before := state(t, home)
	nic := given(t, home, machine, "eth1", "")
	in(t, home, "ip link add eth1 type bridge")
	err := TakeNICBack(nic, machine, home)
	if err == nil || !strings.Contains(err.Error(), "came back as eth1-1") {
		t.Fatalf("got %v, want an error that names eth1-1", err)
	}
	if out := in(t, home, "ip addr show eth1-1"); !strings.Contains(out, "10.1.0.1/24") || !strings.Contains(out, "state UP") {
		t.Errorf("want all but the name restored: %s", out)
	}
	in(t, home, "ip link del eth1")
	if err := TakeNICBack(nic, nil, home); err != nil {
		t.Fatal(err)
	}
	unchanged(t, home, before, "once the name is free")
}

// TestNICDiesWithItsNamespace: what netlink made, the kernel deletes.
func TestNICDiesWithItsNamespace(t *testing.T) {
	home, machine := nicHome(t), makeNS(t)
	nic := given(t, home, machine, "eth1", "")
	machine.Close()
	if err := TakeNICBack(nic, nil, home); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "veth") {
		t.Errorf("got %v, want ErrGone and the kind", err)
	}
}

// TestNICNested has a machine give away what it was given.
func TestNICNested(t *testing.T) {
	home, outer, inner := nicHome(t), makeNS(t), makeNS(t)
	furnish(t, home)
	before := state(t, home)
	first := given(t, home, outer, "eth1", "")
	in(t, outer, "ip link set eth1 up")
	settled(t, outer)
	between := state(t, outer)
	second := given(t, outer, inner, "eth1", "eth5")
	if err := TakeNICBack(second, inner, outer); err != nil {
		t.Fatal(err)
	}
	unchanged(t, outer, between, "in the outer one")
	if err := TakeNICBack(first, outer, home); err != nil {
		t.Fatal(err)
	}
	unchanged(t, home, before, "back")
}

func TestNICRefused(t *testing.T) {
	home, machine := nicHome(t), makeNS(t)
	for _, line := range []string{"ip link add br0 type bridge", "ip link set eth1 master br0"} {
		in(t, home, line)
	}
	for name, want := range map[string]string{
		"lo": "loopback", "eth1": "port of the bridge br0; take it out first (ip link set eth1 nomaster)", "br0": "netns-local",
		"eth9": "not there; there are br0, eth0, eth1, lo",
	} {
		if _, err := home.SaveNIC(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	// The kernel's own no.
	l, err := home.link("br0")
	if err != nil {
		t.Fatal(err)
	}
	nic := &NIC{ID: "x", Name: "br0", Kind: "bridge", Index: l.Attrs().Index, MAC: l.Attrs().HardwareAddr.String(), MTU: 1500, TxQueue: 1000, Flags: unix.IFF_MULTICAST}
	if _, err := home.GiveNIC(nic, machine, ""); err == nil || !strings.Contains(err.Error(), kept) {
		t.Errorf("got %v, want %q", err, kept)
	}
	in(t, home, "ip link set eth1 nomaster")
	in(t, machine, "ip link add eth7 type bridge")
	if nic, err = home.SaveNIC("eth1"); err != nil {
		t.Fatal(err)
	}
	settled(t, home)
	before := state(t, home)
	if _, err := home.GiveNIC(nic, machine, "eth7"); err == nil || !strings.Contains(err.Error(), "eth7 already") {
		t.Errorf("a taken name: got %v", err)
	}
	nic.Index = 10
	if _, err := home.GiveNIC(nic, machine, ""); err == nil || !strings.Contains(err.Error(), "another one of that name") {
		t.Errorf("another interface: got %v", err)
	}
	unchanged(t, home, before, "after what was refused")
}

func TestCarriesCaller(t *testing.T) {
	home := nicHome(t)
	carries := func(want string) {
		t.Helper()
		var got []string
		for _, name := range []string{"lo", "eth0", "eth1"} {
			yes, err := home.CarriesCaller(name)
			if err != nil {
				t.Fatal(err)
			}
			if yes {
				got = append(got, name)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("got %q, want %q", s, want)
		}
	}
	carries("")
	for _, line := range []string{"ip addr add 10.0.0.1/24 dev eth0", "ip addr add 10.1.0.1/24 dev eth1", "ip route add default via 10.0.0.9 table 100"} {
		in(t, home, line)
	}
	carries("")
	in(t, home, "ip route add default via 10.0.0.9")
	carries("eth0")
	in(t, home, "ip route add default via 10.1.0.9 metric 5")
	carries("")
	in(t, home, "ip -6 route add default via fe80::9 dev eth1")
	carries("eth1")
	in(t, home, "ip -6 route del default")
	in(t, home, "ip route del default metric 5")
	in(t, home, "ip route del default")
	in(t, home, "ip route add default nexthop via 10.0.0.9 nexthop via 10.1.0.9")
	carries("")
	if _, err := home.CarriesCaller("eth9"); err == nil {
		t.Error("eth9 is not there")
	}
}
