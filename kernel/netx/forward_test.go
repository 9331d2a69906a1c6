package netx

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// firewalls are forms in which hosts drop what is forwarded.
var firewalls = []struct{ name, rules string }{
	{"docker", `
table ip filter {
	chain DOCKER-USER {
		counter return
	}
	chain FORWARD {
		type filter hook forward priority 0; policy drop;
		counter jump DOCKER-USER
		oifname "docker0" ct state related,established counter accept
		iifname "docker0" oifname != "docker0" counter accept
	}
}
table ip6 filter {
	chain FORWARD {
		type filter hook forward priority 0; policy drop;
	}
}`},
	{"inet", `
table inet filter {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state invalid drop
		iifname "lan" oifname "wan" accept comment "mine"
	}
}`},
	{"firewalld", `
table inet firewalld {
	chain filter_FORWARD_POLICIES {
		iifname "docker0" accept
		log prefix "denied: " counter reject with icmpx type admin-prohibited
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state established,related accept
		iifname "lo" accept
		goto filter_FORWARD_POLICIES
	}
}`},
	{"two in a row", `
table ip one {
	chain forward {
		type filter hook forward priority -5; policy drop;
	}
}
table ip6 one {
	chain forward {
		type filter hook forward priority -5; policy drop;
	}
}
table inet two {
	chain forward {
		type filter hook forward priority 5; policy accept;
		counter drop comment "all the rest"
	}
}`},
}

// TestOpenForward: what a firewall drops passes once it is open for the leg, and
// closing it leaves the rules as they were, to the byte.
func TestOpenForward(t *testing.T) {
	r := makeRouted(t)
	must(t, r.router.Masquerade("msh-nat", masqueraded, "up"))
	for _, route := range []string{legV4, legV6} { // the server tries to get in
		via := map[string]string{legV4: upV4, legV6: upV6}[route]
		must(t, r.server.AddDefaultRoute(2, netip.MustParseAddr(via)))
	}
	blocked := func(t *testing.T, when string) {
		t.Helper()
		for _, server := range []string{serverV4, serverV6} {
			if _, err := overUDP(t, r.client, r.server, server, silence); err == nil {
				t.Errorf("%s: %s answers, want it blocked", when, server)
			}
		}
	}
	for _, f := range firewalls {
		t.Run(f.name, func(t *testing.T) {
			nft(t, r.router, f.rules)
			t.Cleanup(func() {
				nft(t, r.router, "flush ruleset")
				must(t, r.router.Masquerade("msh-nat", masqueraded, "up"))
			})
			before := rulesOf(t, r.router)
			must(t, r.router.OpenForward("msh other", "other"))
			others := rulesOf(t, r.router)
			for range 2 {
				must(t, r.router.OpenForward("msh lab/net", "leg"))
			}
			open := rulesOf(t, r.router)
			if got, want := strings.Count(open, `comment "msh lab/net"`), strings.Count(others, `comment "msh other"`); got != want || want == 0 || want%2 != 0 {
				t.Errorf("got %d rules for leg and %d for other, want as many, an even number:\n%s", got, want, open)
			}
			for range 2 {
				must(t, r.router.CloseForward("msh lab/net"))
			}
			if d := cmp.Diff(others, rulesOf(t, r.router)); d != "" {
				t.Errorf("closed (-want +got):\n%s", d)
			}
			must(t, r.router.CloseForward("msh other"))
			if d := cmp.Diff(before, rulesOf(t, r.router)); d != "" {
				t.Errorf("both closed (-want +got):\n%s", d)
			}

			blocked(t, "before")
			must(t, r.router.OpenForward("msh lab/net", "leg"))
			for _, server := range []string{serverV4, serverV6} {
				if _, err := overUDP(t, r.client, r.server, server, patience); err != nil {
					t.Errorf("open: %s: %v", server, err)
				}
				if _, err := overTCP(t, r.client, r.server, server, patience); err != nil {
					t.Errorf("open: %s: %v", server, err)
				}
			}
			for _, client := range []string{clientV4, clientV6} {
				if _, err := overUDP(t, r.server, r.client, client, silence); err == nil {
					t.Errorf("open: %s, on the inside, answers to somebody outside", client)
				}
			}
			must(t, r.router.CloseForward("msh lab/net"))
			blocked(t, "after")
			if d := cmp.Diff(uncounted(before), uncounted(rulesOf(t, r.router))); d != "" {
				t.Errorf("after (-want +got):\n%s", d)
			}
		})
	}
}

// uncounted is a listing without what its counters say.
func uncounted(rules string) string {
	return regexp.MustCompile(`packets [0-9]+ bytes [0-9]+`).ReplaceAllString(rules, "packets 0 bytes 0")
}

