package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The cases of cgroup v2: `make vmtest` runs them under a kernel that has
// nothing else. What they have in common with v1 is in the other files.

const busy = "while :; do :; done"

func TestV2Quota(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, &CPU{Quota: 20})
	want(t, "cpu.max", "20000 100000", group(t, m, "", "cpu.max"))
	spawn(t, m, busy)
	eventually(t, "throttling", func() bool { return field(t, groupPath(m, "", "cpu.stat"), "nr_throttled") != "0" })
	s, err := m.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.ThrottledSeconds == 0 || s.CPUSeconds == 0 {
		t.Errorf("stats: %+v", s)
	}
	if err := m.Set(&CPU{Quota: 0.5}); err != nil {
		t.Fatal(err)
	}
	want(t, "cpu.max, set", "5000 1000000", group(t, m, "", "cpu.max"))
}

func TestV2Weight(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, &CPU{Weight: 300})
	want(t, "cpu.weight", "300", group(t, m, "", "cpu.weight"))
	if err := m.Set(&CPU{Weight: 10000}); err != nil {
		t.Fatal(err)
	}
	want(t, "cpu.weight, set", "10000", group(t, m, "", "cpu.weight"))
	want(t, "cpu.max, not named", "max 100000", group(t, m, "", "cpu.max"))
}

func TestV2Set(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, &CPU{Set: []int{1}})
	want(t, "cpuset.cpus.effective", "1", group(t, m, "", "cpuset.cpus.effective"))
	want(t, "inside", "1", sh(t, m, "sed -n 's/Cpus_allowed_list:[^0-9]*//p' /proc/self/status"))
	if err := m.Set(&CPU{Set: []int{0}}); err != nil {
		t.Fatal(err)
	}
	want(t, "inside, set", "0", sh(t, m, "sed -n 's/Cpus_allowed_list:[^0-9]*//p' /proc/self/status"))
}

// The parent, and every other machine, loses the CPU; it comes back.
func TestV2Partition(t *testing.T) {
	needV2(t)
	takeCPUs(t)
	l := newLab(t)
	cpus := func(m *Machine) string {
		return sh(t, m, "sed -n 's/Cpus_allowed_list:[^0-9]*//p' /proc/self/status")
	}
	root := func() string { return read(t, "/sys/fs/cgroup/cpuset.cpus.effective") }
	all := root()
	before := fork(t, l)
	x := forkIn(t, l, l.Host(), &Spec{Name: "x", Resources: []Resource{&CPU{Set: []int{1}, Exclusive: true}}})
	after := fork(t, l)
	want(t, "cpuset.cpus.partition", "root", group(t, x, "", "cpuset.cpus.partition"))
	want(t, "x", "1", cpus(x))
	want(t, "root's cpuset.cpus.effective", "0", root())
	want(t, "this process", "0", field(t, "/proc/self/status", "Cpus_allowed_list"))
	for _, m := range []*Machine{before, after} {
		want(t, m.Name()+" inside", "0", cpus(m))
		want(t, m.Name()+"'s cpuset.cpus.effective", "0", group(t, m, "", "cpuset.cpus.effective"))
	}
	contains(t, refused(t, l, l.Host(), &CPU{Set: []int{1}}), "cpu: set", "CPU 1", "machine "+x.ID()+" has it exclusively")
	contains(t, refused(t, l, l.Host(), &CPU{Set: []int{1}, Exclusive: true}), "machine "+x.ID()+" has it exclusively")
	contains(t, refused(t, l, l.Host(), &CPU{Set: []int{0, 1}, Exclusive: true}), "machine "+x.ID()+" has it exclusively")

	destroy(t, x)
	want(t, "root's cpuset.cpus.effective afterwards", all, root())
	want(t, "this process afterwards", all, field(t, "/proc/self/status", "Cpus_allowed_list"))
	for _, m := range []*Machine{before, after} {
		want(t, m.Name()+" afterwards", all, cpus(m))
	}
	again := fork(t, l, &CPU{Set: []int{1}, Exclusive: true})
	want(t, "given anew", "1", cpus(again))
}

