package kernel

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/seccomp"
)

// confinedLines are the lines of /proc/self/status that tell how a process is confined.
const confinedLines = `grep -E '^(NoNewPrivs|CapInh|CapPrm|CapEff|CapBnd|CapAmb|Seccomp_filters):' /proc/self/status`

func atLevel(n int) *Security { return &Security{Level: n} }

func TestSecurityValidate(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		s    Security
		want string
	}{
		{Security{Level: 3}, ""},
		{Security{Level: 2, Caps: []string{"+net_admin", "-CAP_NET_RAW"}}, ""},
		{Security{Level: 2, Caps: []string{}}, ""},
		{Security{Landlock: map[string]string{"/": "rx", "/srv": "rw"}}, ""},
		{Security{NoNewPrivs: &no}, ""},
		{Security{Level: 1, NoNewPrivs: &yes}, ""},
		{Security{Seccomp: []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`)}, ""},
		{Security{Level: 4}, "security: level: got 4, want 0 to 3"},
		{Security{Level: -1}, "security: level: got -1"},
		{Security{Caps: []string{"net_rwa"}}, `security: caps: got "net_rwa"`},
		{Security{Caps: []string{"++net_raw"}}, `security: caps: got "++net_raw"`},
		{Security{Caps: []string{"net_raw", "+kill"}}, "either names alone"},
		{Security{Level: 1, Caps: []string{"+sys_module"}}, "none of what level 1 takes for good"},
		{Security{Level: 3, Caps: []string{"sys_admin"}}, "none of what level 3 takes for good"},
		{Security{Landlock: map[string]string{}}, "want paths"},
		{Security{Landlock: map[string]string{"srv": "r"}}, `security: landlock: got "srv"`},
		{Security{Landlock: map[string]string{"/a/../b": "r"}}, `security: landlock: got "/a/../b"`},
		{Security{Landlock: map[string]string{"/": "rr"}}, `security: landlock: got "rr"`},
		{Security{Landlock: map[string]string{"/": ""}}, `security: landlock: got ""`},
		{Security{Level: 1, NoNewPrivs: &no}, "no_new_privs: got False beside level 1"},
		{Security{Landlock: map[string]string{"/": "r"}, NoNewPrivs: &no}, "no_new_privs: got False beside landlock"},
		{Security{Seccomp: []byte(`{`)}, "specification have it: no JSON object"},
		{Security{Seccomp: []byte(`{"defaultAction":"SCMP_ACT_ERRNO"}`)}, "a profile that refuses execve"},
		{Security{Seccomp: []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["exit_group"],"action":"SCMP_ACT_ERRNO"}]}`)}, "a profile that refuses exit_group"},
		{Security{Seccomp: []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdri"],"action":"SCMP_ACT_ERRNO"}]}`)}, `no system call "mkdri" here`},
	} {
		err := c.s.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%+v: %v", c.s, err)
		case c.want != "" && err == nil:
			t.Errorf("%+v: no error, want %q", c.s, c.want)
		case c.want != "":
			contains(t, err.Error(), c.want)
		}
	}
}

// A record is read as it was written, no capabilities and those of the level apart.
func TestSecurityJSON(t *testing.T) {
	for _, caps := range [][]string{nil, {}, {"kill"}} {
		b, err := json.Marshal(&Security{Level: 2, Caps: caps})
		if err != nil {
			t.Fatal(err)
		}
		var s Security
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		want(t, fmt.Sprintf("caps %v by way of %s", caps, b), caps == nil, s.Caps == nil)
	}
}

// Each level keeps no more than the one below it.
func TestLadder(t *testing.T) {
	for n := 1; n <= topLevel; n++ {
		if more := levels[n].keeps &^ levels[n-1].keeps; more != 0 {
			t.Errorf("level %d keeps %s, which level %d does not", n, more, n-1)
		}
		if less := levels[n-1].takes &^ levels[n].takes; less != 0 {
			t.Errorf("level %d does not take %s, which level %d does", n, less, n-1)
		}
		if levels[n].keeps&levels[n].takes != 0 {
			t.Errorf("level %d keeps what it takes", n)
		}
		if len(levels[n].refuse) < len(levels[n-1].refuse) {
			t.Errorf("level %d refuses less than level %d", n, n-1)
		}
		if _, err := seccomp.Compile(seccomp.Refusing(levels[n].refuse...)); err != nil { // a name that no call has
			t.Errorf("level %d: %v", n, err)
		}
	}
}

