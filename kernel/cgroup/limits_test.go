package cgroup

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCPUs(t *testing.T) {
	for _, c := range []struct {
		text string
		cpus []int
		back string
	}{
		{"0", []int{0}, "0"}, {"0-3", []int{0, 1, 2, 3}, "0-3"}, {"0-1,3\n", []int{0, 1, 3}, "0-1,3"}, {"3,1,2", []int{1, 2, 3}, "1-3"},
		{"1,1-2", []int{1, 2}, "1-2"}, {"0,2,4-5,7", []int{0, 2, 4, 5, 7}, "0,2,4-5,7"},
	} {
		got, err := ParseCPUs(c.text)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(c.cpus, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.text, diff)
		}
		if back := FormatCPUs(got); back != c.back {
			t.Errorf("%q: written back as %q, want %q", c.text, back, c.back)
		}
	}
	for _, text := range []string{"", ",", "a", "1-", "-1", "2-1", "0,,1", "1-2-3", "70000", "0-65535x", "1 2"} {
		if got, err := ParseCPUs(text); err == nil {
			t.Errorf("%q: read as %v", text, got)
		} else if !strings.Contains(err.Error(), "CPU numbers") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseCPUs(f *testing.F) {
	for _, s := range []string{"0", "0-3", "1,3-5,9", "65535", "5-1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cpus, err := ParseCPUs(text)
		if err != nil {
			return
		}
		if len(cpus) == 0 || !slices.IsSorted(cpus) || cpus[0] < 0 {
			t.Fatalf("%q: %v", text, cpus)
		}
		again, err := ParseCPUs(FormatCPUs(cpus))
		if err != nil || !slices.Equal(cpus, again) {
			t.Fatalf("%q: %v written as %q, read as %v, %v", text, cpus, FormatCPUs(cpus), again, err)
		}
	})
}

// The kernel takes quotas from 1 ms and periods to 1 s.
func TestQuota(t *testing.T) {
	for percent, want := range map[float64][2]int64{50: {50_000, 100_000}, 200: {200_000, 100_000}, 1: {1000, 100_000}, 0.5: {5000, 1_000_000}, 0.1: {1000, 1_000_000}, 33.333: {33_333, 100_000}} {
		q, p := Limits{CPUQuota: percent}.quota()
		if q != want[0] || int64(p) != want[1] {
			t.Errorf("%v %%: %d us in %d us, want %v", percent, q, p, want)
		}
	}
}

// What is set changes, what is not named stays.
func TestWith(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	had := Limits{CPUQuota: 50, CPUWeight: 10, CPUs: "0", MemoryMax: n(1), Swap: n(0), Pids: 5, IO: []IO{{Major: 8, ReadBPS: 1}, {Major: 9, ReadBPS: 2}}}
	got := had.With(Limits{CPUQuota: 20, MemoryHigh: n(7), IO: []IO{{Major: 9, ReadBPS: 3}, {Major: 10, ReadBPS: 4}}})
	want := Limits{CPUQuota: 20, CPUWeight: 10, CPUs: "0", MemoryMax: n(1), MemoryHigh: n(7), Swap: n(0), Pids: 5, IO: []IO{{Major: 8, ReadBPS: 1}, {Major: 9, ReadBPS: 3}, {Major: 10, ReadBPS: 4}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if had.IO[1].ReadBPS != 2 {
		t.Error("the old limits were changed")
	}
	if diff := cmp.Diff(had, had.With(Limits{})); diff != "" {
		t.Errorf("nothing named (-want +got):\n%s", diff)
	}
}

// Where the same group is on the three sorts of host.
func TestLayout(t *testing.T) {
	n := int64(1 << 20)
	l := Limits{Pids: 5, MemoryMax: &n, CPUs: "0"}
	for _, c := range []struct {
		name   string
		host   Host
		parent bool
		dirs   []string
		joins  int
	}{
		{"unified", Host{Unified: true, V2: Root}, false, []string{"/sys/fs/cgroup/msh.l.m"}, 0},
		{"unified, with machines", Host{Unified: true, V2: Root}, true, []string{"/sys/fs/cgroup/msh.l.m", "/sys/fs/cgroup/msh.l.m/.init"}, 0},
		{"hybrid", Host{V2: Root + "/unified"}, true, []string{"/sys/fs/cgroup/unified/msh.l.m", "/sys/fs/cgroup/cpuset/msh.l.m", "/sys/fs/cgroup/memory/msh.l.m", "/sys/fs/cgroup/pids/msh.l.m"}, 3},
		{"v1", Host{V2: Private}, false, []string{"cgroup2:/msh.l.m", "/sys/fs/cgroup/cpuset/msh.l.m", "/sys/fs/cgroup/memory/msh.l.m", "/sys/fs/cgroup/pids/msh.l.m"}, 3},
	} {
		g := c.host.Group("/msh.l.m", l, c.parent)
		if diff := cmp.Diff(c.dirs, g.Names()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if got := len(g.Places(nil)); got != c.joins {
			t.Errorf("%s: %d groups to join, want %d", c.name, got, c.joins)
		}
	}
	inner := &Group{Path: "/msh.l.m/c", V1: []string{"pids"}}
	above := []Place{{"cpu", "/msh.l.m"}, {"pids", "/msh.l.m"}}
	if diff := cmp.Diff([]Place{{"pids", "/msh.l.m/c"}, {"cpu", "/msh.l.m"}}, inner.Places(above)); diff != "" {
		t.Errorf("inside another (-want +got):\n%s", diff)
	}
}

func TestCheck(t *testing.T) {
	n := int64(1)
	hybrid := &Host{V2: Root + "/unified", Controllers: []string{"cpu", "memory"}}
	unified := &Host{Unified: true, V2: Root, Controllers: []string{"cpu", "io", "memory"}}
	for _, c := range []struct {
		host *Host
		l    Limits
		want string // "" is none
	}{
		{hybrid, Limits{}, ""}, {hybrid, Limits{CPUQuota: 1}, ""}, {hybrid, Limits{Pids: 1}, "controller missing: pids (cgroup hybrid here has cpu memory)"},
		{hybrid, Limits{IO: []IO{{}}}, "controller missing: blkio"}, {hybrid, Limits{MemoryHigh: &n}, "memory.high is cgroup v2's"},
		{unified, Limits{IO: []IO{{}}, MemoryHigh: &n, Swap: &n}, ""}, {unified, Limits{CPUs: "0"}, "controller missing: cpuset (cgroup v2 here has cpu io memory)"},
	} {
		err := c.host.Check(c.l)
		switch {
		case err == nil && c.want != "", err != nil && (c.want == "" || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s %+v: got %v, want %q", c.host.Mode(), c.l, err, c.want)
		case err != nil && !errors.Is(err, ErrMissing):
			t.Errorf("%v is no ErrMissing", err)
		}
	}
}

// A group that is no machine's is never killed: at the root that is the host.
func TestKillOnlyMachines(t *testing.T) {
	for _, path := range []string{"", "/", "/init.scope", "/../msh.x", "/system.slice/msh.x"} {
		g := &Group{Path: path, Unified: true, Tracker: t.TempDir()}
		if err := g.Kill(); err == nil {
			t.Errorf("%q: killed", path)
		}
	}
}
