package netx

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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

func pathOf(ns *NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()) }
