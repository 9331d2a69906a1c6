package kernel

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// What is msh's own in a machine stands there as the machine's programs do: its
// minimal init, and the process that opens and moves files in the machine's place. The
// programs' ways in are compared by kernel/escape, from inside.
func TestParityOfOwn(t *testing.T) {
	l := newLab(t)
	for n := 0; n <= topLevel; n++ {
		for _, ids := range []bool{false, true} {
			rs := []Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), space("ipcspace"), space("cgroupspace"),
				&Pids{Max: 50}, &Rlimit{Name: "nofile", Soft: 100, Hard: 200}, atLevel(n)}
			if ids {
				rs = append(rs, &Uidspace{})
			}
			m := fork(t, l, rs...)
			what := fmt.Sprintf("level %d, ids %v", n, ids)
			program := standing(t, spawn(t, m, "exec sleep 600").Pid())
			if diff := cmp.Diff(program, standing(t, m.Pid())); diff != "" {
				t.Errorf("%s (-a program's +the init's):\n%s", what, diff)
			}
			p, letGo := parked(t, m)
			if diff := cmp.Diff(program, standing(t, p.pid)); diff != "" {
				t.Errorf("%s (-a program's +the process's that copies):\n%s", what, diff)
			}
			letGo()
			destroy(t, m)
		}
	}
}

// parked is the process by which msh copies into a machine, as it waits for msh.
func parked(t *testing.T, m *Machine) (p *process, letGo func()) {
	t.Helper()
	line, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err = entered{m}.begin(map[stage0.FD]int{lineFD: line[1]}, func(s *Steps) {
		s.Call("tell msh", 0, unix.SYS_WRITE, lineFD, "o", 1)
		s.Call("wait for msh", stage0.Positive, unix.SYS_READ, lineFD, stage0.Buffer(8), 1)
	})
	unix.Close(line[1])
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it stands in the machine", func() bool { return await(t.Context(), line[0]) == nil })
	var said [1]byte
	if n, err := unix.Read(line[0], said[:]); n != 1 {
		t.Fatalf("it did not come that far: %v, %v", err, p.failure())
	}
	return p, func() {
		unix.Close(line[0])
		p.kill()
		p.close()
	}
}

// standing is how a process is confined, as the host sees it.
func standing(t *testing.T, pid int) map[string]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	all := map[string]string{}
	for line := range strings.Lines(read(t, dir+"status")) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
			"Speculation_Store_Bypass", "SpeculationIndirectBranch", "Cpus_allowed", "Mems_allowed", "THP_enabled":
			all[key] = strings.TrimSpace(value)
		}
	}
	for _, file := range []string{"limits", "cgroup", "uid_map", "gid_map", "setgroups", "oom_score_adj", "personality", "timerslack_ns"} {
		all[file] = read(t, dir+file)
	}
	for _, ns := range namespaces {
		to, err := os.Readlink(dir + "ns/" + ns.name)
		if err != nil {
			t.Fatal(err)
		}
		all[ns.name] = to
	}
	a, err := unix.SchedGetAttr(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	all["priority"] = fmt.Sprint(a.Policy, a.Nice, a.Priority)
	return all
}

// Whoever comes in has the limits of the machine, not those of its own log-in.
func TestEnterLimits(t *testing.T) {
	l := newLab(t)
	for _, ids := range []bool{false, true} {
		rs := []Resource{space("pidspace"), &Children{Max: 1}}
		if ids {
			rs = append(rs, &Uidspace{Map: []IDMap{{0, 0, 65536}}})
		}
		m := fork(t, l, rs...)
		const ask = "ulimit -Sc; ulimit -Hc; ulimit -Sn; ulimit -St"
		had := sh(t, m, ask)
		// As if this were another msh, that somebody has started under other limits.
		core := limited(t, unix.RLIMIT_CORE, 4096)
		cpu := limited(t, unix.RLIMIT_CPU, 3600)
		want(t, "run", had, sh(t, m, ask))
		inner := forkIn(t, l, m, &Spec{Resources: []Resource{space("pidspace")}})
		want(t, "in a machine in it", had, sh(t, inner, ask))
		want(t, "its init's", read(t, fmt.Sprintf("/proc/%d/limits", m.Pid())), read(t, fmt.Sprintf("/proc/%d/limits", inner.Pid())))
		cpu()
		core()
		destroy(t, inner)
		destroy(t, m)
	}
}

// limited sets a soft limit of this process's until it is told to set it back.
func limited(t *testing.T, which int, soft uint64) (back func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(which, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(which, &unix.Rlimit{Cur: soft, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	return func() { unix.Setrlimit(which, &was) }
}
