package kernel

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
	"msh/kernel/netx/knock"
)

// The network of these tests is the one that TestMain has made: it is the host's
// for them, and nobody else's.

func init() {
	knock.Main()
	if k := os.Getenv(netMakerEnv); k != "" {
		netMaker(k)
	}
}

// ownNet is the network of the tests, or a machine's.
func ownNet(t *testing.T, m *Machine) *netx.NS {
	t.Helper()
	ns, err := netx.Own()
	if m != nil {
		ns.Close()
		ns, err = m.network()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

// far makes a namespace, with a cable to near: to an interface of that name there,
// with those addresses. The far end has theirs. The cable goes with the test.
func far(t *testing.T, near *netx.NS, name string, addresses, theirs []string) *netx.NS {
	t.Helper()
	ns, err := netx.Make(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	if err := near.AddVeth(netx.Veth{End: netx.End{Name: name}, Up: true, Far: netx.End{Name: "far"}, FarNS: ns}); err != nil {
		t.Fatal(err)
	}
	index, err := near.Index(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := near.Delete(index); err != nil {
			t.Error(err)
		}
	})
	theirIndex, err := ns.Index("far")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{1, theirIndex} {
		if err := ns.SetUp(i, true); err != nil {
			t.Fatal(err)
		}
	}
	give := func(ns *netx.NS, index int, list []string) {
		for _, a := range list {
			if err := ns.AddAddress(index, netip.MustParsePrefix(a)); err != nil {
				t.Fatalf("%s: %v", a, err)
			}
		}
	}
	give(near, index, addresses)
	give(ns, theirIndex, theirs)
	return ns
}

// netState is what ip(8) tells of a namespace's rules and routes.
func netState(t *testing.T, ns *netx.NS) string {
	t.Helper()
	var b strings.Builder
	for _, f := range []string{"-4", "-6"} {
		for _, what := range [][]string{{"rule"}, {"route", "show", "table", "all"}} {
			out := inNS(t, ns, "ip", append([]string{f}, what...)...)
			for line := range strings.Lines(out) {
				if !strings.Contains(line, "fe80::") && !strings.Contains(line, "ff00::/8") { // the kernel's, some time after a link is up
					b.WriteString(line)
				}
			}
		}
	}
	return b.String()
}

// inNS runs a program of the test's in a namespace.
func inNS(t *testing.T, ns *netx.NS, name string, args ...string) string {
	t.Helper()
	var b strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := ns.Do(cmd.Run); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, &b)
	}
	return b.String()
}

// knockBinary is this test binary where everybody can execute it.
func knockBinary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(dir, "knock"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return to.Name()
}

func knockCommand(binary, calls string) *Command {
	return &Command{Argv: append([]string{binary}, strings.Split(calls, "|")...), Env: map[string]string{knock.Env: "1"}}
}

func oneLine(text string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")), " ")
}

// knockIn makes socket calls in a machine: "tcp4|bind 0.0.0.0:80|name". See package knock.
func knockIn(t *testing.T, m *Machine, binary, calls string) string {
	t.Helper()
	r, err := m.Run(t.Context(), knockCommand(binary, calls), nil, long)
	if err != nil {
		t.Fatalf("%s: %v%s", calls, err, hintOf(err))
	}
	return oneLine(string(r.Stdout) + string(r.Stderr))
}

// knockFrom makes them outside of machines, in a namespace.
func knockFrom(t *testing.T, ns *netx.NS, binary, calls string) string {
	t.Helper()
	cmd := exec.Command(binary, strings.Split(calls, "|")...)
	cmd.Env = []string{knock.Env + "=1"}
	var b strings.Builder
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := ns.Do(cmd.Run); err != nil {
		t.Fatalf("%s: %v\n%s", calls, err, &b)
	}
	return oneLine(b.String())
}

// serve has a process of the machine listen, and waits until it does.
func serve(t *testing.T, m *Machine, binary, calls string, port int) *Process {
	t.Helper()
	p, err := m.Spawn(t.Context(), knockCommand(binary, calls), "", RestartNo)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WaitPort(t.Context(), port, long); err != nil {
		t.Fatal(err)
	}
	return p
}

