package kernel

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// everything is a spec of every kind. CPUs, memory and devices only where the
// host has them to give.
func everything(t *testing.T, h *Host) []Resource {
	t.Helper()
	base := t.TempDir()
	rs := []Resource{
		&CPU{Quota: 50, Weight: 50}, &Memory{Max: bytesOf(64 << 20), Reserve: bytesOf(1 << 20)}, &Pids{Max: 50}, &Children{Max: 1},
		&Uidspace{}, space("cgroupspace"), space("ipcspace"), space("netspace"), space("mountspace"),
		&Root{Source: smallRoot(t), Write: "overlay", Upper: base}, space("pidspace"),
		&Mount{Source: base, Target: "/here/it/is", Type: "bind", Options: []string{"ro", "idmap"}},
		&Mount{Source: "/etc/passwd", Target: "/etc/some/file", Type: "bind"},
		&Mount{Target: "/scratch", Type: "tmpfs", Options: []string{"size=64k"}},
		&Uname{Nodename: "box", Domainname: "test"}, &Sysctl{"net.ipv4.ip_forward", "1"}, &Rlimit{Name: "nofile", Soft: 64, Hard: 64},
	}
	if online := read(t, "/sys/devices/system/cpu/online"); online != "0" {
		rs[0].(*CPU).Set, rs[0].(*CPU).Exclusive = []int{1}, true
	}
	return rs
}

// With a fault at each step, msh's and the child's, nothing is made and nothing
// is left.
func TestFaults(t *testing.T) {
	needV1(t)
	testFaults(t)
}

func TestFaultsV2(t *testing.T) {
	needV2(t)
	testFaults(t)
}

func testFaults(t *testing.T) {
	t.Run("minimal", func(t *testing.T) {
		h := newHost(t)
		l := labOn(t, h, "")
		faults(t, h, l, l.Host(), nil)
	})
	t.Run("everything", func(t *testing.T) {
		takeCPUs(t)
		h := newHost(t)
		rs := everything(t, h)
		if h.Cgroup.Unified { // whose kernel, in the VM, shifts no owners of a tmpfs
			rs = slices.DeleteFunc(rs, func(r Resource) bool {
				m, ok := r.(*Mount)
				return ok && slices.Contains(m.Options, "idmap")
			})
			rs = slices.DeleteFunc(rs, func(r Resource) bool { return r.Kind() == "uidspace" })
		}
		l := labOn(t, h, "")
		faults(t, h, l, l.Host(), rs)
	})
	t.Run("nested", func(t *testing.T) {
		h := newHost(t)
		l := labOn(t, h, "")
		same := &Uidspace{Map: []IDMap{{0, 0, 65536}}}
		outer := fork(t, l, space("pidspace"), same, space("mountspace"), &Children{Max: 1}, &Pids{Max: 100})
		faults(t, h, l, outer, []Resource{space("pidspace"), &Uidspace{Map: []IDMap{{0, 0, 1000}}}, &Timespace{Boottime: time.Hour}, &Pids{Max: 10},
			space("ipcspace"), &Mount{Source: "/etc", Target: "/mnt", Type: "bind"}})
	})
}

func faults(t *testing.T, h *Host, l *Lab, parent *Machine, rs []Resource) {
	spec := &Spec{Name: "m", Resources: rs}
	m, err := l.Fork(t.Context(), parent, spec) // that it can be made at all
	if err != nil {
		t.Fatalf("%v%s", err, hintOf(err))
	}
	destroy(t, m)
	plan, err := l.Plan(parent, spec)
	if err != nil {
		t.Fatal(err)
	}
	l.names["m"] = false // the plan took it, and a place among the children
	parent.disown("m")
	steps := plan.Steps.Steps()
	before := hostState(t, h)

	attempt := func(k int, check func(error)) bool {
		m, err := l.Fork(t.Context(), parent, spec)
		h.Fault = Fault{}
		if err == nil {
			destroy(t, m)
			return false
		}
		check(err)
		if left := settled(t, h, before); left != "" {
			t.Errorf("fault at step %d (%v): left (-before +after):\n%s", k, err, left)
		}
		if t.Failed() {
			t.FailNow()
		}
		return true
	}
	n := 0
	for k := 1; ; k++ {
		h.Fault = Fault{Parent: k}
		if !attempt(k, func(err error) {
			if !errors.Is(err, errFault) {
				t.Errorf("step %d: %v", k, err)
			}
			contains(t, err.Error(), "machine m: ", ": injected fault")
		}) {
			break
		}
		n = k
	}
	if n < 5 {
		t.Errorf("only %d steps of msh's own", n)
	}
	for k := 1; k <= len(steps); k++ {
		h.Fault = Fault{Child: k}
		if !attempt(k, func(err error) {
			contains(t, err.Error(), "machine m: ", "function not implemented")
			if steps[k-1].Nr != unix.SYS_OPEN_TREE { // whose error is in the words of the parameter
				contains(t, err.Error(), steps[k-1].Words)
			}
		}) && (k == 1 || steps[k-2].Flags&stage0.SkipNext == 0) {
			t.Errorf("a fault at step %d, %q, did not show", k, steps[k-1].Words)
		}
	}
	t.Logf("%d steps of msh's, %d of the child's", n, len(steps))
	want(t, "at last", "", cmp.Diff(before, hostState(t, h)))
}