// ways are all the ways into a machine, as what a program that comes in by them says
// of itself.
func ways(t *testing.T, m *Machine) map[string]string {
	t.Helper()
	all := map[string]string{"run": sh(t, m, confinedLines)}
	file := "/tmp/spawned"
	p := spawn(t, m, confinedLines+" >"+file+".new && mv "+file+".new "+file)
	if _, err := p.Wait(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	b, err := m.ReadFile(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	all["spawn"] = strings.TrimSpace(string(b))
	var out strings.Builder
	if code, err := m.Interact(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", confinedLines}}, nil, &out); err != nil || code != 0 {
		t.Fatalf("shell: %d, %v", code, err)
	}
	all["shell"] = strings.TrimSpace(strings.ReplaceAll(out.String(), "\r", ""))
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if code, err := m.Attach(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", confinedLines}}, [3]int{0, int(f.Fd()), int(f.Fd())}, nil); err != nil || code != 0 {
		t.Fatalf("exec: %d, %v", code, err)
	}
	all["exec"] = strings.TrimSpace(read(t, f.Name()))
	init, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(init)) {
		for _, name := range []string{"NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp_filters"} {
			if strings.HasPrefix(line, name+":") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	all["init"] = strings.Join(lines, "\n")
	return all
}

// confinedAs is what they should say at a level.
func confinedAs(kept capSet, nnp, filters int) string {
	hex := fmt.Sprintf("%016x", uint64(kept))
	return strings.Join([]string{"CapInh:\t" + strings.Repeat("0", 16), "CapPrm:\t" + hex, "CapEff:\t" + hex, "CapBnd:\t" + hex, "CapAmb:\t" + strings.Repeat("0", 16),
		fmt.Sprintf("NoNewPrivs:\t%d", nnp), fmt.Sprintf("Seccomp_filters:\t%d", filters)}, "\n")
}

// Whoever comes in, and by whatever way, is confined alike; with and without ids of
// the machine's own.
func TestSecurityWays(t *testing.T) {
	l := newLab(t)
	own, err := ownCaps()
	if err != nil {
		t.Fatal(err)
	}
	known := capSet(1)<<len(capabilities) - 1
	for n := 0; n <= topLevel; n++ {
		for _, ids := range []bool{false, true} {
			rs := []Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), atLevel(n)}
			have := own
			if ids {
				rs, have = append(rs, &Uidspace{Map: []IDMap{{0, 0, 65536}}}), known
			}
			m := fork(t, l, rs...)
			nnp := min(n, 1)
			filters := min(n, 1)
			for way, got := range ways(t, m) {
				want(t, fmt.Sprintf("level %d, ids %v, by %s", n, ids, way), confinedAs(levels[n].keeps&have, nnp, filters), got)
			}
			// Another user of the machine has nothing, and could get nothing.
			r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", confinedLines}, User: "nobody"}, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			contains(t, string(r.Stdout), "CapEff:\t"+strings.Repeat("0", 16), fmt.Sprintf("CapBnd:\t%016x", uint64(levels[n].keeps&have)))
			destroy(t, m)
		}
	}
}

// What masks are made of is a machine's own at level 3, and where it could be written to.
func TestMasksOwn(t *testing.T) {
	l := newLab(t)
	for what, s := range map[string]*Security{"level 3": {Level: 3}, "with sys_admin": {Level: 2, Caps: []string{"+sys_admin"}}} {
		seen := map[string]bool{}
		for range 2 {
			m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), s)
			seen[sh(t, m, "stat -c %d /proc/keys")] = true
		}
		want(t, what+": file systems", 2, len(seen))
	}
}