// TestOpenForwardLeaves: a chain that lets through what it does not name stays as
// it is, lest its own rules be skipped.
func TestOpenForwardLeaves(t *testing.T) {
	ns := makeNS(t)
	nft(t, ns, `
table ip mangle {
	chain FORWARD {
		type filter hook forward priority mangle; policy accept;
		tcp flags syn counter
	}
}
table inet allows {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state invalid drop
		iifname "leg" drop
		counter accept
	}
	chain input {
		type filter hook input priority filter; policy drop;
	}
}
table inet sleeps {
	flags dormant
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table bridge filter {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table inet jumps {
	chain some {
		return
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		jump some
		ip saddr 10.0.0.1 goto none
	}
	chain none {
		drop
	}
}
`)
	before := rulesOf(t, ns)
	must(t, ns.OpenForward("msh", "leg"))
	if d := cmp.Diff(before, rulesOf(t, ns)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, mark := range []string{"", strings.Repeat("x", 128)} {
		if err := ns.OpenForward(mark, "leg"); err == nil {
			t.Errorf("a mark of %d bytes: want an error", len(mark))
		}
	}
	if err := ns.CloseForward(""); err == nil {
		t.Error("close without a mark: want an error")
	}
}

// TestOpenForwardIptables: iptables-nft goes on listing its table, with our rules
// in it. With rules in nf_tables' own form it would refuse to.
func TestOpenForwardIptables(t *testing.T) {
	for _, command := range []string{"iptables-nft", "ip6tables-nft"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Skipf("%s, which has to read the rules here, is not installed (package iptables)", command)
		}
		ns := makeNS(t)
		run(t, ns, "", command, "-P", "FORWARD", "DROP")
		run(t, ns, "", command, "-A", "FORWARD", "-i", "docker0", "-j", "ACCEPT")
		before := run(t, ns, "", command, "-S")
		must(t, ns.OpenForward("msh lab/net", "leg"))
		want := strings.Replace(before, "-A FORWARD", `-A FORWARD -i leg -m comment --comment "msh lab/net" -j ACCEPT
-A FORWARD -o leg -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "msh lab/net" -j ACCEPT
-A FORWARD`, 1)
		if d := cmp.Diff(want, run(t, ns, "", command, "-S")); d != "" {
			t.Errorf("%s (-want +got):\n%s", command, d)
		}
		must(t, ns.CloseForward("msh lab/net"))
		if d := cmp.Diff(before, run(t, ns, "", command, "-S")); d != "" {
			t.Errorf("%s, closed (-want +got):\n%s", command, d)
		}
	}
}

// TestOpenForwardOwned: a table that only the program which made it can change is
// told of, and the others are opened all the same.
func TestOpenForwardOwned(t *testing.T) {
	ns := makeNS(t)
	nft(t, ns, "table inet filter {\n chain forward {\n type filter hook forward priority 0; policy drop;\n }\n }")
	var in io.WriteCloser
	var out io.Reader
	var owner *exec.Cmd
	must(t, ns.Do(func() (err error) {
		owner = exec.Command("nft", "-i")
		if in, err = owner.StdinPipe(); err != nil {
			return err
		}
		if out, err = owner.StdoutPipe(); err != nil {
			return err
		}
		return owner.Start()
	}))
	defer owner.Wait()
	defer in.Close()
	io.WriteString(in, "add table inet firewalld { flags owner; }\n"+
		"add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy drop; }\n"+
		"list tables\n")
	for lines := bufio.NewScanner(out); ; {
		if !lines.Scan() {
			t.Fatal("nft -i ended")
		}
		if strings.Contains(lines.Text(), "table inet firewalld") {
			break
		}
	}
	err := ns.OpenForward("msh", "leg")
	closed := (*Closed)(nil)
	if !errors.As(err, &closed) || !strings.Contains(err.Error(), "firewalld") || !strings.Contains(closed.Hint(), "NftablesTableOwner=no") {
		t.Errorf("got %v, want it to name firewalld, and the mend", err)
	}
	if got := strings.Count(rulesOf(t, ns), `comment "msh"`); got != 2 {
		t.Errorf("got %d rules, want the 2 in the table that is open to us", got)
	}
	must(t, ns.CloseForward("msh"))
}

// TestOpenForwardLegacy: the tables of iptables-legacy are seen, and told of with
// the mend.
func TestOpenForwardLegacy(t *testing.T) {
	ns := makeNS(t)
	must(t, ns.OpenForward("msh", "leg"))
	for i, l := range legacies {
		if _, err := os.Stat(l.names); errors.Is(err, os.ErrNotExist) {
			t.Skipf("this kernel has no %s (CONFIG_IP_NF_FILTER, CONFIG_IP6_NF_FILTER)", l.command)
		}
		must(t, ns.Do(func() error { return l.setPolicy(legacyAccept) })) // which makes the table
		if err := ns.OpenForward("msh", "leg"); i == 0 && err != nil {
			t.Errorf("%s, policy ACCEPT: %v", l.command, err)
		}
		must(t, ns.Do(func() error { return l.setPolicy(legacyDrop) }))
		err := ns.OpenForward("msh", "leg")
		closed := (*Closed)(nil)
		if !errors.As(err, &closed) || !slices.Contains(closed.By, l.command) || !strings.Contains(closed.Hint(), l.command+" -I FORWARD -i leg -j ACCEPT") {
			t.Errorf("%s, policy DROP: got %v, want it told, with the mend", l.command, err)
		}
	}
}

