package kernel

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"golang.org/x/sys/unix"
	"msh/kernel/stage0"

	"msh/kernel/cgroup"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// long bounds what must end by itself: no test passes or fails by time alone.
const long = 30 * time.Second

// newHost makes a host with a state directory of its own, and checks at the end
// of the test that the host is as it was.
func newHost(t *testing.T) *Host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("machines need root")
	}
	warmUp(t)
	dir := t.TempDir()
	// As /run/msh, it can be reached by the root of a uidspace.
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	h, err := NewHost(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	before := hostState(t, h)
	t.Cleanup(func() {
		if t.Failed() {
			rescue(h)
		}
		if left := settled(t, h, before); left != "" {
			t.Errorf("left behind (-before +after):\n%s", left)
		}
	})
	return h
}

// rescue ends what a failed test has left running, so that it is not in the way
// of the next.
func rescue(h *Host) {
	all, err := h.Machines()
	if err != nil {
		return
	}
	for _, m := range all {
		m.Destroy(context.Background())
		m.Close()
	}
	h.Sweep(context.Background(), true)
}

// newLab makes a lab on a new host.
func newLab(t *testing.T) *Lab {
	t.Helper()
	return labOn(t, newHost(t), "")
}

// labOn makes a lab that ends with the test.
func labOn(t *testing.T, h *Host, suffix string) *Lab {
	t.Helper()
	l, err := h.NewLab(labName(t)+suffix, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// labPrefix begins the names of this process's labs, so that their cgroups are
// told from those of other tests on the host.
func labPrefix() string { return fmt.Sprintf("t%d-", os.Getpid()) }

func labName(t *testing.T) string {
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", "=", "-").Replace(t.Name()))
	if len(name) > 40 {
		name = name[:40]
	}
	return labPrefix() + strings.Trim(name, "-")
}

// warmUp makes what a process makes once in its life and keeps: stage0's image,
// the watcher, Go's own poller.
func warmUp(t *testing.T) {
	t.Helper()
	if _, err := stage0.Executable(); err != nil {
		t.Fatal(err)
	}
	if _, err := ownPidSpace(); err != nil {
		t.Fatal(err)
	}
	if _, err := theWatcher(); err != nil {
		t.Fatal(err)
	}
	if _, err := nothing(); err != nil {
		t.Fatal(err)
	}
	levelGuard() // where the kernel has it
	if _, err := sharedEmpty(); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
}

// hostState is what a machine could leave on the host, as text.
func hostState(t *testing.T, h *Host) []string {
	t.Helper()
	s := groupsLeft(labPrefix())
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		s = append(s, "mount "+strings.Join(strings.Fields(line)[2:5], " "))
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		s = append(s, "link "+l.Name)
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, f := range fds {
		to, err := os.Readlink("/proc/self/fd/" + f.Name())
		if err == nil && !strings.HasSuffix(to, "/fd") {
			s = append(s, "fd "+to)
		}
	}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	for _, c := range children {
		b, _ := os.ReadFile(c)
		for _, pid := range strings.Fields(string(b)) {
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			s = append(s, "child "+strings.TrimSpace(string(comm)))
		}
	}
	os.Remove(filepath.Join(h.State, ".criu")) // what criu has found out of this kernel: it is no leftover
	os.Remove(h.State)                         // if it is empty
	filepath.WalkDir(h.State, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			s = append(s, "file "+path)
		}
		return nil
	})
	s = append(s, "CPUs "+field(t, "/proc/self/status", "Cpus_allowed_list"))
	slices.Sort(s)
	return s
}

// groupsLeft lists the control groups of labs whose names begin so.
func groupsLeft(prefix string) []string {
	h, err := cgroup.Detect()
	if err != nil {
		return []string{err.Error()}
	}
	var s []string
	for _, d := range h.Find("msh." + prefix + "*") {
		s = append(s, "cgroup "+d)
	}
	return s
}

// settled compares, and gives the kernel a moment: it closes and reaps after it
// has answered.
func settled(t *testing.T, h *Host, before []string) string {
	var diff string
	for range 200 {
		if diff = cmp.Diff(before, hostState(t, h)); diff == "" {
			return ""
		}
		time.Sleep(10 * time.Millisecond)
	}
	return diff
}

