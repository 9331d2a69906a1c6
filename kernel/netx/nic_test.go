package netx

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nicHome makes a namespace with a NIC eth1 in it, a veth whose other end is elsewhere,
// and next to it eth0, which stays. Both are up.
func nicHome(t *testing.T) *NS {
	t.Helper()
	home, wire := makeNS(t), makeNS(t)
	in(t, home, "sysctl -qw net.ipv6.conf.default.dad_transmits=0") // duplicates are asked for, but not waited for
	for i, name := range []string{"eth0", "eth1"} {
		mac := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}
		if err := home.AddVeth(Veth{End: End{Name: name, Index: 10 + i, MAC: mac}, Far: End{Name: name}, FarNS: wire}); err != nil {
			t.Fatal(err)
		}
		far, err := wire.Index(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{wire.SetUp(far, true), home.SetUp(10+i, true), home.SetUp(1, true)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return home
}

// in runs a command line, one of ip(8)'s or sysctl's, in a namespace.
func in(t *testing.T, ns *NS, line string) string {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		words := strings.Fields(line)
		out, err = exec.Command(words[0], words[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// counted is what passes of itself while a test runs.
var counted = regexp.MustCompile(`(valid_lft|preferred_lft|expires) \d+sec`)

// state is all that ip(8) and /proc/sys tell of a namespace's networks.
func state(t *testing.T, ns *NS) string {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Fatal("want ip(8), of the package iproute2")
	}
	var b strings.Builder
	for _, line := range []string{
		"ip -details link", "ip -details addr", "ip -details route show table all", "ip -details -6 route show table all",
		"ip neigh show nud permanent", "ip neigh show proxy", "ip -6 neigh show proxy", "ip rule",
	} {
		out := counted.ReplaceAllString(in(t, ns, line), "$1 Nsec")
		// Which is what it has until it is first taken up.
		fmt.Fprintf(&b, "# %s\n%s", line, strings.ReplaceAll(out, "qdisc noop ", "qdisc noqueue "))
	}
	err := ns.Do(func() error {
		for _, folder := range perInterface {
			files, err := filepath.Glob("/proc/sys/net/" + folder + "/eth*/*")
			if err != nil {
				return err
			}
			for _, f := range files {
				v, _ := os.ReadFile(f)
				fmt.Fprintf(&b, "%s = %s\n", f, strings.TrimSpace(string(v)))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// unsettled is what an interface that was just taken up shows for a second or two.
var unsettled = regexp.MustCompile(`tentative|NO-CARRIER`)

// settled waits until no address is tentative and every cable is seen.
func settled(t *testing.T, ns *NS) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); unsettled.MatchString(in(t, ns, "ip addr")); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not settled after 20 s:\n%s", in(t, ns, "ip addr"))
		}
	}
}

// unchanged compares a namespace's state with what it was.
func unchanged(t *testing.T, ns *NS, before, when string) {
	t.Helper()
	settled(t, ns)
	if d := cmp.Diff(before, state(t, ns)); d != "" {
		t.Errorf("%s, -before +after:\n%s", when, d)
	}
}

// furnish gives eth1, and eth0 beside it, all that a NIC may have.
func furnish(t *testing.T, home *NS) {
	t.Helper()
	for _, line := range []string{
		"ip link set eth1 mtu 1400 txqueuelen 500 group 7 alias uplink", "ip link property add dev eth1 altname enp9s9", "ip link set eth1 allmulticast on",
		"sysctl -qw net.ipv4.conf.eth1.rp_filter=2 net.ipv4.conf.eth1.forwarding=1 net.ipv4.conf.eth1.proxy_arp=1 net.ipv4.conf.eth1.accept_redirects=0",
		"sysctl -qw net.ipv4.conf.eth1.arp_ignore=1 net.ipv6.conf.eth1.accept_ra=2 net.ipv6.conf.eth1.use_tempaddr=0 net.ipv4.neigh.eth1.gc_stale_time=90",
		"sysctl -qw net.ipv6.conf.eth1.proxy_ndp=1",
		"ip addr add 192.0.2.1/24 dev eth0",
		"ip addr add 10.1.0.1/24 brd + dev eth1", "ip addr add 10.1.0.2/24 dev eth1 label eth1:two", "ip addr add 10.1.1.1/24 brd 10.1.1.255 scope link dev eth1 metric 50",
		"ip addr add 10.2.0.1 peer 10.2.0.9/32 dev eth1", "ip addr add 10.3.0.1/24 dev eth1 noprefixroute",
		"ip addr add 10.4.0.1/24 dev eth1 valid_lft 1000 preferred_lft 500",
		"ip addr add fd00:1::1/64 dev eth1 nodad", "ip addr add fd00:2::1/64 dev eth1", "ip addr add fd00:3::1/64 dev eth1 noprefixroute metric 77",
		"ip addr add fd00:4::1 peer fd00:4::2 dev eth1", "ip addr add fd00:5::1/64 dev eth1 valid_lft 1000 preferred_lft 0",
		"ip addr add fe80::77/64 dev eth1",
	} {
		in(t, home, line)
	}
	settled(t, home) // a route wants the address it is from ready
	for _, line := range []string{
		"ip route add default via 10.1.0.254 dev eth1 metric 100 proto dhcp src 10.1.0.2", "ip route add default via 192.0.2.254 dev eth0 metric 200",
		"ip route add 10.3.0.0/24 dev eth1 proto kernel scope link src 10.3.0.1 metric 9",
		"ip route add 198.51.100.0/24 via 10.9.9.9 dev eth1 onlink mtu lock 1300 advmss 1200", "ip route add 10.20.0.0/16 via 198.51.100.7 dev eth1 onlink",
		"ip route add 10.21.0.0/16 dev eth1 table 100 tos 4", "ip route add unicast default via 10.1.0.253 table 100", "ip route add local 10.22.0.0/16 dev eth1 table local",
		"ip route add 10.23.0.0/16 nexthop via 10.1.0.3 dev eth1 weight 3 nexthop via 10.1.0.4 dev eth1",
		"ip route add 10.24.0.0/16 nexthop via 10.1.0.3 dev eth1 nexthop via 192.0.2.3 dev eth0 weight 5",
		"ip route add 10.25.0.0/16 via 192.0.2.9 src 10.1.0.1", "ip route add 10.26.0.0/16 via inet6 fe80::9 dev eth1",
		"ip route add blackhole 10.27.0.0/16",
		"ip -6 route add default via fe80::1 dev eth1 metric 512 pref high", "ip -6 route add fd00:9::/64 via fd00:2::9 src fd00:2::1",
		"ip -6 route add fd00:a::/64 nexthop via fd00:1::3 weight 2 nexthop via fd00:1::4", "ip -6 route add fd00:b::/64 dev eth1 table 100 expires 600",
		"ip -6 route add fd00:c::/64 dev eth1 proto static metric 5",
		"ip neigh add 10.1.0.99 lladdr 02:00:00:00:00:99 dev eth1", "ip neigh add fd00:1::99 lladdr 02:00:00:00:00:98 dev eth1 router",
		"ip neigh add proxy 10.1.0.77 dev eth1", "ip neigh add proxy fd00:1::77 dev eth1",
		"ip rule add iif eth1 lookup 100",
	} {
		in(t, home, line)
	}
}

// addresses are compared by their values.
var addresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// alike tells whether the interface is as it was when before was saved.
func alike(t *testing.T, home *NS, before *NIC, when string) {
	t.Helper()
	now, err := home.SaveNIC(before.Name)
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	now.ID, now.Saved = before.ID, before.Saved
	if d := cmp.Diff(before, now, addresses); d != "" {
		t.Errorf("%s, -before +after:\n%s", when, d)
	}
}

// given saves a NIC, through JSON as the ledger does, and gives it away.
func given(t *testing.T, home, to *NS, name, as string) *NIC {
	t.Helper()
	saved, err := home.SaveNIC(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(saved)
	if err != nil {
		t.Fatal(err)
	}
	nic := new(NIC)
	if err := json.Unmarshal(b, nic); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(saved, nic, addresses); d != "" {
		t.Fatalf("JSON loses something (-saved +read):\n%s", d)
	}
	index, err := home.GiveNIC(nic, to, as)
	if err != nil {
		t.Fatal(err)
	}
	if as == "" {
		as = name
	}
	if i, err := to.Index(as); err != nil || i != index {
		t.Fatalf("%s: got the number %d, %v; GiveNIC said %d", as, i, err, index)
	}
	return nic
}

// abuse does to a NIC in a machine what its root may.
func abuse(t *testing.T, ns *NS, name string) {
	t.Helper()
	for _, line := range []string{
		"ip link set " + name + " address 02:00:00:00:66:66 mtu 1280 txqueuelen 9 group 3 allmulticast off", "ip link set " + name + " arp off",
		"ip link set " + name + " up", "ip addr add 10.1.0.1/16 dev " + name, "ip link property del dev " + name + " altname enp9s9",
		"ip link set " + name + " down", "ip link set " + name + " name foo", "ip link set foo up",
	} {
		in(t, ns, line)
	}
}

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

func pathOf(ns *NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()) }

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

// TestRealNIC wants a NIC that the kernel throws into the initial namespace when
// the one it is in dies, and runs where there is one to spare:
//
//	scripts/vm -n "-netdev hubport,id=a,hubid=0 -device virtio-net-pci,netdev=a,romfile= -netdev hubport,id=b,hubid=0 -device virtio-net-pci,netdev=b,romfile=" …
func TestRealNIC(t *testing.T) {
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
