package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
