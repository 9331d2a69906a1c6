package netx

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"msh/kernel/netx/knock"
)

func init() { knock.Main() }

// group is a control group of v2, which ends with the test.
func group(t *testing.T, parent string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("control groups need root")
	}
	if parent == "" {
		for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
			if _, err := os.Stat(root + "/cgroup.threads"); err == nil || root == "/sys/fs/cgroup/unified" && exists(root+"/cgroup.procs") {
				parent = root
				break
			}
		}
		if parent == "" && exists("/sys/fs/cgroup/cgroup.controllers") {
			parent = "/sys/fs/cgroup"
		}
		if parent == "" {
			t.Skip("no cgroup v2 on this host: BPF programs attach to its groups only")
		}
	}
	dir := filepath.Join(parent, fmt.Sprintf("netx-test.%d.%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-")))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 200 {
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error(err)
	})
	return dir
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// start makes socket calls in a control group and a namespace.
func start(t *testing.T, ns *NS, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{"knock"}, args...)
	cmd.Env = []string{knock.Env + "=1"}
	cmd.Stdout, cmd.Stderr = &strings.Builder{}, os.Stderr
	if dir != "" {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func said(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %v", cmd.Args, err)
	}
	return strings.ReplaceAll(strings.TrimSpace(cmd.Stdout.(*strings.Builder).String()), "\n", "; ")
}

func calls(t *testing.T, ns *NS, dir string, args ...string) string {
	t.Helper()
	return said(t, start(t, ns, dir, args...))
}

