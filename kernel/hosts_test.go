package kernel

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// names are the names in a machine's /etc/hosts, one for each address, sorted.
func names(t *testing.T, m *Machine) string {
	t.Helper()
	b, err := m.ReadFile(t.Context(), hostsPath)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 {
			all = append(all, f[1])
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// Machines know each other by name, wherever /etc/hosts comes from, as soon as
// they are there and no longer.
func TestHosts(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // which must not decide who can read it
	l := netLab(t)
	lan := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24", "fd00::/64")
	bare := smallRoot(t) // without an /etc/hosts
	a := forkNamed(t, l, "a", on(lan), space("mountspace"))
	b := forkNamed(t, l, "b", on(lan), &Root{Source: bare, Write: "overlay"})
	c := forkNamed(t, l, "c", on(lan), &Uidspace{}, space("mountspace"))
	for _, m := range []*Machine{a, b, c} {
		want(t, "names in "+m.Name(), "a a b b c c localhost localhost", names(t, m))
	}
	want(t, "the file", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\ta\nfd00::1\ta\n10.0.0.2\tb\nfd00::2\tb\n10.0.0.3\tc\nfd00::3\tc",
		run(t, a, "cat", "/etc/hosts"))
	pings(t, a, "b", "c")
	run(t, c, "ping", "-4", "-n", "-c1", "-W2", "a")
	r, err := c.Run(t.Context(), &Command{Argv: []string{"cat", "/etc/hosts"}, User: "nobody"}, nil, long)
	if err != nil || r.Code != 0 {
		t.Errorf("as nobody: %+v, %v", r, err)
	}
	if r := try(t, a, "/bin/sh", "-c", "echo 10.6.6.6 b >>/etc/hosts"); r.Code == 0 {
		t.Error("a has written what the others read")
	}
	if _, err := os.Stat(filepath.Join(bare, "etc/hosts")); err == nil {
		t.Error("the root that b lies over has an /etc/hosts by now")
	}

	// Those without a mount table, and roots that are not theirs to change, go without.
	plain := forkNamed(t, l, "plain", on(lan))
	before := read(t, hostsPath)
	want(t, "without a mount table", before, run(t, plain, "cat", hostsPath))
	fixed := forkNamed(t, l, "fixed", on(lan), &Root{Source: bare, Write: "none"})
	if r := try(t, fixed, "/bin/busybox", "cat", hostsPath); r.Code == 0 {
		t.Errorf("a root that must not change: %s", r.Stdout)
	}
	own := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(own, []byte("192.0.2.1 mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mine := forkNamed(t, l, "mine", on(lan), &Mount{Source: own, Target: "/etc//hosts", Type: "bind"})
	want(t, "a mount of its own", "mine", names(t, mine))
	if _, err := lan.Attach(t.Context(), mine, &Netif{Bare: true}); err != nil {
		t.Fatal(err)
	}
	if err := lan.Detach(mine); err != nil {
		t.Fatal(err)
	}
	want(t, "a mount of its own, later", "mine", names(t, mine))

	for _, m := range []*Machine{plain, fixed} {
		destroy(t, m)
	}
	want(t, "after their ends", "a a b b c c localhost localhost", names(t, b))
	if _, err := l.Fork(t.Context(), l.Host(), &Spec{Name: "half", Init: []string{"/no/such"}, Resources: []Resource{on(lan)}}); err == nil {
		t.Fatal("made without an init")
	}
	want(t, "after one that was not made", "a a b b c c localhost localhost", names(t, b))
	if err := c.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	destroy(t, c)
	want(t, "after c's end", "a a b b localhost localhost", names(t, a))
}

// Names come and go with interfaces, networks, and cables between switches.
func TestHostsChange(t *testing.T) {
	l := netLab(t)
	lan := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24")
	dmz := makeVNet(t, l, l.Host(), &VNetSpec{Name: "dmz"}, "10.1.0.0/24")
	far := makeVNet(t, l, l.Host(), &VNetSpec{Name: "far"}, "10.2.0.0/24")
	a := forkNamed(t, l, "a", on(lan), space("mountspace"))
	b := forkNamed(t, l, "b", on(lan), on(dmz), space("mountspace"))
	c := forkNamed(t, l, "c", on(dmz), space("mountspace"))
	d := forkNamed(t, l, "d", on(far), space("mountspace"))
	late := forkNamed(t, l, "late", space("netspace"), space("mountspace"))
	before := names(t, late)
	know := func(when string, of ...string) {
		t.Helper()
		for i, m := range []*Machine{a, b, c, d, late} {
			if i < len(of) {
				all := append(strings.Fields(of[i]), "localhost", "localhost")
				slices.Sort(all)
				want(t, when+": what "+m.Name()+" knows", strings.Join(all, " "), names(t, m))
			}
		}
	}
	know("at first", "a b", "b c a b", "b c", "d")
	if _, err := lan.Attach(t.Context(), late, &Netif{}); err != nil {
		t.Fatal(err)
	}
	know("late comes", "a b late", "b c a b late", "b c", "d", "a b late")
	if _, err := dmz.Attach(t.Context(), late, &Netif{}); err != nil {
		t.Fatal(err)
	}
	know("and comes again", "a b late", "b c late a b late", "b c late", "d", "b c late a b late")
	if err := lan.Detach(late); err != nil {
		t.Fatal(err)
	}
	know("leaves one", "a b", "b c late a b", "b c late", "d", "b c late")
	if err := dmz.Detach(late); err != nil {
		t.Fatal(err)
	}
	know("and the other", "a b", "b c a b", "b c", "d")
	want(t, "what late knows then", before, names(t, late))

	trunk, err := l.Link(t.Context(), LinkEnd{VNet: dmz}, LinkEnd{VNet: far}, Cable{})
	if err != nil {
		t.Fatal(err)
	}
	know("dmz and far are one", "a b", "b c a b d", "b c d", "d b c")
	if _, err := l.Link(t.Context(), LinkEnd{VNet: far}, LinkEnd{VNet: lan}, Cable{}); err != nil {
		t.Fatal(err)
	}
	know("all are one", "a b d b c", "b c a b d", "b c d a b", "d b c a b")
	if err := trunk.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	know("dmz apart", "a b d", "b c a b d", "b c", "d a b")
	if err := lan.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	know("without lan", "", "b c", "b c", "d")
	destroy(t, b)
	want(t, "what c knows without b", "c localhost localhost", names(t, c))

	// The files are the lab's, and go with it.
	if left, err := os.ReadDir(filepath.Join(l.dir(), hostsDir)); err != nil || len(left) == 0 {
		t.Errorf("files: %v, %v", left, err)
	}
}