// A partition that the kernel does not make valid is an error, not a promise.
func TestV2PartitionInvalid(t *testing.T) {
	needV2(t)
	takeCPUs(t)
	l := newLab(t)
	taken := filepath.Join("/sys/fs/cgroup", "msh."+l.Name()+".foreign")
	fork(t, l, &CPU{Set: []int{0}}) // passes the controller down
	if err := os.Mkdir(taken, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(taken)
	for _, w := range [][2]string{{"cpuset.cpus", "1"}, {"cpuset.cpus.partition", "root"}} {
		if err := os.WriteFile(filepath.Join(taken, w[0]), []byte(w[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	defer os.WriteFile(filepath.Join(taken, "cpuset.cpus.partition"), []byte("member"), 0)
	contains(t, refused(t, l, l.Host(), &CPU{Set: []int{1}, Exclusive: true}), "cpu: ", "1")
}

func TestV2Memory(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, &Memory{Max: bytesOf(32 << 20), High: bytesOf(24 << 20), Reserve: bytesOf(4 << 20), Swap: bytesOf(0)})
	for file, bytes := range map[string]int64{"memory.max": 32 << 20, "memory.high": 24 << 20, "memory.min": 4 << 20, "memory.swap.max": 0} {
		want(t, file, fmt.Sprint(bytes), group(t, m, "", file))
	}
	if err := m.Set(&Memory{High: bytesOf(28 << 20)}); err != nil {
		t.Fatal(err)
	}
	want(t, "memory.high, set", fmt.Sprint(28<<20), group(t, m, "", "memory.high"))
	want(t, "memory.max, not named", fmt.Sprint(32<<20), group(t, m, "", "memory.max"))
	s, err := m.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory == nil || *s.Memory == 0 || s.MemoryPeak == nil || *s.MemoryPeak == 0 {
		t.Errorf("stats: %+v", s)
	}
	contains(t, refused(t, l, l.Host(), &Memory{Reserve: bytesOf(1 << 50)}), "memory: reserve")
}

func TestV2MemoryMax(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, &Memory{Max: bytesOf(16 << 20), Swap: bytesOf(0)})
	// A pipe holds little, a variable holds all: 32 MiB.
	r := try(t, m, "/bin/sh", "-c", "x=$(dd if=/dev/zero bs=1M count=32 | tr '\\0' x); echo ${#x}")
	if r.Code != 137 {
		t.Errorf("beyond memory.max: code %d, %s", r.Code, r.Stdout)
	}
	if field(t, groupPath(m, "", "memory.events"), "oom_kill") == "0" {
		t.Error("memory.events: nobody was killed")
	}
	want(t, "its init", "running", m.State())
}

func TestV2Pids(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, &Pids{Max: 4})
	want(t, "pids.max", "4", group(t, m, "", "pids.max"))
	r := try(t, m, "/bin/sh", "-c", "sleep 60 & sleep 60 & sleep 60 & sleep 60 & echo all")
	if strings.Contains(string(r.Stdout), "all") {
		t.Error("more processes than allowed")
	}
	contains(t, string(r.Stderr), "fork")
	if field(t, groupPath(m, "", "pids.events"), "max") == "0" {
		t.Error("pids.events: no fork was refused")
	}
	if err := m.Set(&Pids{Max: 50}); err != nil {
		t.Fatal(err)
	}
	want(t, "pids.max, set", "50", group(t, m, "", "pids.max"))
	if s, err := m.Stats(); err != nil || s.Pids < 1 {
		t.Errorf("stats: %+v %v", s, err)
	}
}

func TestV2IO(t *testing.T) {
	needV2(t)
	device := loop(t)
	l := newLab(t)
	m := fork(t, l, &IO{Device: device, WriteBPS: 1 << 20, ReadIOPS: 50})
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	want(t, "io.max", number+" rbps=max wbps=1048576 riops=50 wiops=max", group(t, m, "", "io.max"))
	if err := m.Set(&IO{Device: number, ReadBPS: 1 << 21}); err != nil {
		t.Fatal(err)
	}
	want(t, "io.max, set", number+" rbps=2097152 wbps=1048576 riops=50 wiops=max", group(t, m, "", "io.max"))
	sh(t, m, "dd if="+device+" of=/dev/null bs=64k count=4")
	if s, err := m.Stats(); err != nil || s.ReadBytes == nil || *s.ReadBytes == 0 {
		t.Errorf("stats: %+v %v", s, err)
	}
}

// loop makes a block device of a file.
func loop(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f").Output()
	if err != nil {
		t.Skipf("losetup -f: %v", err)
	}
	device := strings.TrimSpace(string(out))
	if out, err := exec.Command("losetup", device, file).CombinedOutput(); err != nil {
		t.Skipf("losetup: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	return device
}

// cgroup.kill takes a tree that forks as fast as it can.
func TestV2Kill(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, &Pids{Max: 24})
	spawn(t, m, `f() { sleep 0.01; f & f; }; f; `+busy)
	eventually(t, "forks", func() bool { return len(pidsOf(t, m)) > 10 })
	if err := m.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want(t, "processes", []int(nil), pidsOf(t, m))
	want(t, "state", "dead", m.State())
}

func pidsOf(t *testing.T, m *Machine) []int {
	t.Helper()
	pids, err := m.group.Pids()
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// Its processes are born in the group: nothing writes them into it.
func TestV2Birth(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Pids{Max: 20})
	line := "0::" + m.group.Path
	want(t, "its init", line, read(t, fmt.Sprintf("/proc/%d/cgroup", m.Pid())))
	want(t, "inside", line, run(t, m, "cat", "/proc/self/cgroup"))
	plan, err := l.Plan(l.Host(), m.Spec().named("planned"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range plan.Steps.Steps() {
		if strings.Contains(s.Words, "join") {
			t.Errorf("step %q", s.Words)
		}
	}
	// With the group's file not writable for anybody, all goes on as before.
	n := fork(t, l, space("pidspace"))
	procs := groupPath(n, "", "cgroup.procs")
	if err := unix.Mount(procs, procs, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(procs, unix.MNT_DETACH)
	if err := unix.Mount("", procs, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(procs, []byte("0"), 0); !errors.Is(err, unix.EROFS) {
		t.Fatalf("write %s: %v", procs, err)
	}
	want(t, "inside, read-only", "0::"+n.group.Path, run(t, n, "cat", "/proc/self/cgroup"))
}

func (s *Spec) named(name string) *Spec { c := *s; c.Name = name; return &c }

// A machine with machines keeps its own processes in a leaf, and its limits hold
// for both.
func TestV2Children(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Children{Max: 1}, &Pids{Max: 12}, &Memory{Max: bytesOf(64 << 20)})
	c := forkIn(t, l, m, &Spec{Name: "c", Resources: []Resource{space("pidspace"), &Pids{Max: 5}, &CPU{Quota: 50}}})
	want(t, "parent's leaf", "0::"+m.group.Path+"/.init", read(t, fmt.Sprintf("/proc/%d/cgroup", m.Pid())))
	want(t, "a command's", "0::"+m.group.Path+"/.init", run(t, m, "cat", "/proc/self/cgroup"))
	want(t, "child's group", "0::"+m.group.Path+"/c", read(t, fmt.Sprintf("/proc/%d/cgroup", c.Pid())))
	want(t, "parent's pids.max", "12", group(t, m, "", "pids.max"))
	want(t, "child's pids.max", "5", group(t, c, "", "pids.max"))
	want(t, "child's cpu.max", "50000 100000", group(t, c, "", "cpu.max"))
	contains(t, group(t, m, "", "cgroup.subtree_control"), "pids", "cpu", "memory")
	contains(t, refused(t, l, m), "machine 2 of m1", "at most 1")

	if err := m.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "child's frozen", "1", field(t, groupPath(c, "", "cgroup.events"), "frozen"))
	if err := m.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "child's frozen, thawed", "0", field(t, groupPath(c, "", "cgroup.events"), "frozen"))

	childless := fork(t, l)
	err := childless.Set(&Children{Max: 1})
	if err == nil {
		t.Fatal("children were given to a machine without a leaf")
	}
	contains(t, err.Error(), "cgroup v2", "made with children(max)")
}

func TestV2Freeze(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l)
	spawn(t, m, busy)
	if err := m.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "state", "frozen", m.State())
	want(t, "cgroup.events", "1", field(t, groupPath(m, "", "cgroup.events"), "frozen"))
	usage := field(t, groupPath(m, "", "cpu.stat"), "usage_usec")
	time.Sleep(100 * time.Millisecond)
	want(t, "CPU time while frozen", usage, field(t, groupPath(m, "", "cpu.stat"), "usage_usec"))
	if err := m.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "state", "running", m.State())
	eventually(t, "running on", func() bool { return field(t, groupPath(m, "", "cpu.stat"), "usage_usec") != usage })
}

// With a cgroup space of its own a machine sees its group as the root, and what
// it makes below goes with it.
func TestV2Cgroupspace(t *testing.T) {
	needV2(t)
	l := newLab(t)
	m := fork(t, l, space("cgroupspace"), space("pidspace"), overlay())
	want(t, "/proc/self/cgroup", "0::/", run(t, m, "cat", "/proc/self/cgroup"))
	sub := groupPath(m, "", "own/deep")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	destroy(t, m)
	if _, err := os.Stat(sub); !os.IsNotExist(err) {
		t.Errorf("%s: %v", sub, err)
	}
}

func TestV2Missing(t *testing.T) {
	needV2(t)
	h := newHost(t)
	h.Cgroup.Controllers = []string{"cpu", "memory"}
	l := labOn(t, h, "")
	_, err := l.Fork(t.Context(), l.Host(), &Spec{Resources: []Resource{&Pids{Max: 5}}})
	if !errors.Is(err, ErrNotSupported) {
		t.Fatalf("got %v, want ErrNotSupported", err)
	}
	contains(t, err.Error(), "pids", "cpu memory")
}