// takeCPUs keeps other runs of these tests from giving CPUs away meanwhile: what
// is exclusive on a host is so for all of them.
func takeCPUs(t *testing.T) {
	t.Helper()
	fd, err := unix.Open(cgroup.Root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(fd, unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// needV1 skips where limits are not cgroup v1's, needV2 where they are not v2's.
func needV1(t *testing.T) {
	t.Helper()
	if h, err := cgroup.Detect(); err != nil || h.Unified {
		t.Skip("cgroup v1 has the controllers of other hosts; this one's has a test named V2")
	}
}

func needV2(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("machines need root")
	}
	h, err := cgroup.Detect()
	if err == nil && h.Unified && len(h.Controllers) > 4 {
		return
	}
	if os.Getenv("MSH_VM") == "1" {
		t.Fatalf("cgroup v2 with its controllers should be here: %+v, %v", h, err)
	}
	t.Skip("cgroup v2's controllers are not on this host: `make vmtest` runs this test")
}

func fork(t *testing.T, l *Lab, rs ...Resource) *Machine {
	t.Helper()
	return forkIn(t, l, l.Host(), &Spec{Resources: rs})
}

func forkIn(t *testing.T, l *Lab, parent *Machine, s *Spec) *Machine {
	t.Helper()
	m, err := l.Fork(t.Context(), parent, s)
	if err != nil {
		t.Fatalf("%v%s", err, hintOf(err))
	}
	return m
}

// refused makes a machine that must not come to be, and returns the error's text.
func refused(t *testing.T, l *Lab, parent *Machine, rs ...Resource) string {
	t.Helper()
	m, err := l.Fork(t.Context(), parent, &Spec{Resources: rs})
	if err == nil {
		m.Destroy(context.Background())
		t.Fatalf("%v should have been refused", rs)
	}
	return err.Error()
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		return "\nhint: " + h.Hint()
	}
	return ""
}

// try runs a command that may end with any code.
func try(t *testing.T, m *Machine, argv ...string) *Result {
	t.Helper()
	r, err := m.Run(t.Context(), &Command{Argv: argv}, nil, long)
	if err != nil {
		t.Fatalf("run %v: %v%s", argv, err, hintOf(err))
	}
	return r
}

// run runs a command that must end with 0, and returns what it said.
func run(t *testing.T, m *Machine, argv ...string) string {
	t.Helper()
	r := try(t, m, argv...)
	if r.Code != 0 {
		t.Fatalf("run %v: code %d\n%s%s", argv, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

func sh(t *testing.T, m *Machine, script string) string {
	t.Helper()
	return run(t, m, "/bin/sh", "-c", script)
}

// spawn starts a command that is killed with the machine.
func spawn(t *testing.T, m *Machine, script string) *Process {
	t.Helper()
	p, err := m.Spawn(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", script}}, "", RestartNo)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func destroy(t *testing.T, m *Machine) {
	t.Helper()
	if err := m.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that happens by itself.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s: not within %v", what, long)
}

// want compares two values.
func want(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreUnexported(Device{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// contains checks an error's or a file's text for each of the parts.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

// read is a file of the host's, without the space around it.
func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// field is the value of a line "KEY: value" or "KEY value".
func field(t *testing.T, path, key string) string {
	t.Helper()
	for line := range strings.Lines(read(t, path)) {
		if f := strings.Fields(line); len(f) > 1 && strings.TrimSuffix(f[0], ":") == key {
			return strings.Join(f[1:], " ")
		}
	}
	t.Fatalf("%s: no %s", path, key)
	return ""
}

// group is a file of a machine's control group: of that v1 controller, or of v2.
func group(t *testing.T, m *Machine, controller, file string) string {
	t.Helper()
	return read(t, groupPath(m, controller, file))
}

func groupPath(m *Machine, controller, file string) string {
	if m.group.Unified {
		controller = ""
	}
	return filepath.Join(cgroup.Root, controller, m.group.Path, file)
}

// nsOf is a process's namespace of that name, as the kernel numbers it.
func nsOf(t *testing.T, pid any, name string) string {
	t.Helper()
	to, err := os.Readlink(fmt.Sprintf("/proc/%v/ns/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func space(name string) Resource { return &Space{Name: name} }

func overlay() Resource { return &Root{Source: "/", Write: "overlay"} }

func bytesOf(n int64) *int64 { return &n }

// The least and the most that a machine can be.

func TestPlain(t *testing.T) {
	l := newLab(t)
	m := fork(t, l)
	want(t, "echo", "hello", run(t, m, "echo", "hello"))
	want(t, "name", "m1", m.Name())
	want(t, "state", "running", m.State())
	for _, ns := range namespaces {
		want(t, ns.name+" namespace", nsOf(t, "self", ns.name), nsOf(t, m.Pid(), ns.name))
	}
	contains(t, read(t, fmt.Sprintf("/proc/%d/cgroup", m.Pid())), m.group.Path)
	pid := m.Pid()
	destroy(t, m)
	want(t, "state", "dead", m.State())
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("its init: %v", err)
	}
	if err := m.Destroy(t.Context()); err != nil {
		t.Errorf("destroyed twice: %v", err)
	}
}
