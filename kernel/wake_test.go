package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"msh/kernel/criu"
)

// needCriu skips a test on a host that has none; scripts/deps fetches it, so that
// only the VM, which has to be given one, may lack it.
func needCriu(t *testing.T) {
	t.Helper()
	_, err := criu.Find(t.Context())
	if missing := (*criu.ErrMissing)(nil); errors.As(err, &missing) {
		if os.Getenv("MSH_VM") != "" {
			t.Skip(err)
		}
		t.Fatal(err, "(scripts/criu fetches it)")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// started has a machine run a shell script in the background, its init's child.
func started(t *testing.T, m *Machine, script string) {
	t.Helper()
	writeIn(t, m, "/start", script)
	r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "setsid sh /start </dev/null >/log 2>&1 &"}}, nil, long)
	if err != nil || r.Code != 0 {
		t.Fatal(err, r)
	}
}

func writeIn(t *testing.T, m *Machine, path, text string) {
	t.Helper()
	if err := m.WriteFile(t.Context(), path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// eventuallyIn waits until a file of the machine's holds a text.
func eventuallyIn(t *testing.T, m *Machine, path, want string) {
	t.Helper()
	var b []byte
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/root%s", m.Pid(), path))
		if strings.Contains(string(b), want) {
			return
		}
	}
	log, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root/log", m.Pid()))
	t.Fatalf("%s never had %q: %q; log: %s", path, want, b, log)
}

func hibernate(t *testing.T, m *Machine) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "m.msh")
	if _, err := m.Snapshot(t.Context(), file, SnapshotOptions{Hibernate: true}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	return file
}

func wakeUp(t *testing.T, l *Lab, file string, o WakeOptions) *Machine {
	t.Helper()
	all, err := l.WakeFile(t.Context(), file, o)
	if err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	return all[0]
}

func explainCriu(t *testing.T, err error) {
	var e *criu.Error
	if errors.As(err, &e) {
		t.Log(strings.Join(e.Log, "\n"))
	}
}

// A counter goes on where it was, in files, memory and its number; the machine is as
// any other before and after.
func TestHibernate(t *testing.T) {
	needCriu(t)
	for name, more := range map[string][]Resource{
		"plain":  nil,
		"limits": {&Memory{Max: bytesOf(256 << 20)}, &Pids{Max: 100}, &CPU{Weight: 50}, &Uname{Nodename: "saved"}, space("ipcspace"), space("cgroupspace"), space("netspace")},
		"uid":    {&Uidspace{}, space("netspace"), space("ipcspace")},
		"time":   {&Timespace{Boottime: 1000 * time.Hour}},
		"mounts": {&Mount{Source: "/etc", Target: "/host/etc", Type: "bind", Options: []string{"ro"}}, &Mount{Target: "/scratch", Type: "tmpfs", Options: []string{"size=64k"}}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			m := fork(t, l, append([]Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace")}, more...)...)
			started(t, m, "rm -r /home; i=0; while sleep 0.01; do i=$((i+1)); echo $i $$ >>/count; done")
			eventuallyIn(t, m, "/count", "\n5 ")
			file := hibernate(t, m)
			if m.State() != "dead" || len(l.Machines()) != 0 {
				t.Errorf("hibernated: %s, machines %v", m.State(), l.Machines())
			}
			w := wakeUp(t, l, file, WakeOptions{})
			before := readIn(t, w, "/count")
			eventuallyIn(t, w, "/count", fmt.Sprintf("\n%d ", strings.Count(before, "\n")+3))
			lines := strings.Split(strings.TrimSpace(readIn(t, w, "/count")), "\n")
			for i, line := range lines {
				if want := fmt.Sprintf("%d %s", i+1, strings.Fields(lines[0])[1]); line != want {
					t.Fatalf("line %d is %q, want %q", i+1, line, want)
				}
			}
			if out := output(t, w, "ls / | grep -c home; cat /proc/1/comm; id -u"); out != "0\n.init\n0\n" {
				t.Errorf("in it: %q", out)
			}
		})
	}
}

func readIn(t *testing.T, m *Machine, path string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", m.Pid(), path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func output(t *testing.T, m *Machine, script string) string {
	t.Helper()
	r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", script}}, nil, long)
	if err != nil {
		t.Fatal(err)
	}
	return string(r.Stdout) + string(r.Stderr)
}