func want(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// pair is two namespaces with a cable between them: here has 10.0.0.1 to .3,
// 10.1.0.1 and fd00::1 to ::3, there has 10.0.0.9 and fd00::9.
func pair(t *testing.T) (here, there *NS) {
	t.Helper()
	here, there = makeNS(t), makeNS(t)
	if err := here.AddVeth(Veth{End: End{Name: "a", Index: 5}, Up: true, Far: End{Name: "b", Index: 5}, FarNS: there}); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*NS{here, there} {
		for _, i := range []int{1, 5} {
			if err := ns.SetUp(i, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	for ns, list := range map[*NS][]string{
		here:  {"10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24", "10.1.0.1/24", "fd00::1/64", "fd00::2/64", "fd00::3/64"},
		there: {"10.0.0.9/24", "10.1.0.9/24", "fd00::9/64"},
	} {
		for _, a := range list {
			if err := ns.AddAddress(5, netip.MustParsePrefix(a)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return here, there
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// listener accepts, or receives, what comes.
func listener(t *testing.T, ns *NS, kind, at string) {
	t.Helper()
	table := map[string]string{"tcp4": "tcp", "tcp6": "tcp6"}[kind]
	listening(t, start(t, ns, "", kind, "bind "+at, "listen", "accept", "recv"), table)
}

// listening waits until the process's network has a socket that listens, and
// returns its port.
func listening(t *testing.T, cmd *exec.Cmd, table string) string {
	t.Helper()
	own := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	for range 1000 {
		time.Sleep(5 * time.Millisecond)
		b, _ := os.ReadFile(own + "net/" + table)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" || !holds(own, f[9]) {
				continue
			}
			port, err := strconv.ParseUint(f[1][strings.IndexByte(f[1], ':')+1:], 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(port)
		}
	}
	t.Fatal("nobody listens")
	return ""
}

// holds tells whether a process has the socket of that inode.
func holds(proc, inode string) bool {
	fds, _ := filepath.Glob(proc + "fd/*")
	return slices.ContainsFunc(fds, func(fd string) bool { to, _ := os.Readlink(fd); return to == "socket:["+inode+"]" })
}

func TestBindSocketsCgroup2(t *testing.T) {
	here, there := pair(t)
	dir := group(t, "")
	begin := time.Now()
	if err := here.BindSockets(dir, prefixes("10.0.0.2/24", "10.1.0.1/24", "fd00::2/64")); err != nil {
		t.Fatal(err)
	}
	t.Logf("3 addresses: %v", time.Since(begin))
	for _, c := range []struct{ call, want string }{
		{"tcp4|bind 0.0.0.0:80|name", "ok; 10.0.0.2"},
		{"tcp4|bind 127.0.0.1:80|name", "ok; 10.0.0.2"},
		{"tcp4|bind 10.0.0.2:80|name", "ok; 10.0.0.2"},
		{"tcp4|bind 10.1.0.1:0|name", "ok; 10.1.0.1"},
		{"tcp4|bind 10.0.0.1:80", "EPERM"},
		{"tcp4|bind 127.0.0.2:80", "EPERM"},
		{"tcp4|bind 224.0.0.1:80", "EPERM"},
		{"udp4|bind 0.0.0.0:80|name", "ok; 10.0.0.2"},
		{"udp4|bind 10.0.0.3:80", "EPERM"},
		{"tcp6|bind [::]:80|name", "ok; fd00::2"},
		{"tcp6|bind [::1]:80|name", "ok; fd00::2"},
		{"tcp6|bind [fd00::2]:80|name", "ok; fd00::2"},
		{"tcp6|bind [fd00::1]:80", "EPERM"},
		{"tcp6|bind [::ffff:0.0.0.0]:80|name", "ok; ::ffff:10.0.0.2"},
		{"tcp6|bind [::ffff:10.0.0.2]:80|name", "ok; ::ffff:10.0.0.2"},
		{"tcp6|bind [::ffff:10.0.0.1]:80", "EPERM"},
		{"udp6|bind [fd00::3]:80", "EPERM"},
		// what is not bound gets a source that is own, of the destination's network
		{"udp4|connect 10.0.0.9:9|name", "ok; 10.0.0.2"},
		{"udp4|connect 10.1.0.9:9|name", "ok; 10.1.0.1"},
		{"udp4|connect 127.0.0.1:9|name|peer", "ok; 10.0.0.2; 10.0.0.2"},
		{"udp4|connect 127.9.9.9:9|peer", "ok; 10.0.0.2"},
		{"udp4|connect 0.0.0.0:9|peer", "ok; 10.0.0.2"},
		{"udp4|bind 10.1.0.1:0|connect 10.0.0.9:9|name", "ok; ok; 10.1.0.1"},
		{"udp6|connect [fd00::9]:9|name", "ok; fd00::2"},
		{"udp6|connect [::1]:9|name|peer", "ok; fd00::2; fd00::2"},
		{"udp6|connect [::]:9|peer", "ok; fd00::2"},
		{"udp6|connect [::ffff:10.0.0.9]:9|name", "ok; ::ffff:10.0.0.2"},
		{"udp6|connect [::ffff:127.0.0.1]:9|peer", "ok; ::ffff:10.0.0.2"},
		{"udp6|connect 10.1.0.9:9|name", "ok; ::ffff:10.1.0.1"},
		{"udp4|sendto 10.0.0.9:9", "ok"},
		{"udp4|sendto 127.0.0.1:9", "ok"},
		{"udp6|sendto [fd00::9]:9", "ok"},
		{"udp6|sendto [::ffff:10.0.0.9]:9", "ok"},
		{"udp4|sendfrom 10.0.0.2 10.0.0.9:9", "ok"},
		{"udp4|sendfrom 10.0.0.1 10.0.0.9:9", "EPERM"},
		{"udp6|sendfrom fd00::2 [fd00::9]:9", "ok"},
		{"udp6|sendfrom fd00::1 [fd00::9]:9", "EPERM"},
		// a connected socket asks no program; the packet itself is stopped
		{"udp4|connect 10.0.0.9:9|sendfrom 10.0.0.1 10.0.0.9:9", "ok; EPERM"},
		// whole packets, ICMP
		{"raw4|packet 10.0.0.2 10.0.0.9", "ok"},
		{"raw4|packet 10.0.0.1 10.0.0.9", "EPERM"},
		{"raw4|packet 192.0.2.1 10.0.0.9", "EPERM"},
		{"raw6|packet fd00::2 fd00::9", "ok"},
		{"raw6|packet fd00::1 fd00::9", "EPERM"},
		{"ping4|bind 10.0.0.2:0|ping 10.0.0.9", "ok; ok"},
		{"ping4|bind 10.0.0.3:0|ping 10.0.0.9", "ok; EPERM"},
		// A raw socket has no hook that could choose its source. Left to the kernel,
		// that is the interface's first address.
		{"ping4|ping 10.0.0.9", "EPERM"},
	} {
		w := strings.Split(c.call, "|")
		want(t, c.call, c.want, calls(t, here, dir, w...))
	}

	listener(t, there, "tcp4", "10.0.0.9:80")
	want(t, "tcp4", "ok; 10.0.0.2; 10.0.0.9; ok", calls(t, here, dir, "tcp4", "connect 10.0.0.9:80", "name", "peer", "send hello"))
	listener(t, there, "tcp6", "[fd00::9]:80")
	want(t, "tcp6", "ok; fd00::2", calls(t, here, dir, "tcp6", "connect [fd00::9]:80", "name"))
	listener(t, there, "tcp4", "10.1.0.9:81")
	want(t, "tcp6 of an IPv4 address", "ok; ::ffff:10.1.0.1", calls(t, here, dir, "tcp6", "connect [::ffff:10.1.0.9]:81", "name"))
	listener(t, there, "tcp4", "10.0.0.9:82")
	want(t, "mptcp", "ok; 10.0.0.2; ok", calls(t, here, dir, "mptcp4", "connect 10.0.0.9:82", "name", "send hello"))

	// One that listens without bind(2) has all addresses; it is reached at its own.
	cmd := start(t, here, dir, "tcp4", "listen", "port", "accept", "recv")
	port := listening(t, cmd, "tcp")
	start(t, there, "", "tcp4", "connect 10.0.0.1:"+port, "send wrong")
	want(t, "to its own", "ok; ok", calls(t, there, "", "tcp4", "connect 10.0.0.2:"+port, "send hello"))
	want(t, "what came", "ok; "+port+"; from 10.0.0.9; hello", said(t, cmd))

	// Outside the group nothing has changed, and in another namespace neither.
	want(t, "outside the group", "ok; 0.0.0.0", calls(t, here, "", "tcp4", "bind 0.0.0.0:80", "name"))
	want(t, "in another namespace", "ok; 0.0.0.0", calls(t, there, dir, "tcp4", "bind 0.0.0.0:80", "name"))
	want(t, "packets there", "ok; 10.0.0.9; ok", calls(t, there, dir, "udp4", "connect 10.0.0.1:9", "name", "send x"))
	want(t, "packets there, IPv6", "ok; fd00::9; ok", calls(t, there, dir, "udp6", "connect [fd00::1]:9", "name", "send x"))
}

func TestBindSocketsOneFamilyCgroup2(t *testing.T) {
	here, _ := pair(t)
	for _, c := range []struct{ own, call, want string }{
		{"10.0.0.2/24", "tcp6|bind [::]:80|name", "ok; ::ffff:10.0.0.2"},
		{"10.0.0.2/24", "tcp6|v6only|bind [::]:80", "ok; EINVAL"},
		{"10.0.0.2/24", "tcp6|bind [::1]:80", "EPERM"},
		{"10.0.0.2/24", "tcp6|bind [fd00::1]:80", "EPERM"},
		{"10.0.0.2/24", "udp6|connect [fd00::9]:9", "EPERM"},
		{"10.0.0.2/24", "udp6|connect [::1]:9", "EPERM"},
		{"10.0.0.2/24", "udp6|sendto [fd00::9]:9", "EPERM"},
		{"10.0.0.2/24", "raw6|packet fd00::1 fd00::9", "EPERM"},
		{"fd00::2/64", "tcp4|bind 0.0.0.0:80", "EPERM"},
		{"fd00::2/64", "tcp4|bind 10.0.0.1:80", "EPERM"},
		{"fd00::2/64", "tcp6|bind [::ffff:10.0.0.1]:80", "EPERM"},
		{"fd00::2/64", "tcp6|bind [::]:80|name", "ok; fd00::2"},
		{"fd00::2/64", "udp4|connect 10.0.0.9:9", "EPERM"},
		{"fd00::2/64", "udp6|connect [::ffff:10.0.0.9]:9", "EPERM"},
		{"fd00::2/64", "udp4|sendto 10.0.0.9:9", "EPERM"},
		{"fd00::2/64", "raw4|packet 10.0.0.1 10.0.0.9", "EPERM"},
		{"127.0.0.1/8", "tcp4|bind 127.0.0.1:80|name", "ok; 127.0.0.1"},
		{"127.0.0.1/8", "udp4|connect 127.0.0.1:80|name", "ok; 127.0.0.1"},
		{"127.0.0.1/8", "udp4|sendto 10.0.0.9:80", "EINVAL"},
	} {
		t.Run(strings.NewReplacer("/", " ", "[", "", "]", "").Replace(c.own+" "+c.call), func(t *testing.T) {
			dir := filepath.Join(filepath.Dir(group(t, "")), fmt.Sprintf("netx-one.%d", os.Getpid()))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(dir)
			if err := here.BindSockets(dir, prefixes(c.own)); err != nil {
				t.Fatal(err)
			}
			want(t, c.call, c.want, calls(t, here, dir, strings.Split(c.call, "|")...))
		})
	}
}

// A group inside has fewer addresses; both groups' programs are run.
func TestBindSocketsNestedCgroup2(t *testing.T) {
	here, _ := pair(t)
	outer := group(t, "")
	inner := filepath.Join(outer, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(inner)
	if err := here.BindSockets(outer, prefixes("10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", "fd00::2/64")); err != nil {
		t.Fatal(err)
	}
	if err := here.BindSockets(inner, prefixes("10.0.0.2/24", "fd00::2/64")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ call, outer, inner string }{
		{"tcp4|bind 0.0.0.0:80|name", "ok; 10.0.0.1", "ok; 10.0.0.2"},
		{"tcp4|bind 10.0.0.1:80", "ok", "EPERM"},
		{"tcp4|bind 10.0.0.3:80", "EPERM", "EPERM"},
		{"tcp6|bind [::]:80|name", "ok; fd00::1", "ok; fd00::2"},
		{"udp4|connect 127.0.0.1:9|name|peer", "ok; 10.0.0.1; 10.0.0.1", "ok; 10.0.0.2; 10.0.0.2"},
		{"udp6|connect [fd00::9]:9|name", "ok; fd00::1", "ok; fd00::2"},
		{"udp4|sendto 10.0.0.9:9", "ok", "ok"},
		{"udp6|sendto [::1]:9", "ok", "ok"},
		{"raw4|packet 10.0.0.1 10.0.0.9", "ok", "EPERM"},
	} {
		w := strings.Split(c.call, "|")
		want(t, "outer "+c.call, c.outer, calls(t, here, outer, w...))
		want(t, "inner "+c.call, c.inner, calls(t, here, inner, w...))
	}
}

// The most addresses there can be; and how long it takes to confine a group.
func TestBindSocketsManyCgroup2(t *testing.T) {
	here, _ := pair(t)
	dir := group(t, "")
	var own []netip.Prefix
	for i := range 32 {
		own = append(own, netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/24", 2+i)), netip.MustParsePrefix(fmt.Sprintf("fd00::%x/64", 2+i)))
	}
	begin := time.Now()
	if err := here.BindSockets(dir, own); err != nil {
		t.Fatal(err)
	}
	t.Logf("64 addresses: %v", time.Since(begin))
	want(t, "the first", "ok; 10.0.0.2", calls(t, here, dir, "tcp4", "bind 0.0.0.0:80", "name"))
	want(t, "another", "EPERM", calls(t, here, dir, "tcp4", "bind 10.0.0.1:80"))
	want(t, "another, IPv6", "EPERM", calls(t, here, dir, "tcp6", "bind [fd00::1]:80"))
}
