package kernel

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func available(t *testing.T, m *Machine, kind string) []Available {
	t.Helper()
	list, err := m.Resources(kind)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func named(list []Available, name string) *Available {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

func TestResources(t *testing.T) {
	l := newLab(t)
	all := available(t, l.Host(), "")
	var kindsSeen []string
	for _, a := range all {
		if !slices.Contains(kindsSeen, a.Kind) {
			kindsSeen = append(kindsSeen, a.Kind)
		}
		if !a.Available && a.Detail == "" && a.Owner == "" {
			t.Errorf("%s %s is not available, and nothing says why", a.Kind, a.Name)
		}
		if a.Name == "" {
			t.Errorf("a nameless %s", a.Kind)
		}
	}
	var order []string
	for _, k := range kinds() {
		if slices.Contains(kindsSeen, k.Name) {
			order = append(order, k.Name)
		}
		if k.New != nil && !slices.Contains(kindsSeen, k.Name) {
			t.Errorf("%s is not listed", k.Name)
		}
	}
	want(t, "in the order of the table", order, kindsSeen)
	want(t, "loopback", true, named(available(t, l.Host(), "netif"), "lo") != nil)
	want(t, "/dev/null", true, named(available(t, l.Host(), "device"), "/dev/null").Available)
	if _, err := l.Host().Resources("soul"); err == nil {
		t.Error("listed what there is not")
	} else {
		contains(t, err.Error(), `resources: kind: got "soul"`, "cpu")
	}
}

// What a machine has exclusively is listed with its owner, and not for others.
func TestResourcesTaken(t *testing.T) {
	cpus := onlineCPUs(t)
	l := newLab(t)
	last := cpus[len(cpus)-1]
	x := fork(t, l, &CPU{Set: []int{last}, Exclusive: true}, &Memory{Reserve: bytesOf(1 << 20)}, &Uidspace{}, &Children{Max: 2})
	cpu := named(available(t, l.Host(), "cpu"), fmt.Sprint(last))
	if cpu == nil || cpu.Available || cpu.Owner != x.ID() {
		t.Errorf("CPU %d: %+v", last, cpu)
	}
	want(t, "another CPU", true, named(available(t, l.Host(), "cpu"), fmt.Sprint(cpus[0])).Available)
	total, err := memTotal()
	if err != nil {
		t.Fatal(err)
	}
	contains(t, available(t, l.Host(), "memory")[0].Detail, fmt.Sprint(total), fmt.Sprint(total-1<<20))
	taken := slices.IndexFunc(available(t, l.Host(), "uidspace"), func(a Available) bool { return a.Owner == x.ID() && strings.Contains(a.Detail, "65536") })
	want(t, "its range of ids is listed", true, taken >= 0)

	// as the machine itself sees them
	want(t, "x's own CPUs", fmt.Sprint(last), available(t, x, "cpu")[0].Name)
	want(t, "and they are x's to give", true, available(t, x, "cpu")[0].Available)
	contains(t, available(t, x, "memory")[0].Detail, fmt.Sprint(1<<20))
	contains(t, available(t, x, "children")[0].Detail, "2 more of 2")
	plain := fork(t, l)
	want(t, "children of a machine without any", false, available(t, plain, "children")[0].Available)
	destroy(t, x)
	want(t, "the CPU afterwards", true, named(available(t, l.Host(), "cpu"), fmt.Sprint(last)).Available)
}

// What the host has not is listed as such, with the reason.
func TestResourcesMissing(t *testing.T) {
	h := newHost(t)
	h.Cgroup.Controllers = nil
	l := labOn(t, h, "")
	for _, kind := range []string{"cpu", "memory", "pids"} {
		for _, a := range available(t, l.Host(), kind) {
			if a.Available {
				t.Errorf("%s %s is available", a.Kind, a.Name)
			}
			contains(t, a.Detail, "no ", "controller in cgroup")
		}
	}
	for _, f := range h.Doctor(t.Context()) {
		if !f.OK && f.Mend == "" {
			t.Errorf("%s: %s: no mend", f.Name, f.Detail)
		}
	}
}
