package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"msh/kernel/cgroup"
)

func TestCPUQuota(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l, &CPU{Quota: 20})
	limit := func() string {
		return group(t, m, "cpu", "cpu.cfs_quota_us") + " " + group(t, m, "cpu", "cpu.cfs_period_us")
	}
	want(t, "quota and period", "20000 100000", limit())
	spawn(t, m, busy)
	eventually(t, "throttling", func() bool { return field(t, groupPath(m, "cpu", "cpu.stat"), "nr_throttled") != "0" })
	s, err := m.Stats()
	if err != nil || s.ThrottledSeconds == 0 || s.CPUSeconds == 0 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	if err := m.Set(&CPU{Quota: 200}); err != nil {
		t.Fatal(err)
	}
	want(t, "set", "200000 100000", limit())
	want(t, "remembered", &CPU{Quota: 200}, m.Spec().find("cpu").(*CPU))
}

func TestCPUWeight(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l, &CPU{Weight: 200})
	want(t, "shares", "2048", group(t, m, "cpu", "cpu.shares"))
	// Another limit, set later, leaves it as it was.
	if err := m.Set(&CPU{Quota: 50}); err != nil {
		t.Fatal(err)
	}
	want(t, "shares", "2048", group(t, m, "cpu", "cpu.shares"))
	want(t, "quota", "50000", group(t, m, "cpu", "cpu.cfs_quota_us"))
	want(t, "remembered", &CPU{Quota: 50, Weight: 200}, m.Spec().find("cpu").(*CPU))
}

// onlineCPUs skips where there is nothing to share out, and takes them all.
func onlineCPUs(t *testing.T) []int {
	t.Helper()
	all, err := cgroup.ParseCPUs(read(t, "/sys/devices/system/cpu/online"))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 2 {
		t.Skip("only one CPU")
	}
	takeCPUs(t)
	return all
}

// allowed are the CPUs that a process of the machine may run on, as told inside.
func allowed(t *testing.T, m *Machine) string {
	t.Helper()
	return sh(t, m, "sed -n 's/Cpus_allowed_list:[^0-9]*//p' /proc/self/status")
}

func TestCPUSet(t *testing.T) {
	needV1(t)
	all := onlineCPUs(t)
	last := strconv.Itoa(all[len(all)-1])
	l := newLab(t)
	m := fork(t, l, &CPU{Set: all[len(all)-1:]})
	want(t, "cpuset.cpus", last, group(t, m, "cpuset", "cpuset.cpus"))
	want(t, "init's, outside", last, field(t, fmt.Sprintf("/proc/%d/status", m.Pid()), "Cpus_allowed_list"))
	want(t, "inside", last, allowed(t, m))
	if err := m.Set(&CPU{Set: all[:1]}); err != nil {
		t.Fatal(err)
	}
	want(t, "inside, set", strconv.Itoa(all[0]), allowed(t, m))
	if err := m.Set(&CPU{Set: []int{4000}}); err == nil {
		t.Error("set to a CPU that is not there")
	} else {
		contains(t, err.Error(), "cpu: set", "CPU 4000", "host has")
	}
	contains(t, refused(t, l, l.Host(), &CPU{Set: []int{4000}}), "cpu: set", "CPU 4000", "CPUs that host has: "+cgroup.FormatCPUs(all))
}

// A machine that runs without a cpuset can be given one while it runs.
func TestCPUSetLater(t *testing.T) {
	needV1(t)
	all := onlineCPUs(t)
	l := newLab(t)
	m := fork(t, l)
	p := spawn(t, m, "sleep 600")
	if err := m.Set(&CPU{Set: all[:1]}); err != nil {
		t.Fatal(err)
	}
	want(t, "a process from before", strconv.Itoa(all[0]), field(t, fmt.Sprintf("/proc/%d/status", p.Pid()), "Cpus_allowed_list"))
	want(t, "a process from afterwards", strconv.Itoa(all[0]), allowed(t, m))
}

