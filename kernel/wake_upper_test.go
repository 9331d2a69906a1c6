package kernel

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Killed at any step of waking a machine with root(upper=DIR), DIR is as it was, or the
// machine is up on what was saved, and what was there before is beside it.
func TestCrashWakeUpper(t *testing.T) {
	c := newCrashes(t)
	dir := t.TempDir()
	l := labOn(t, c.h, c.name)
	m := forkCalled(t, l, "m", &Root{Source: smallRoot(t), Write: "overlay", Upper: dir}, space("pidspace"))
	output(t, m, "echo saved >/word")
	if _, err := SnapshotFile(t.Context(), os.Getenv(makerFile), []*Machine{m}, SnapshotOptions{Hibernate: true}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.empty = hostState(t, c.h)
	// is tells what is in DIR, the words by what they say.
	is := func() string {
		var all []string
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() == "work" {
				continue
			}
			word, _ := os.ReadFile(filepath.Join(dir, e.Name(), "word"))
			all = append(all, e.Name()+": "+strings.TrimSpace(string(word)))
		}
		return strings.Join(all, ", ")
	}
	reset := func() {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(dir, "upper.before")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "upper", "word"), []byte("later\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const asItWas, awake = "upper: later", "upper: saved, upper.before: later"
	// One that is kept stays where the last step is behind it; one that is not goes with
	// its script, here at once, and what it has changed stays.
	for _, role := range []string{"wake", "wakes"} {
		for k := 1; ; k++ {
			reset()
			done := c.run(role, k)
			what := fmt.Sprintf("%s, killed at step %d", role, k)
			up := len(machines(t, c.h)) > 0
			c.down(c.h)
			c.same(what, c.empty)
			expected := asItWas
			if up || done {
				expected = awake
			}
			want(t, what, expected, is())
			if done {
				t.Logf("%s: %d steps", role, k-1)
				break
			}
		}
	}
	// And where it fails by itself.
	for k := 1; ; k++ {
		reset()
		l := labOn(t, c.h, c.name)
		c.h.Fault = Fault{Parent: k}
		_, err := l.WakeFile(t.Context(), os.Getenv(makerFile), WakeOptions{})
		c.h.Fault = Fault{}
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			want(t, "awake", awake, is())
			t.Logf("fails: %d steps", k-1)
			break
		}
		want(t, fmt.Sprintf("failed at step %d: %v", k, err), asItWas, is())
	}
}

// The upper layer is written when criu has made nothing in it, or no more: it binds a
// file system that has others in it to a directory of its own in the machine's /tmp.
func TestSnapshotUpperUntouched(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	for name, make := range map[string]string{
		"bound": "mkdir /outer; mount -t tmpfs outer /outer; mkdir /outer/inner; mount -t tmpfs inner /outer/inner",
		"none":  "true",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := fork(t, l, &Root{Source: smallRoot(t), Write: "overlay", Upper: dir}, space("pidspace"), space("netspace"))
			output(t, m, make+"; echo saved >/tmp/word")
			seen := eventsIn(t, filepath.Join(dir, "upper", "tmp"))
			if _, err := m.Snapshot(t.Context(), filepath.Join(t.TempDir(), "file"), SnapshotOptions{}); err != nil {
				t.Fatal(err)
			}
			all := seen()
			at := slices.Index(all, "open word")
			if at < 0 {
				t.Fatalf("the file was not packed: %q", all)
			}
			made := slices.ContainsFunc(all[:at], func(e string) bool { return strings.HasPrefix(e, "create ") })
			later := slices.ContainsFunc(all[at:], func(e string) bool { return strings.HasPrefix(e, "create ") || strings.HasPrefix(e, "delete ") })
			if made != (name == "bound") || later {
				t.Errorf("in its /tmp: %q", all)
			}
		})
	}
}

// eventsIn tells what was made, deleted and opened in a directory until it is asked.
func eventsIn(t *testing.T, dir string) (seen func() []string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	return func() (all []string) {
		buf := [64 << 10]byte{}
		n, err := unix.Read(fd, buf[:])
		if err != nil {
			t.Fatal(err)
		}
		for b := buf[:n]; len(b) > 0; {
			mask, size := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
			verb := "open "
			switch {
			case mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
				verb = "create "
			case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
				verb = "delete "
			}
			all = append(all, verb+unix.ByteSliceToString(b[unix.SizeofInotifyEvent:][:size]))
			b = b[unix.SizeofInotifyEvent+size:]
		}
		return all
	}
}
