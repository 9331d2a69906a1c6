package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"msh/kernel/criu"
)

// needCriu skips a test on a host that has none; scripts/deps fetches it, so that
// only the VM, which has to be given one, may lack it.
func needCriu(t *testing.T) {
	t.Helper()
	c, err := criu.Find(t.Context())
	if missing := (*criu.ErrMissing)(nil); errors.As(err, &missing) {
		if os.Getenv("MSH_VM") != "" {
			t.Skip(err)
		}
		t.Fatal(err, "(scripts/criu fetches it)")
	}
	if err != nil {
		t.Fatal(err)
	}
	criuLooked.Do(func() { c.Features(t.Context()) })
}

// criuLooked: criu has looked at the kernel, and no test is the first, in whose host's
// state directory what it found would be left.
var criuLooked sync.Once

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

// A spawned program goes on, with its log; before, its handle tells of its end whether
// the machine was saved meanwhile or not.
func TestHibernateSpawned(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"))
	spawn := func(script string) *Process {
		p, err := m.Spawn(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", script}}, "", RestartNo)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		script string
		code   int
	}{{"exit 7", 7}, {"kill -TERM $$", 143}, {"sleep 0.1", 0}} {
		if code, err := spawn(c.script).Wait(t.Context(), long); code != c.code || err != nil {
			t.Errorf("%s: %d, %v", c.script, code, err)
		}
	}
	p, q := spawn("i=0; while sleep 0.01; do i=$((i+1)); echo tick $i; done"), spawn("while ! test -e /go; do sleep 0.01; done; exit 5")
	waitLog := func(want string) {
		t.Helper()
		for end := time.Now().Add(long); ; time.Sleep(5 * time.Millisecond) {
			b, _ := p.Log()
			if strings.Contains(string(b), want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("its log never had %q: %s", want, b)
			}
		}
	}
	waitLog("tick 5\n")
	if _, err := m.Snapshot(t.Context(), filepath.Join(t.TempDir(), "s"), SnapshotOptions{}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	writeIn(t, m, "/go", "")
	code, err := q.Wait(t.Context(), long)
	if want := 5; (code != want && code != 137) || err != nil {
		t.Errorf("after a snapshot its code is %d, %v", code, err)
	}
	b, _ := p.Log()
	n := strings.Count(string(b), "\n")
	waitLog(fmt.Sprintf("tick %d\n", n+3))
	file := hibernate(t, m)
	if _, err := p.Wait(t.Context(), long); err != nil {
		t.Error(err)
	}
	w := wakeUp(t, l, file, WakeOptions{})
	var log string
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		logs, err := w.Logs()
		if err != nil {
			t.Fatal(err)
		}
		log = ""
		for name, b := range logs {
			if strings.Contains(string(b), "tick") {
				log = string(b)
			}
			_ = name
		}
		if strings.Contains(log, fmt.Sprintf("tick %d\n", n+20)) {
			break
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(log), "\n") {
		if line != fmt.Sprintf("tick %d", i+1) {
			t.Fatalf("line %d of the log is %q", i+1, line)
		}
	}
	if r, err := w.Run(t.Context(), &Command{Argv: []string{"true"}}, nil, long); err != nil || r.Code != 0 {
		t.Error(r, err)
	}
}

// What cannot be saved is named before anything stops.
func TestSnapshotRefused(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	root := &Root{Source: "/", Write: "overlay"}
	for _, c := range []struct {
		name   string
		given  []Resource
		script string
		want   string
	}{
		{"noroot", []Resource{space("pidspace")}, "", "no root of its own"},
		{"nopids", []Resource{root}, "", "numbers of the host's"},
		{"inner", []Resource{root, space("pidspace"), &Children{Max: 1}}, "", "machines inside it: in"},
		{"unshared", []Resource{root, space("pidspace")}, "exec unshare -u sleep 1000", "(sleep) has a uts namespace of its own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := fork(t, l, c.given...)
			if c.name == "inner" {
				if _, err := l.Fork(t.Context(), m, &Spec{Name: "in"}); err != nil {
					t.Fatal(err)
				}
			}
			if c.script != "" {
				started(t, m, c.script)
				time.Sleep(300 * time.Millisecond)
			}
			file := filepath.Join(t.TempDir(), "s")
			_, err := m.Snapshot(t.Context(), file, SnapshotOptions{Hibernate: true})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if m.State() != "running" {
				t.Errorf("it is %s", m.State())
			}
			if _, err := os.Lstat(file); err == nil {
				t.Error("there is a file")
			}
		})
	}
	m := fork(t, l, root, space("pidspace"))
	done := make(chan error, 1)
	go func() {
		_, err := m.Run(t.Context(), &Command{Argv: []string{"sh", "-c", "echo >/up; sleep 1"}}, nil, long)
		done <- err
	}()
	eventuallyIn(t, m, "/up", "\n")
	_, err := m.Snapshot(t.Context(), filepath.Join(t.TempDir(), "s"), SnapshotOptions{})
	if err == nil || !strings.Contains(err.Error(), "(sh) was started from outside") {
		t.Errorf("error %v, want the command that runs", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