// What a program may do at each level; the rows are of docs/security.md.
func TestSecurityLevels(t *testing.T) {
	l := newLab(t)
	var ms []*Machine
	for n := 0; n <= topLevel; n++ {
		ms = append(ms, fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), space("ipcspace"), atLevel(n)))
	}
	for _, c := range []struct {
		what, script string
		until        int // the highest level at which it works
	}{
		{"a set-user-ID program", `cp /bin/id /tmp/suid && chmod 6755 /tmp/suid && test "$(setpriv --reuid 1000 --clear-groups /tmp/suid -u)" = 0`, 0},
		{"a device node", "mknod /tmp/node c 1 3 && cat /tmp/node", 0},
		{"mounting", "mount -t tmpfs none /mnt", 1},
		{"a new network", "unshare -n true", 1},
		{"a user space", "unshare -r true", 1},
		{"writing to /proc/sys", "test -w /proc/sys/kernel/shmmax", 1},
		{"interrupts", "grep -q . /proc/interrupts", 1},
		{"keys of others", "grep -q . /proc/keys", 1},
		{"firmware", "test -n \"$(ls /sys/firmware)\"", 1},
		{"ping", "ping -c1 -W1 127.0.0.1 >/dev/null", 2},
		{"chroot", "chroot / true", 2},
		{"another owner", "touch /tmp/o && chown 1000 /tmp/o", 2},
		{"tracing its own", "strace -o /dev/null true", 2},
		{"a file", "echo x >/tmp/f && test \"$(cat /tmp/f)\" = x", 3},
		{"a process", "sh -c 'sleep 0.01 & wait'", 3},
		{"its own terminal", "script -qc true /dev/null </dev/null", 3},
	} {
		for n, m := range ms {
			r := try(t, m, "/bin/sh", "-c", "ip link set lo up 2>/dev/null; "+c.script)
			if works := r.Code == 0; works != (n <= c.until) {
				t.Errorf("level %d: %s: code %d, want that it works up to level %d; stderr %q", n, c.what, r.Code, c.until, r.Stderr)
			}
		}
	}
}

