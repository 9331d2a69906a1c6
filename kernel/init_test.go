package kernel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// An idle machine's init is next to nothing.
func TestInitSize(t *testing.T) {
	l := newLab(t)
	for _, rs := range [][]Resource{nil, {space("pidspace")}, {space("pidspace"), space("netspace"), space("ipcspace"), &Uidspace{}, overlay()}} {
		m := fork(t, l, rs...)
		kib, err := strconv.Atoi(strings.Fields(field(t, fmt.Sprintf("/proc/%d/smaps_rollup", m.Pid()), "Pss"))[0])
		if err != nil {
			t.Fatal(err)
		}
		if kib > 24 {
			t.Errorf("%d resources: PSS %d KiB, want at most 24", len(rs), kib)
		}
		want(t, "threads", "1", field(t, fmt.Sprintf("/proc/%d/status", m.Pid()), "Threads"))
		// of msh's it has nothing: no descriptor but /dev/null, no environment
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fds {
			to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", m.Pid(), f.Name()))
			want(t, "descriptor "+f.Name(), "/dev/null", to)
		}
		want(t, "environment", "", read(t, fmt.Sprintf("/proc/%d/environ", m.Pid())))
	}
}

// Orphans come to the machine's init, which leaves no zombie.
func TestInitReaps(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	inner := sh(t, m, "(sleep 600 >/dev/null 2>&1 & echo $!)")
	orphan := 0
	eventually(t, "the orphan has come to init", func() bool {
		for _, pid := range pidsOf(t, m) {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && strings.Contains(string(b), "(sleep)") {
				orphan = pid
				return statField(b, 1) == uint64(m.Pid())
			}
		}
		return false
	})
	sh(t, m, "kill -9 "+inner)
	eventually(t, "it is reaped", func() bool { return unix.Kill(orphan, 0) == unix.ESRCH })
	want(t, "state", "running", m.State())
}

// TERM to the minimal init goes to every process.
func TestInitForwards(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	a := spawn(t, m, "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
	b := spawn(t, m, "exec sleep 600")
	eventually(t, "ready", func() bool { log, _ := a.Log(); return strings.Contains(string(log), "ready") })
	if err := unix.Kill(m.Pid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := b.Wait(t.Context(), long); err != nil || code != 143 {
		t.Errorf("sleep: %d, %v", code, err)
	}
	if code, err := a.Wait(t.Context(), long); err != nil || code != 3 {
		t.Errorf("sh: %d, %v", code, err)
	}
	log, _ := a.Log()
	contains(t, string(log), "got it")
}

// Its program cannot be written to from inside, and is no file that others share.
func TestInitExecutable(t *testing.T) {
	l := newLab(t)
	m, other := fork(t, l, space("pidspace"), overlay()), fork(t, l, space("pidspace"), overlay())
	for _, target := range []string{"/proc/1/exe", "/dev/.init"} {
		r := try(t, m, "/bin/sh", "-c", "echo x > "+target)
		if r.Code == 0 {
			t.Errorf("wrote to %s", target)
		}
		contains(t, string(r.Stderr), "busy")
	}
	var a, b unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", m.Pid()), &a); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", other.Pid()), &b); err != nil {
		t.Fatal(err)
	}
	if a.Dev == b.Dev && a.Ino == b.Ino {
		t.Error("two machines share a file as their init")
	}
	// Where there is no mount table to put a copy in, it is sealed memory.
	plain := fork(t, l)
	if r := try(t, plain, "/bin/sh", "-c", fmt.Sprintf("echo x > /proc/%d/exe", plain.Pid())); r.Code == 0 {
		t.Error("wrote to the shared image")
	}
	want(t, "running on", "ok", run(t, fork(t, l), "echo", "ok"))
}

// The minimal init has nothing of msh's, whether it was executed or not (Plan.devAhead):
// no descriptor, no memory but its own.
func TestInitBare(t *testing.T) {
	l := newLab(t)
	for name, more := range map[string][]Resource{
		"plain": nil, "level 1": {&Security{Level: 1}}, "level 2": {&Security{Level: 2}}, "level 3": {&Security{Level: 3}},
		"caps": {&Security{Caps: []string{"chown"}}}, "profile": {&Security{Seccomp: []byte(`{"defaultAction": "SCMP_ACT_ALLOW"}`)}},
		"uname": {&Uname{Release: "1.0"}}, "own ids": {space("uidspace")}, "clocks": {&Timespace{Boottime: time.Hour}},
	} {
		t.Run(name, func(t *testing.T) {
			m := fork(t, l, append(more, space("pidspace"), overlay())...)
			proc := fmt.Sprintf("/proc/%d", m.Pid())
			want(t, "name", ".init", read(t, proc+"/comm"))
			want(t, "arguments", "init\x00", read(t, proc+"/cmdline"))
			want(t, "environment", "", read(t, proc+"/environ"))
			var fds []string
			entries, err := os.ReadDir(proc + "/fd")
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				fds = append(fds, e.Name())
			}
			want(t, "descriptors", "0 1 2", strings.Join(fds, " "))
			foreign := func() (lines []string) {
				for line := range strings.Lines(read(t, proc+"/maps")) {
					f := strings.Fields(line)
					if at := f[len(f)-1]; at != "/dev/.init" && at[0] != '[' {
						lines = append(lines, line)
					}
				}
				return lines
			}
			for end := time.Now().Add(10 * time.Second); len(foreign()) > 0; time.Sleep(time.Millisecond) { // it gives up the list last
				if time.Now().After(end) {
					t.Fatalf("it has mapped %q", foreign())
				}
			}
		})
	}
}