// setPolicy makes a filter without rules, as iptables-legacy -P FORWARD does, in
// the calling thread's namespace.
func (l *legacy) setPolicy(verdict int32) error {
	info, entries, err := l.read("filter")
	if err != nil {
		return err
	}
	policy := entries[info.underflow[unix.NF_INET_FORWARD]:]
	binary.NativeEndian.PutUint32(policy[int(binary.NativeEndian.Uint16(policy[l.target:]))+legacyTarget:], uint32(verdict))
	counters := make([]byte, 16*info.numEntries)
	b := slices.Clone(info.name[:]) // struct ipt_replace
	for _, v := range slices.Concat([]uint32{info.validHooks, info.numEntries, info.size}, info.hookEntry[:], info.underflow[:], []uint32{info.numEntries}) {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	b = binary.NativeEndian.AppendUint64(b, uint64(uintptr(unsafe.Pointer(&counters[0]))))
	b = append(b, entries...)
	fd, err := unix.Socket(l.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	defer runtime.KeepAlive(counters)
	return unix.SetsockoptString(fd, l.level, soSetReplace, string(b))
}

const soSetReplace = 64 // IPT_SO_SET_REPLACE, IP6T_SO_SET_REPLACE

// TestLegacyChain goes through chains of iptables-legacy.
func TestLegacyChain(t *testing.T) {
	for _, l := range legacies {
		entry := func(iface, target string, verdict int32, matches int) []byte {
			e := make([]byte, l.header+matches)
			copy(e[l.inIface:], iface)
			for i := range len(iface) {
				e[l.inIface+2*unix.IFNAMSIZ+i] = 0xff
			}
			if iface != "" {
				e[l.inIface+2*unix.IFNAMSIZ+len(iface)] = 0xff
			}
			x := make([]byte, legacyTarget+8)
			copy(x[2:], target)
			binary.NativeEndian.PutUint32(x[legacyTarget:], uint32(verdict))
			binary.NativeEndian.PutUint16(e[l.target:], uint16(len(e)))
			binary.NativeEndian.PutUint16(e[l.target+2:], uint16(len(e)+len(x)))
			return append(e, x...)
		}
		accept, drop := entry("", "", legacyAccept, 0), entry("", "", legacyDrop, 0)
		for _, c := range []struct {
			name  string
			chain [][]byte
			want  bool
		}{
			{"policy accept", [][]byte{accept}, false},
			{"policy drop", [][]byte{drop}, true},
			{"a jump, policy drop", [][]byte{entry("", "", 4000, 0), drop}, true},
			{"leg is accepted", [][]byte{entry("leg", "", legacyAccept, 0), drop}, false},
			{"another is accepted", [][]byte{entry("leg2", "", legacyAccept, 0), entry("le", "", legacyAccept, 0), drop}, true},
			{"leg is accepted with a match", [][]byte{entry("leg", "", legacyAccept, 48), drop}, true},
			{"reject at the end", [][]byte{entry("", "LOG", 0, 0), entry("", "REJECT", 0, 0), accept}, true},
			{"all are accepted first", [][]byte{accept, drop}, false},
			{"some are dropped", [][]byte{entry("", "", legacyDrop, 48), accept}, false},
		} {
			last := len(slices.Concat(c.chain[:len(c.chain)-1]...))
			got, err := l.chainCloses(slices.Concat(c.chain...), 0, uint32(last), "leg")
			if err != nil || got != c.want {
				t.Errorf("%s, %s: got %v, %v; want %v", l.command, c.name, got, err, c.want)
			}
		}
		for _, b := range [][]byte{nil, drop[:50], make([]byte, 500)} {
			if _, err := l.chainCloses(b, 0, 0, "leg"); err == nil {
				t.Errorf("%s, %d bytes: want an error", l.command, len(b))
			}
		}
	}
}

func FuzzComment(f *testing.F) {
	for _, s := range []string{"", "\x00", "\x00\x04msh\x00", "\x01\x02ab\x00\x04msh\x00", "\x00\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c := commentOf(b); len(c) > len(b) {
			t.Errorf("got %q from %q", c, b)
		}
	})
}

// awaitRoutes waits until the default routes are as wanted.
func awaitRoutes(t *testing.T, ns *NS, family, want int) []DefaultRoute {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		routes, err := ns.DefaultRoutes(family)
		must(t, err)
		if len(routes) == want {
			return routes
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v, want %d routes", routes, want)
		}
	}
}
