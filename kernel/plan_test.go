package kernel

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
)

// The two sorts of host that plans differ on.
var (
	hybridHost  = &cgroup.Host{V2: "/sys/fs/cgroup/unified", Controllers: []string{"blkio", "cpu", "cpuacct", "cpuset", "memory", "pids"}}
	unifiedHost = &cgroup.Host{Unified: true, V2: cgroup.Root, Controllers: []string{"cpu", "cpuset", "io", "memory", "pids"}}
)

// planned are machines whose plans are kept as text in testdata/plan.
var planned = []struct {
	name  string
	spec  *Spec
	under Under
	host  *cgroup.Host
}{
	{"minimal", &Spec{Name: "m"}, Under{Lab: "lab"}, hybridHost},
	{"init", &Spec{Name: "m", Init: []string{"nginx", "-g", "daemon off;"}, Resources: []Resource{space("pidspace")}}, Under{Lab: "lab"}, hybridHost},
	{"full", fullSpec(), Under{Lab: "lab"}, hybridHost},
	{"full_v2", fullSpec(), Under{Lab: "lab"}, unifiedHost},
	{"direct", &Spec{Name: "m", Resources: []Resource{&Root{Source: "/srv/root", Write: "direct"}, &Mount{Source: "/srv/data", Target: "/data", Type: "bind", Options: []string{"rbind"}}}}, Under{Lab: "lab"}, hybridHost},
	{"nested", &Spec{Name: "inner", Resources: []Resource{space("pidspace"), &Uidspace{Size: 1000}, &Timespace{Boottime: -90 * time.Minute}, &Root{Source: "/", Write: "none"}, &Rlimit{Name: "core"}}},
		Under{Name: "outer", Path: "/msh.lab.outer", Lab: "lab", Space: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUSER, IDs: []IDMap{{0, 1 << 20, 200000}},
			Limit: []*Rlimit{{"nofile", 100, 200}}, Clock: Timespace{Boottime: time.Hour}}, unifiedHost},
}

func fullSpec() *Spec {
	return &Spec{Name: "m", Resources: []Resource{
		// in no order of theirs
		&Rlimit{Name: "nofile", Soft: 1024, Hard: Unlimited}, &Sysctl{"net.ipv4.ip_forward", "1"}, &Uname{Nodename: "box"},
		&Mount{Target: "/scratch", Type: "tmpfs", Options: []string{"nosuid", "size=1m"}}, &Mount{Source: "/srv/data", Target: "/data", Type: "bind", Options: []string{"ro", "idmap"}},
		space("pidspace"), &Root{Source: "/srv/root", Write: "overlay", Size: 64 << 20}, space("netspace"), space("ipcspace"), space("cgroupspace"), &Uidspace{},
		&Children{Max: 3}, &IO{Device: "/dev/sda", ReadBPS: 1 << 20, Weight: 50}, &Pids{Max: 100}, &Memory{Max: bytesOf(256 << 20), Reserve: bytesOf(64 << 20), Swap: bytesOf(0)},
		&CPU{Quota: 0.5, Weight: 20, Set: []int{1, 3, 2}, Exclusive: true},
	}}
}

func planText(t *testing.T, i int) string {
	t.Helper()
	c := planned[i]
	p, err := NewPlan(c.spec, c.under, c.host, "/run/msh/lab/"+c.spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := p.Print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		mustWrite(t, path, got, 0o644)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: write it with -update", err)
	}
	if diff := cmp.Diff(string(b), got); diff != "" {
		t.Errorf("%s (-want +got); -update rewrites it:\n%s", path, diff)
	}
}

func TestPlanGolden(t *testing.T) {
	for i, c := range planned {
		golden(t, "plan/"+c.name+".txt", planText(t, i))
	}
}

// The same spec gives the same plan, whoever asks and whenever, and is not changed.
func TestPlanPure(t *testing.T) {
	for i, c := range planned {
		before, err := json.Marshal(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		first := planText(t, i)
		for range 20 {
			if diff := cmp.Diff(first, planText(t, i)); diff != "" {
				t.Fatalf("%s (-first +later):\n%s", c.name, diff)
			}
		}
		after, err := json.Marshal(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		want(t, c.name+": its spec", string(before), string(after))
	}
}

// Each step that is printed is one that is performed, and can be assembled.
func TestPlanAssembles(t *testing.T) {
	for _, c := range planned {
		p, err := NewPlan(c.spec, c.under, c.host, "/run/msh/lab/"+c.spec.Name)
		if err != nil {
			t.Fatal(err)
		}
		number := map[stage0FD]int{}
		for i, fd := range p.Steps.FDs() {
			number[fd] = 4 + i
		}
		if _, err := p.Steps.Assemble(number); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for i, s := range p.Steps.Steps() {
			if s.Words == "" {
				t.Errorf("%s: step %d says nothing", c.name, i+1)
			}
		}
	}
}

func TestLabPlan(t *testing.T) {
	h, err := NewHost(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Skip(err)
	}
	l, err := h.NewLab("dry", false)
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Plan(l.Host(), &Spec{Resources: []Resource{space("pidspace"), &Children{Max: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	m := l.Planned(l.Host(), p)
	want(t, "name", "m1", m.Name())
	want(t, "state", "planned", m.State())
	inner, err := l.Plan(m, &Spec{Name: "inner"})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "the inner one's group", p.Group.Path+"/inner", inner.Group.Path)
	if _, err := l.Plan(l.Host(), &Spec{Name: "inner"}); err == nil {
		t.Error("planned two of one name")
	}
	if _, err := os.Stat(h.State); !os.IsNotExist(err) {
		t.Errorf("a plan made %s: %v", h.State, err)
	}
}