func TestInitProgram(t *testing.T) {
	l := newLab(t)
	m := forkIn(t, l, l.Host(), &Spec{Init: []string{"/bin/sh", "-c", "trap 'echo bye; exit 4' TERM; echo I am $$; echo problem >&2; while :; do sleep 0.05; done"},
		Resources: []Resource{space("pidspace")}})
	init := func() string {
		logs, err := m.Logs()
		if err != nil {
			t.Fatal(err)
		}
		return string(logs["init"])
	}
	eventually(t, "its output", func() bool { return init() == "I am 1\nproblem\n" })
	want(t, "a command beside it", "beside", run(t, m, "echo", "beside"))
	want(t, "state", "running", m.State())
	if err := m.Stop(t.Context(), long); err != nil {
		t.Fatal(err)
	}
	want(t, "state, stopped", "dead", m.State())
	want(t, "its last words", "I am 1\nproblem\nbye\n", init())
}

func TestInitExits(t *testing.T) {
	l := newLab(t)
	m := forkIn(t, l, l.Host(), &Spec{Init: []string{"sh", "-c", "sleep 600 & exit 7"}, Resources: []Resource{space("pidspace")}})
	eventually(t, "its end", func() bool { return m.State() == "dead" })
	if _, err := m.Run(t.Context(), &Command{Argv: []string{"true"}}, nil, 0); err == nil {
		t.Error("run in a dead machine")
	}
	eventually(t, "nothing left of it", func() bool { return len(pidsOf(t, m)) == 0 })
}

func TestInitMissing(t *testing.T) {
	l := newLab(t)
	for _, rs := range [][]Resource{nil, {space("pidspace"), overlay()}, {&Timespace{Boottime: 1e9}, space("pidspace")}} {
		_, err := l.Fork(t.Context(), l.Host(), &Spec{Name: "m", Init: []string{"/not/there", "x"}, Resources: rs})
		if err == nil {
			t.Fatal("made")
		}
		contains(t, err.Error(), "machine m: init: exec /not/there x: no such file")
		_, err = l.Fork(t.Context(), l.Host(), &Spec{Name: "m", Init: []string{"not-there"}, Resources: rs})
		if err == nil {
			t.Fatal("made")
		}
		contains(t, err.Error(), "init", "not-there")
		want(t, "left in the lab", 0, len(l.Machines()))
	}
}