func TestSecurityCaps(t *testing.T) {
	l := newLab(t)
	kept := func(m *Machine) string {
		n := strings.Fields(sh(t, m, "grep CapEff: /proc/self/status"))[1]
		var v uint64
		fmt.Sscanf(n, "%x", &v)
		return capSet(v).String()
	}
	want(t, "named", "kill net_raw", kept(fork(t, l, &Security{Caps: []string{"net_raw", "CAP_KILL"}})))
	want(t, "none", "none", kept(fork(t, l, &Security{Caps: []string{}})))
	m := fork(t, l, &Security{Level: 2, Caps: []string{"+net_admin", "-net_raw"}}, &Children{Max: 3}, space("netspace"))
	want(t, "changed", (engineCaps|capsNamed("net_admin"))&^capsNamed("net_raw", "mknod"), mustCaps(kept(m)))
	sh(t, m, "ip link set lo up")
	contains(t, refused(t, l, m, &Security{Level: 2, Caps: []string{"+sys_admin"}}), `security: caps: got "+sys_admin", want at most what m`, "has: chown")
	inner := forkIn(t, l, m, &Spec{Resources: []Resource{atLevel(2)}})
	trace := capsNamed("sys_ptrace")
	for what, s := range map[string]*Security{"seccomp": {Seccomp: []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`)}, "less": {Caps: []string{"-net_raw"}}} {
		want(t, "tracing with the host's ids and "+what, capSet(0), mustCaps(kept(fork(t, l, s)))&trace)
		want(t, "with ids of its own and "+what, trace, mustCaps(kept(fork(t, l, s, &Uidspace{Map: []IDMap{{0, 0, 65536}}})))&trace)
	}
	contains(t, refused(t, l, l.Host(), &Security{Caps: []string{"kill", "sys_ptrace"}}), `security: caps: got "sys_ptrace", want none with ids that are the host's`)
	plain, yes := fork(t, l), true
	if err := plain.Set(&Security{NoNewPrivs: &yes}); err != nil {
		t.Fatal(err)
	}
	want(t, "tracing, set", capSet(0), mustCaps(kept(plain))&trace)
	want(t, "below it", engineCaps&^capsNamed("net_raw", "mknod"), mustCaps(kept(inner)))
}

func mustCaps(text string) capSet { return capsNamed(strings.Fields(text)...) }

// A machine in a machine is confined as that is, if it asks for nothing, and never less.
func TestSecurityNested(t *testing.T) {
	l := newLab(t)
	outer := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), &Security{Level: 2, Seccomp: []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64"],"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`)}, &Children{Max: 4})
	e := refused(t, l, outer, atLevel(1))
	contains(t, e, "security: level: got 1, want at least 2, which m", "no machine is confined less")
	for _, rs := range [][]Resource{{}, {space("pidspace")}, {space("pidspace"), &Root{Source: "/", Write: "overlay"}}} {
		inner := forkIn(t, l, outer, &Spec{Resources: rs})
		for way, got := range ways(t, inner) {
			want(t, fmt.Sprintf("in it with %d resources, by %s", len(rs), way), confinedAs(levels[2].keeps, 1, 2), got)
		}
		r := try(t, inner, "mkdir", "/tmp/x")
		contains(t, string(r.Stderr), "Operation not supported")
		sh(t, inner, "! test -w /proc/sys/kernel/shmmax && ! grep -q . /proc/keys")
		destroy(t, inner)
	}
	inner := forkIn(t, l, outer, &Spec{Resources: []Resource{space("pidspace"), atLevel(3)}})
	want(t, "a level above, run", confinedAs(0, 1, 2), sh(t, inner, confinedLines))
}

// It can be tightened while the machine runs, for what comes in from then on.
func TestSecuritySet(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"))
	if err := m.Set(atLevel(2)); err != nil {
		t.Fatal(err)
	}
	want(t, "run", confinedAs(levels[2].keeps, 1, 1), sh(t, m, confinedLines))
	sh(t, m, "! test -w /proc/sys/kernel/shmmax && ! grep -q . /proc/keys")
	err := m.Set(atLevel(1))
	if err == nil {
		t.Fatal("loosened")
	}
	contains(t, err.Error(), "security: level: got 1, want at least 2")
	if err := m.Set(&Security{Level: 2, Caps: []string{"kill"}}); err != nil {
		t.Fatal(err)
	}
	want(t, "run", confinedAs(capsNamed("kill"), 1, 1), sh(t, m, confinedLines))
	if err := m.Set(&Security{Level: 2}); err != nil {
		t.Fatal(err)
	}
	want(t, "run, set to no more", confinedAs(capsNamed("kill"), 1, 1), sh(t, m, confinedLines))
	if err := m.Set(&Sysctl{"net.ipv4.ip_forward", "1"}); err != nil {
		t.Fatal(err)
	}
	want(t, "a sysctl that msh sets", "1", run(t, m, "cat", "/proc/sys/net/ipv4/ip_forward"))
	if err := m.Set(atLevel(3)); err != nil {
		t.Fatal(err)
	}
	want(t, "run", confinedAs(0, 1, 1), sh(t, m, confinedLines))

	plain := fork(t, l)
	err = plain.Set(atLevel(2))
	if err == nil {
		t.Fatal("masked the parent's /proc")
	}
	contains(t, err.Error(), "a machine with a mount table of its own")
	want(t, "left as it was", 0, plain.confinement().level())
	if err := plain.Set(atLevel(1)); err != nil {
		t.Fatal(err)
	}
	want(t, "run", "NoNewPrivs:\t1", sh(t, plain, "grep NoNewPrivs: /proc/self/status"))
}

// Landlock: what is named, and for level 3 the machine's own.
func TestSecurityLandlock(t *testing.T) {
	if landlockABI() == 0 {
		t.Skip("no Landlock in this kernel")
	}
	l := newLab(t)
	data := t.TempDir()
	os.Chmod(data, 0o777)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Mount{Source: data, Target: "/data", Type: "bind"},
		&Security{Landlock: map[string]string{"/etc/ld.so.cache": "r", "/usr": "rx", "/lib": "rx", "/lib64": "rx", "/bin": "rx", "/etc/hostname": "r", "/dev": "rw", "/data": "rw"}})
	sh(t, m, "test -r /etc/hostname && cat /etc/hostname >/dev/null && echo x >/data/x && mkdir /data/d && mv /data/x /data/d")
	for _, script := range []string{"cat /etc/passwd", "echo x >/usr/x", "ls /", "mknod /data/n p && mknod /data/c c 1 3"} {
		if r := try(t, m, "/bin/sh", "-c", script); r.Code == 0 {
			t.Errorf("%s: allowed", script)
		}
	}
	if _, err := m.ReadFile(t.Context(), "/etc/passwd"); err == nil {
		t.Error("read_file goes past the fence")
	}
	if err := m.WriteFile(t.Context(), "/data/y", []byte("z"), 0o600); err != nil {
		t.Error(err)
	}
	_, err := l.Fork(t.Context(), l.Host(), &Spec{Name: "none", Resources: []Resource{&Security{Landlock: map[string]string{"/no/such": "r", "/": "rx"}}}})
	if err == nil {
		t.Fatal("a path that is not there")
	}
	contains(t, err.Error(), "find /no/such, which landlock lets in: no such file or directory")

	// Without a root of its own, a machine of level 3 writes only to what it is given.
	if landlockABI() < abiScope {
		return
	}
	m = fork(t, l, &Mount{Source: data, Target: "/mnt", Type: "bind"}, atLevel(3))
	sh(t, m, "echo x >/mnt/three && echo x >/dev/null && cat /etc/passwd >/dev/null")
	if r := try(t, m, "/bin/sh", "-c", "echo x >"+t.TempDir()+"/four"); r.Code == 0 {
		t.Error("wrote to the parent's files")
	}
}

// A machine in a fenced one is let into no more of that one's files, wherever they are
// mounted in it; nor does a link that was put in the way let more in.
func TestSecurityLandlockNested(t *testing.T) {
	if landlockABI() == 0 {
		t.Skip("no Landlock in this kernel")
	}
	l := newLab(t)
	data, hidden := t.TempDir(), t.TempDir()
	for _, dir := range []string{data, hidden} {
		os.Chmod(dir, 0o777)
		mustWrite(t, dir+"/file", "of "+filepath.Base(dir), 0o666)
	}
	system := map[string]string{"/usr": "rx", "/lib": "rx", "/lib64": "rx", "/bin": "rx", "/etc": "r", "/dev": "rw", "/proc": "r", "/data": "rw", "/look": "r"}
	outer := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Children{Max: 9},
		&Mount{Source: data, Target: "/data", Type: "bind"}, &Mount{Source: hidden, Target: "/hidden", Type: "bind"}, &Mount{Source: data, Target: "/look", Type: "bind"},
		&Security{Landlock: system})
	if r := try(t, outer, "cat", "/hidden/file"); r.Code == 0 {
		t.Fatal("the fence does not hold")
	}
	root := &Root{Source: "/", Write: "overlay"}
	for what, rs := range map[string][]Resource{
		"a tree from behind the fence":            {root, &Mount{Source: "/hidden", Target: "/mnt", Type: "bind"}},
		"the same where the fence lets others in": {root, &Mount{Source: "/hidden", Target: "/data", Type: "bind"}},
		"what is to be read where is written":     {root, &Mount{Source: "/look", Target: "/data/in", Type: "bind"}},
		"a root from behind it":                   {&Root{Source: "/hidden", Write: "none"}},
		"with its parent's root":                  {space("mountspace"), &Mount{Source: "/hidden", Target: "/data", Type: "bind"}},
	} {
		e := refused(t, l, outer, rs...)
		if !strings.Contains(e, "fence") {
			t.Errorf("%s: %s", what, e)
		}
	}
	sh(t, outer, "ln -s /hidden /data/link")
	contains(t, refused(t, l, outer, root, &Mount{Source: "/data/link", Target: "/mnt", Type: "bind"}), "/data/link", "too many levels of symbolic links")

	inner := forkIn(t, l, outer, &Spec{Resources: []Resource{root, space("pidspace"), &Mount{Source: "/data", Target: "/mnt", Type: "bind"}}})
	sh(t, inner, "cat /mnt/file && echo x >/mnt/new && cat /etc/passwd >/dev/null")
	for _, script := range []string{"cat /hidden/file", "ls /", "ls /var", "echo x >/look/new", "echo x >/etc/new"} {
		if r := try(t, inner, "/bin/sh", "-c", script); r.Code == 0 {
			t.Errorf("%s: allowed", script)
		}
	}

	// A path that lies where the machine may write is no link at the next way in.
	if err := os.Mkdir(data+"/own", 0o777); err != nil {
		t.Fatal(err)
	}
	delete(system, "/look")
	system["/data/own"] = "x"
	m := fork(t, l, root, space("pidspace"), &Mount{Source: data, Target: "/data", Type: "bind"}, &Mount{Source: hidden, Target: "/hidden", Type: "bind"}, &Security{Landlock: system})
	sh(t, m, "mv /data/own /data/was && ln -s /hidden /data/own && ! cat /data/own/file")
	_, err := m.Run(t.Context(), &Command{Argv: []string{"cat", "/hidden/file"}}, nil, long)
	if err == nil {
		t.Fatal("a link has let in what the fence does not")
	}
	contains(t, err.Error(), "find /data/own", "too many levels of symbolic links")
}

// A machine of level 3 that shares the parent's network and processes reaches no
// abstract socket and no process of theirs.
func TestSecurityScopes(t *testing.T) {
	if landlockABI() < abiScope {
		t.Skip("no scopes in this kernel")
	}
	l := newLab(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	name := "@msh-test-" + labPrefix()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		t.Fatal(err)
	}
	outside := spawn(t, fork(t, l), "exec sleep 600")
	connect := fmt.Sprintf(`python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect("\0%s")'`, name[1:])
	kill := fmt.Sprintf("kill -0 %d", outside.Pid())
	for n := 2; n <= 3; n++ {
		m := fork(t, l, atLevel(n))
		for what, script := range map[string]string{"connect": connect, "signal": kill} {
			if r := try(t, m, "/bin/sh", "-c", script); (r.Code == 0) != (n == 2) {
				t.Errorf("level %d: %s: code %d, stderr %q", n, what, r.Code, r.Stderr)
			}
		}
	}
}

// What level 2 adds to a machine's making and to each way in is counted: every step is
// a system call, and every filter is translated by the kernel anew.
func TestSecuritySteps(t *testing.T) {
	count := func(level int) (steps, filters, instructions int) {
		p, err := NewPlan(&Spec{Name: "m", Resources: []Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), space("ipcspace"), atLevel(level)}}, Under{Lab: "lab"}, &cgroup.Host{}, "/state")
		if err != nil {
			t.Fatal(err)
		}
		f, err := p.Confined.filters()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range f {
			instructions += len(f.code) / seccomp.InstructionSize
		}
		for _, s := range p.Steps.Steps() {
			if s.Nr == unix.SYS_SECCOMP {
				filters++
			}
		}
		return p.Steps.Len(), filters, instructions
	}
	without, _, _ := count(0)
	with, filters, instructions := count(2)
	const mostSteps, mostInstructions = 90, 280
	if with-without > mostSteps || filters != 1 || instructions > mostInstructions {
		t.Errorf("level 2 adds %d steps with %d filters of %d instructions, want at most %d, 1 and %d", with-without, filters, instructions, mostSteps, mostInstructions)
	}
	t.Logf("level 2 adds %d steps, a filter of %d instructions", with-without, instructions)
}