// everyWay makes socket calls by each way into a machine, and by its init.
func everyWay(t *testing.T, l *Lab, parent *Machine, binary, calls string, rs ...Resource) map[string]string {
	t.Helper()
	m, err := l.Fork(t.Context(), parent, &Spec{Resources: rs, Init: []string{"/bin/sh", "-c",
		knock.Env + "=1 " + binary + " '" + strings.ReplaceAll(calls, "|", "' '") + "'; echo done; exec sleep 600"}})
	if err != nil {
		t.Fatalf("%v%s", err, hintOf(err))
	}
	defer destroy(t, m)
	said := map[string]string{"run": knockIn(t, m, binary, calls)}

	p, err := m.Spawn(t.Context(), knockCommand(binary, calls), "", RestartNo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context(), long); err != nil {
		t.Fatal(err)
	}
	log, err := p.Log()
	if err != nil {
		t.Fatal(err)
	}
	said["spawn"] = oneLine(string(log))

	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Attach(t.Context(), knockCommand(binary, calls), [3]int{int(null.Fd()), int(out.Fd()), int(out.Fd())}, nil); err != nil {
		t.Fatal(err)
	}
	said["exec"] = oneLine(read(t, out.Name()))
	null.Close()
	out.Close()

	var screen strings.Builder
	if _, err := m.Interact(t.Context(), knockCommand(binary, calls), strings.NewReader(""), &screen); err != nil {
		t.Fatal(err)
	}
	said["shell"] = oneLine(strings.ReplaceAll(screen.String(), "\r", ""))

	eventually(t, "init has knocked", func() bool {
		logs, err := m.Logs()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range logs {
			if text, ok := strings.CutSuffix(strings.TrimSpace(string(b)), "done"); ok {
				said["init"] = oneLine(text)
				return true
			}
		}
		return false
	})
	return said
}

// sameWays checks that all ways into a machine say the same.
func sameWays(t *testing.T, what, say string, said map[string]string) {
	t.Helper()
	for _, way := range []string{"run", "spawn", "exec", "shell", "init"} {
		want(t, what+", by "+way, say, said[way])
	}
}

const netMakerEnv = "MSH_TEST_NETMAKER"

// netMaker is an msh that makes a machine with routes and addresses, and is killed
// at that step.
func netMaker(step string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	h, err := NewHost(os.Getenv(makerState))
	fail(err)
	l, err := h.NewLab(os.Getenv(makerLab), false)
	fail(err)
	k := 0
	_, err = fmt.Sscan(step, &k)
	fail(err)
	h.Fault = Fault{Parent: k, Kill: true}
	_, err = l.Fork(context.Background(), l.Host(), &Spec{Resources: testRoutes()})
	fail(err)
	fmt.Println("past the last step")
	unix.Kill(os.Getpid(), unix.SIGKILL)
}

// testRoutes is a machine in the host's network with all that it can have there.
func testRoutes() []Resource {
	return []Resource{
		&Netaddr{[]netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}},
		&Routes{Routes: []Route{mustRoute("default", "10.0.0.9", ""), mustRoute("::/0", "fd00::9", ""), mustRoute("10.0.0.0/24", "", "up0")}},
	}
}

func mustRoute(dst, via, dev string) Route {
	r, err := ParseRoute(dst, via, dev, nil, "")
	if err != nil {
		panic(err)
	}
	return r
}

// uplink gives the tests' network an interface up0, whose other end answers.
func uplink(t *testing.T) (own, other *netx.NS) {
	t.Helper()
	own = ownNet(t, nil)
	other = far(t, own, "up0", []string{"10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24", "fd00::1/64", "fd00::2/64"}, []string{"10.0.0.9/24", "192.0.2.1/32", "fd00::9/64", "2001:db8::1/128"})
	for _, r := range []netx.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.0.1"), Table: unix.RT_TABLE_MAIN},
		{Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00::1"), Table: unix.RT_TABLE_MAIN},
	} {
		if err := other.AddRoute(r); err != nil {
			t.Fatal(err)
		}
	}
	return own, other
}

func addrs(texts ...string) *Netaddr {
	n := &Netaddr{}
	for _, s := range texts {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(s))
	}
	return n
}

func TestNetlab(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("netspace"))
	ns := ownNet(t, m)
	before := netState(t, ns)
	t.Run("cable", func(t *testing.T) {
		other := far(t, ns, "up0", []string{"10.0.0.1/24"}, []string{"10.0.0.2/24"})
		contains(t, netState(t, ns), "10.0.0.0/24 dev up0")
		binary := knockBinary(t)
		serve(t, m, binary, "tcp4|bind 0.0.0.0:80|listen|accept|recv", 80)
		want(t, "from far", "ok; 10.0.0.2; ok", knockFrom(t, other, binary, "tcp4|connect 10.0.0.1:80|name|send x"))
	})
	want(t, "afterwards", before, netState(t, ns))
	if slices.Contains(strings.Fields(inNS(t, ownNet(t, nil), "ip", "-br", "link")), "up0") {
		t.Error("the cable is in the tests' network")
	}
}