// A machine inside a machine: cgroup below cgroup, ids within ids, spaces in spaces.
func TestNested(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{Size: 200000}, overlay(), &Children{Max: 2})
	c := forkIn(t, l, m, &Spec{Name: "c", Resources: []Resource{space("pidspace"), &Uidspace{Map: []IDMap{{0, 0, 1000}, {70000, 70000, 10}}}, &Root{Source: "/", Write: "none"}, &Uname{Nodename: "inner"}, &Children{Max: 1}}})
	g := forkIn(t, l, c, &Spec{Name: "g", Resources: []Resource{space("pidspace"), &Timespace{Boottime: 3600e9}}})

	contains(t, c.Groups()[0], m.Groups()[0]+"/")
	contains(t, g.Groups()[0], c.Groups()[0]+"/")
	base := m.IDs()[0].Outside
	want(t, "ids as the host sees them", []IDMap{{0, base, 1000}, {70000, base + 70000, 10}}, c.IDs())
	want(t, "uid_map from outside", fmt.Sprintf("0 %d 1000 70000 %d 10", base, base+70000), uidMap(t, c))
	want(t, "numbers of c's init", 3, len(strings.Fields(field(t, fmt.Sprintf("/proc/%d/status", c.Pid()), "NSpid"))))
	want(t, "numbers of g's init", 4, len(strings.Fields(field(t, fmt.Sprintf("/proc/%d/status", g.Pid()), "NSpid"))))
	for _, who := range []struct {
		m    *Machine
		name string
	}{{c, "inner"}, {g, "inner"}} {
		want(t, who.m.Name()+"'s host name", who.name, run(t, who.m, "uname", "-n"))
		want(t, who.m.Name()+"'s user", "0", run(t, who.m, "id", "-u"))
	}
	want(t, "g shares c's mounts' content", "no", sh(t, g, "(echo x > /etc/x) 2>/dev/null && echo yes || echo no"))
	want(t, "c's init, seen in m", "1", sh(t, m, "n=0; for p in /proc/[0-9]*; do grep -qs 'NSpid.*1$' $p/status && [ $p != /proc/1 ] && n=$((n+1)); done; [ $n -gt 0 ] && echo 1"))
	out := refused(t, l, m, &Uidspace{Map: []IDMap{{0, 150000, 100000}}})
	contains(t, out, "uidspace: base", "100000 ids that "+m.Name()+" has")
	auto := forkIn(t, l, m, &Spec{Resources: []Resource{&Uidspace{Size: 1000}}})
	if at := auto.IDs()[0].Outside; at < base+65536 || at+1000 > base+200000 {
		t.Errorf("ids %d outside its parent's %d", at, base)
	}
	contains(t, refused(t, l, c), "at most 1")
	destroy(t, m)
	for _, x := range []*Machine{c, g, auto} {
		want(t, x.Name(), "dead", x.State())
	}
}

// Each may use its own limit, all together the outer one's.
func TestNestedLimits(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Children{Max: 2})
	c := forkIn(t, l, m, &Spec{Name: "c", Resources: []Resource{&Pids{Max: 9}, &Memory{Max: bytesOf(32 << 20)}, &CPU{Quota: 30, Set: []int{0}}}})
	want(t, "pids.max", "9", group(t, c, "pids", "pids.max"))
	want(t, "memory", fmt.Sprint(32<<20), group(t, c, "memory", "memory.limit_in_bytes"))
	for _, controller := range c.group.V1 {
		contains(t, groupPath(c, controller, ""), m.group.Path+"/c")
		contains(t, read(t, groupPath(m, controller, "tasks")), strconv.Itoa(m.Pid()))
	}
	if err := m.Set(&Pids{Max: 3}); err != nil {
		t.Fatal(err)
	}
	r := try(t, c, "/bin/sh", "-c", "sleep 60 & sleep 60 & sleep 60 & echo all")
	if strings.Contains(string(r.Stdout), "all") {
		t.Error("more than the outer machine may have")
	}
	if err := c.Destroy(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// A machine that has no limits of its own is held by those of the machine it is in,
// also by those that this one was given later.
func TestNestedWithoutLimits(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l, &Children{Max: 1}, &Pids{Max: 20})
	c := forkIn(t, l, m, &Spec{Resources: []Resource{&Children{Max: 1}}})
	g := forkIn(t, l, c, &Spec{Resources: []Resource{space("pidspace")}})
	if err := m.Set(&Memory{Max: bytesOf(64 << 20)}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*Machine{m, c, g} {
		for _, controller := range []string{"pids", "memory"} {
			contains(t, read(t, groupPath(m, controller, "tasks")), strconv.Itoa(x.Pid()))
			contains(t, sh(t, x, "grep "+controller+": /proc/self/cgroup"), m.group.Path)
		}
	}
	r := try(t, g, "/bin/sh", "-c", "for i in $(seq 30); do sleep 60 & done; echo all")
	if strings.Contains(string(r.Stdout), "all") {
		t.Error("more processes than the outermost machine may have")
	}
}

// As long as a lab with a guarded machine runs, whatever becomes of that, there is a group
// more, so that the kernel need not rewrite itself for the next; it ends with the lab.
func TestKeepGuard(t *testing.T) {
	h := newHost(t)
	l := labOn(t, h, "guarded")
	dir := filepath.Join(h.Cgroup.V2, labGroup(h.Cgroup, l.name, guardDir))
	there := func() bool { _, err := os.Stat(dir); return err == nil }
	fork(t, l, space("pidspace"))
	want(t, "without a guarded machine", false, there())
	m := fork(t, l, space("pidspace"), space("netspace"), &Security{Level: 1})
	want(t, "with one", true, there())
	want(t, "programs", 1, devicePrograms(t, dir))
	if err := m.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "after its end", true, there())
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "after the lab's", false, there())
}

func devicePrograms(t *testing.T, dir string) int {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := link.QueryPrograms(link.QueryOptions{Target: int(d.Fd()), Attach: ebpf.AttachCGroupDevice})
	if err != nil {
		t.Fatal(err)
	}
	return len(r.Programs)
}