// Nobody else's machines run on an exclusive CPU: not those that were there, of
// this lab or another, nor those that come later; and they get it back.
func TestCPUExclusive(t *testing.T) {
	needV1(t)
	all := onlineCPUs(t)
	last := all[len(all)-1:]
	rest := cgroup.FormatCPUs(all[:len(all)-1])
	h := newHost(t)
	l, other := labOn(t, h, ""), labOn(t, h, "-b")
	before, elsewhere := fork(t, l), fork(t, other, space("pidspace"))
	sleeper := spawn(t, before, "sleep 600")
	x := forkIn(t, l, l.Host(), &Spec{Name: "x", Resources: []Resource{&CPU{Set: last, Exclusive: true}}})
	after := fork(t, other)

	want(t, "cpu_exclusive", "1", group(t, x, "cpuset", "cpuset.cpu_exclusive"))
	want(t, "x", strconv.Itoa(last[0]), allowed(t, x))
	for _, m := range []*Machine{before, elsewhere, after} {
		want(t, m.ID(), rest, allowed(t, m))
		want(t, m.ID()+"'s init", rest, field(t, fmt.Sprintf("/proc/%d/status", m.Pid()), "Cpus_allowed_list"))
	}
	want(t, "a process from before", rest, field(t, fmt.Sprintf("/proc/%d/status", sleeper.Pid()), "Cpus_allowed_list"))
	contains(t, read(t, filepath.Join(h.State, ".book", fmt.Sprintf("cpu-%d", last[0]))), x.ID())

	taken := "machine " + x.ID() + " has it exclusively"
	contains(t, refused(t, l, l.Host(), &CPU{Set: last}), "cpu: set", taken)
	contains(t, refused(t, other, other.Host(), &CPU{Set: last, Exclusive: true}), taken)
	if err := after.Set(&CPU{Set: last}); err == nil {
		t.Error("set to a CPU that another machine has")
	} else {
		contains(t, err.Error(), taken)
	}
	if err := x.Set(&CPU{Set: all}); err == nil {
		t.Error("exclusive CPUs were changed")
	}

	destroy(t, x)
	for _, m := range []*Machine{before, elsewhere, after} {
		want(t, m.ID()+" afterwards", cgroup.FormatCPUs(all), allowed(t, m))
	}
	if _, err := os.Stat(filepath.Join(h.State, ".book", fmt.Sprintf("cpu-%d", last[0]))); !os.IsNotExist(err) {
		t.Errorf("the claim: %v", err)
	}
	destroy(t, fork(t, l, &CPU{Set: last, Exclusive: true})) // and again
}

func TestCPUExclusiveRefused(t *testing.T) {
	needV1(t)
	all := onlineCPUs(t)
	l := newLab(t)
	contains(t, refused(t, l, l.Host(), &CPU{Set: all, Exclusive: true}), "cpu: set", "every CPU that host has", "at least one left")
	m := fork(t, l, &CPU{Set: all[:1]}, &Children{Max: 1})
	contains(t, refused(t, l, m, &CPU{Set: all[:1], Exclusive: true}), "cpu: exclusive", "exclusively itself")
	contains(t, refused(t, l, m, &CPU{Set: all[1:2]}), "cpu: set", "CPUs that "+m.Name()+" has: "+strconv.Itoa(all[0]))
}

// A machine with machines of its own is kept off with all of them.
func TestCPUExclusiveNested(t *testing.T) {
	needV1(t)
	all := onlineCPUs(t)
	rest := cgroup.FormatCPUs(all[:len(all)-1])
	l := newLab(t)
	outer := forkIn(t, l, l.Host(), &Spec{Name: "outer", Resources: []Resource{&Children{Max: 2}}})
	a := forkIn(t, l, outer, &Spec{Name: "a"}) // confined before outer, by its name
	z := forkIn(t, l, outer, &Spec{Name: "z"})
	for range 2 {
		x := fork(t, l, &CPU{Set: all[len(all)-1:], Exclusive: true})
		for _, m := range []*Machine{outer, a, z} {
			want(t, m.ID(), rest, allowed(t, m))
		}
		destroy(t, x)
		for _, m := range []*Machine{outer, a, z} {
			want(t, m.ID()+" afterwards", cgroup.FormatCPUs(all), allowed(t, m))
		}
	}
}

// On cgroup v1 a quota stands between those of the machines around and inside, and the
// refusal says so.
func TestCPUQuotaNestedV1(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l, &CPU{Quota: 50}, &Children{Max: 2})
	const why = "is more than the machine around it has, or less than one inside it"
	contains(t, refused(t, l, m, &CPU{Quota: 400}), "cpu: quota: 400 "+why)
	inner := forkIn(t, l, m, &Spec{Resources: []Resource{&CPU{Quota: 40}}})
	for of, quota := range map[*Machine]float64{inner: 60, m: 30} {
		err := of.Set(&CPU{Quota: quota})
		if err == nil {
			t.Fatalf("%s has %v", of.Name(), quota)
		}
		contains(t, err.Error(), why)
	}
}
