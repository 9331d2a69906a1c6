package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"msh/kernel/checkpoint"
)

// With a fault at each of msh's steps nothing of a waking machine is left, nor of a
// network that was to be made for it.
func TestWakeFaults(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	l := labOn(t, h, "")
	lan, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", Subnets: prefixes("10.7.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	m := forkCalled(t, l, "m", &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Netif{VNet: "lan"}, &Pids{Max: 100}, &Uidspace{})
	started(t, m, "while sleep 0.01; do echo x >>/count; done")
	eventuallyIn(t, m, "/count", "x")
	file := hibernate(t, m)
	if err := lan.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := hostState(t, h)
	for k := 1; ; k++ {
		h.Fault.Parent = k
		all, err := l.WakeFile(t.Context(), file, WakeOptions{})
		h.Fault.Parent = 0
		if err == nil {
			if k < 8 {
				t.Errorf("woken after %d steps", k)
			}
			eventuallyIn(t, all[0], "/count", "x")
			break
		}
		if !errors.Is(err, errFault) {
			explainCriu(t, err)
			t.Fatalf("step %d: %v", k, err)
		}
		if left := settled(t, h, before); left != "" {
			t.Fatalf("step %d: left behind (-before +after):\n%s", k, left)
		}
	}
}

// When a snapshot cannot be written, committed, or is given up, the machine runs as
// before, and there is no file.
func TestSnapshotFails(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	_, server, client := pair(t, l)
	goesOn := func(what string) {
		t.Helper()
		got(t, client, got(t, client, 0)+50)
		if n, err := server.still(); n != nil || err != nil {
			t.Errorf("%s: %+v, %v", what, n, err)
		}
	}
	stop := errors.New("stop here")
	for _, machines := range [][]*Machine{{server}, {server, client}} {
		w, err := checkpoint.NewWriter(&failing{left: 100_000, err: stop}, checkpoint.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Snapshot(t.Context(), w, machines, SnapshotOptions{Hibernate: true}); !errors.Is(err, stop) {
			t.Errorf("a full disk: %v", err)
		}
		goesOn("a full disk")
		file := filepath.Join(t.TempDir(), "f")
		_, err = SnapshotFile(t.Context(), file, machines, SnapshotOptions{Hibernate: true, Commit: func(context.Context) error { return stop }})
		if !errors.Is(err, stop) {
			t.Errorf("refused at the commit: %v", err)
		}
		goesOn("refused at the commit")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err = SnapshotFile(ctx, file+"2", machines, SnapshotOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		goesOn("cancelled")
		if _, err := os.Lstat(file + "2"); err == nil {
			t.Error("cancelled: there is a file")
		}
	}
}

// A snapshot of the files alone wakes as a new machine with them.
func TestFilesOnly(t *testing.T) {
	for name, upper := range map[string]string{"memory": "", "directory": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			given := []Resource{&Root{Source: "/", Write: "overlay", Upper: upper}, space("pidspace")}
			m := forkCalled(t, l, "m", given...)
			output(t, m, "echo hello >/etc/motd; rm -r /home; mkfifo /pipe")
			file := filepath.Join(t.TempDir(), "f")
			if _, err := m.Snapshot(t.Context(), file, SnapshotOptions{FilesOnly: true}); err != nil {
				t.Fatal(err)
			}
			if m.State() != "running" {
				t.Errorf("it is %s", m.State())
			}
			output(t, m, "echo changed >/etc/motd")
			if _, err := m.Snapshot(t.Context(), filepath.Join(t.TempDir(), "g"), SnapshotOptions{FilesOnly: true, Hibernate: true}); err != nil {
				t.Fatal(err)
			}
			w := wakeUp(t, l, file, WakeOptions{})
			if out := output(t, w, "cat /etc/motd; ls -d /home; test -p /pipe && echo pipe"); !strings.HasPrefix(out, "hello\n") || !strings.Contains(out, "pipe\n") || !strings.Contains(out, "'/home'") {
				t.Errorf("in it: %q", out)
			}
		})
	}
}

// failing takes so many bytes.
type failing struct {
	left int
	err  error
}

func (f *failing) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, f.err
	}
	return len(b), nil
}

// Files that are cut off, changed, from a newer msh or a better processor, or without
// their lower layer, are refused, and nothing is made.
func TestWakeRefused(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	l := labOn(t, h, "")
	base := smallRoot(t)
	m := forkCalled(t, l, "m", &Root{Source: base, Write: "overlay"}, space("pidspace"))
	file := hibernate(t, m)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before := hostState(t, h)
	refused := func(name string, b []byte, want string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := l.WakeFile(t.Context(), path, WakeOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
		if left := settled(t, h, before); left != "" {
			t.Errorf("%s: left behind (-before +after):\n%s", name, left)
		}
	}
	for _, n := range []int{0, 100, 2000, len(whole) / 2, len(whole) - 1} {
		refused("cut off", whole[:n], "")
	}
	for _, at := range []int{600, 3000, len(whole) / 2, len(whole) - 3000} {
		b := bytes.Clone(whole)
		b[at] ^= 4
		refused("changed", b, "")
	}
	rewritten := func(change func(*checkpoint.Manifest)) []byte {
		t.Helper()
		r, err := checkpoint.NewReader(bytes.NewReader(whole))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		w, err := checkpoint.NewWriter(&out, checkpoint.Options{})
		if err != nil {
			t.Fatal(err)
		}
		change(r.Manifest())
		if err := w.Manifest(r.Manifest()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	refused("a better processor", rewritten(func(m *checkpoint.Manifest) { m.Host.CPUFlags = append(m.Host.CPUFlags, "avx9000") }), "lacks what that there")
	refused("another kind", rewritten(func(m *checkpoint.Manifest) { m.Host.Arch = "s390x" }), "saved on s390x")
	refused("no memory", rewritten(func(m *checkpoint.Manifest) {}), "no memory in it")
	refused("no lower layer", rewritten(func(m *checkpoint.Manifest) { m.Machines[0].Needs.Bases[0].Path = "/no/such/root" }), "lower layer /no/such/root is not here")
	refused("a kind nobody knows", rewritten(func(m *checkpoint.Manifest) {
		m.Machines[0].Spec = bytes.Replace(m.Machines[0].Spec, []byte(`"pidspace"`), []byte(`"warpspace"`), 1)
	}), "warpspace")
	refused("a newer msh", bytes.Replace(whole, fmt.Appendf(nil, `"format": %d`, checkpoint.Format), []byte(`"format": 9`), 1), "")
	w := wakeUp(t, l, file, WakeOptions{})
	if diff := cmp.Diff(".init\n", readIn(t, w, "/proc/1/comm")); diff != "" {
		t.Error(diff)
	}
}

// A lower layer whose files are others than those that are mapped is refused.
func TestWakeOtherBase(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	base := smallRoot(t)
	m := forkCalled(t, l, "m", &Root{Source: base, Write: "overlay"}, space("pidspace"))
	r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 &"}}, nil, long)
	if err != nil || r.Code != 0 {
		t.Fatal(r, err)
	}
	file := hibernate(t, m)
	shell, err := filepath.EvalSymlinks(base + "/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(shell, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("x")
	f.Close()
	if _, err := l.WakeFile(t.Context(), file, WakeOptions{}); err == nil || !strings.Contains(err.Error(), "is another one") {
		t.Errorf("error %v", err)
	}
}
