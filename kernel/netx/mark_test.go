package netx

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// table gives what has the mark a table with one way.
func table(t *testing.T, ns *NS, number uint32, routes ...Route) {
	t.Helper()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := ns.AddLookup(family, Lookup{Table: number, Mark: number, Priority: 900}); err != nil {
			t.Fatal(err)
		}
		if err := ns.AddRoute(Unreachable(number, family == unix.AF_INET6)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range routes {
		r.Table = number
		if err := ns.AddRoute(r); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
	}
}

func TestMarkSocketsCgroup2(t *testing.T) {
	here, there := pair(t)
	outer := group(t, "")
	inner := filepath.Join(outer, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(inner)
	const mark, other = 0x6d000007, 0xfd000008 // one with the sign bit
	table(t, here, mark, Route{Dst: netip.MustParsePrefix("10.0.0.0/24"), Index: 5, Src: netip.MustParseAddr("10.0.0.3")},
		Route{Dst: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("10.0.0.9")},
		Route{Dst: netip.MustParsePrefix("fd00::/64"), Index: 5})
	table(t, here, other, Route{Dst: netip.MustParsePrefix("10.1.0.0/24"), Index: 5})
	if err := here.MarkSockets(outer, mark); err != nil {
		t.Fatal(err)
	}
	if err := here.MarkSockets(inner, other); err != nil {
		t.Fatal(err)
	}
	listener(t, there, "tcp4", "10.0.0.9:80")
	listener(t, there, "tcp4", "10.0.0.9:81")
	for _, c := range []struct {
		dir  string
		call []string
		want string
	}{
		{outer, []string{"udp4", "mark"}, "1828716551"},
		{outer, []string{"udp6", "mark"}, "1828716551"},
		{outer, []string{"raw4", "mark"}, "1828716551"},
		{inner, []string{"tcp4", "mark"}, "4244635656"},
		{"", []string{"tcp4", "mark"}, "0"},
		{outer, []string{"udp4", "connect 10.0.0.9:9", "name"}, "ok; 10.0.0.3"},
		{outer, []string{"udp4", "connect 192.0.2.1:9", "send x"}, "ok; ok"},
		{outer, []string{"udp4", "connect 10.1.0.9:9"}, "EHOSTUNREACH"},
		{outer, []string{"udp6", "connect [fd00::9]:9", "send x"}, "ok; ok"},
		{outer, []string{"udp6", "connect [2001:db8::1]:9"}, "EHOSTUNREACH"},
		{outer, []string{"ping4", "ping 10.0.0.9"}, "ok"},
		{outer, []string{"ping4", "ping 10.1.0.9"}, "EHOSTUNREACH"},
		{outer, []string{"tcp4", "connect 10.0.0.9:80", "name", "send x"}, "ok; 10.0.0.3; ok"},
		{outer, []string{"mptcp4", "connect 10.0.0.9:81", "name", "send x"}, "ok; 10.0.0.3; ok"},
		{outer, []string{"mptcp4", "connect 10.1.0.9:81"}, "EHOSTUNREACH"},
		{outer, []string{"raw4", "packet 10.0.0.1 10.0.0.9"}, "ok"},
		{outer, []string{"raw4", "packet 10.0.0.1 10.1.0.9"}, "EHOSTUNREACH"},
		{outer, []string{"raw6", "packet fd00::1 fd00::9"}, "ok"},
		{outer, []string{"raw6", "packet fd00::1 2001:db8::1"}, "EHOSTUNREACH"},
		{outer, []string{"udp4", "connect 10.0.0.1:9", "send x"}, "ok; ok"}, // what is here, the local table knows
		{inner, []string{"udp4", "connect 10.1.0.9:9", "send x"}, "ok; ok"},
		{inner, []string{"udp4", "connect 10.0.0.9:9"}, "EHOSTUNREACH"},
		{inner, []string{"udp6", "connect [fd00::9]:9"}, "EHOSTUNREACH"},
		{"", []string{"udp4", "connect 10.1.0.9:9", "name"}, "ok; 10.1.0.1"},
		// The host's root may take a mark off, and gets nowhere.
		{outer, []string{"udp4", "setmark 0", "sendto 10.1.0.9:9"}, "ok; EPERM"},
		{outer, []string{"udp4", "connect 10.0.0.9:9", "setmark 0", "send x"}, "ok; ok; EPERM"},
	} {
		want(t, filepath.Base(c.dir)+" "+c.call[0]+" "+c.call[1], c.want, calls(t, here, c.dir, c.call...))
	}
	// What it accepts answers its own way too.
	cmd := start(t, here, outer, "tcp4", "bind 0.0.0.0:90", "listen", "accept", "mark", "recv", "send y")
	listening(t, cmd, "tcp")
	want(t, "a connection to it", "ok; ok; y", calls(t, there, "", "tcp4", "connect 10.0.0.2:90", "send x", "recv"))
	want(t, "its mark", "ok; ok; from 10.0.0.9; 1828716551; x; ok", said(t, cmd))
	cmd = start(t, here, outer, "mptcp4", "bind 0.0.0.0:91", "listen", "accept", "recv", "send y")
	listening(t, cmd, "tcp")
	want(t, "a connection to it, by MPTCP", "ok; ok; y", calls(t, there, "", "tcp4", "connect 10.0.0.2:91", "send x", "recv"))
	want(t, "in another namespace", "0; ok; ok", calls(t, there, outer, "udp4", "mark", "connect 10.0.0.1:9", "send x"))
}
