package kernel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// newLab makes a lab with a state directory of its own, and checks at the end of
// the test that the host is as it was.
func newLab(t *testing.T) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("machines need root")
	}
	stage0Path() // opened once for the life of the process
	theWatcher()
	before := hostState(t)
	h, err := NewHost(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.NewLab(fmt.Sprintf("t%d-%s", os.Getpid(), labName(t)), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		if after := settled(t, before); after != "" {
			t.Errorf("left behind (-before +after):\n%s", after)
		}
	})
	return l
}

func labName(t *testing.T) string {
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", "=", "-").Replace(t.Name()))
	if len(name) > 40 {
		name = name[:40]
	}
	return strings.Trim(name, "-")
}

// hostState is what a machine could leave on the host, as text.
func hostState(t *testing.T) []string {
	t.Helper()
	var s []string
	for _, pattern := range []string{"/sys/fs/cgroup/msh.*", "/sys/fs/cgroup/*/msh.*"} {
		dirs, _ := filepath.Glob(pattern)
		for _, d := range dirs {
			s = append(s, "cgroup "+d)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		s = append(s, "mount "+strings.Join(strings.Fields(line)[2:5], " "))
	}
	links, _ := os.ReadDir("/sys/class/net")
	for _, l := range links {
		s = append(s, "link "+l.Name())
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, f := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + f.Name())
		if to != "" && !strings.HasSuffix(to, "/proc/self/fd") && !strings.Contains(to, "/fd") {
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
	state, _ := filepath.Glob(filepath.Join(os.TempDir(), "Test*", "*", "state", "*"))
	s = append(s, state...)
	slices.Sort(s)
	return s
}

// settled gives the kernel a moment: it closes and reaps after it has answered.
func settled(t *testing.T, before []string) string {
	var diff string
	for range 100 {
		if diff = cmp.Diff(before, hostState(t)); diff == "" {
			return ""
		}
		time.Sleep(10 * time.Millisecond)
	}
	return diff
}

func fork(t *testing.T, l *Lab, rs ...Resource) *Machine {
	t.Helper()
	m, err := l.Fork(t.Context(), l.Host(), &Spec{Resources: rs})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func run(t *testing.T, m *Machine, argv ...string) string {
	t.Helper()
	r, err := m.Run(t.Context(), &Command{Argv: argv}, nil, 20*time.Second)
	if err != nil {
		t.Fatalf("run %v: %v", argv, err)
	}
	if r.Code != 0 {
		t.Fatalf("run %v: code %d\n%s%s", argv, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

func space(name string) Resource { return &Space{Name: name} }

func overlay() Resource { return &Root{Source: "/", Write: "overlay"} }

func TestPlain(t *testing.T) {
	l := newLab(t)
	m := fork(t, l)
	if got := run(t, m, "echo", "hello"); got != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestFull(t *testing.T) {
	l := newLab(t)
	max := int64(64 << 20)
	m := fork(t, l, space("pidspace"), space("ipcspace"), space("netspace"), space("cgroupspace"), overlay(),
		&Uname{Nodename: "box"}, &CPU{Quota: 50}, &Memory{Max: &max}, &Pids{Max: 32})
	if got := run(t, m, "hostname"); got != "box" {
		t.Errorf("hostname: %q", got)
	}
	if got := run(t, m, "sh", "-c", "echo $$"); got == "" {
		t.Errorf("pid: %q", got)
	}
	t.Log(run(t, m, "sh", "-c", "ls -la / /dev; cat /proc/self/mounts /proc/self/cgroup; ps ax; ip link"))
}

func TestUidspace(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{}, overlay())
	t.Log(run(t, m, "sh", "-c", "id; cat /proc/self/uid_map; ls -ln / /dev; ps ax; touch /etc/x && ls -ln /etc/x; rm -r /etc/apt; mkdir /etc/apt; ls -la /etc/apt"))
}

func TestNested(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{Size: 200000}, overlay(), &Children{2})
	c, err := l.Fork(t.Context(), m, &Spec{Resources: []Resource{space("pidspace"), &Uidspace{Map: []IDMap{{0, 0, 65536}}}, overlay(), &Timespace{Boottime: time.Hour}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(run(t, c, "sh", "-c", "id; cat /proc/self/uid_map; ls -ln / /dev; ps ax; cat /proc/uptime"))
	t.Log(run(t, m, "sh", "-c", "ps ax"))
}
