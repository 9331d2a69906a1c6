package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// failures has try fail at each step of all that it does, and looks after each whether
// the host is as it was, and calls after. It returns how many there were.
func failures(t *testing.T, h *Host, try func() error, after func(what string)) (n int) {
	t.Helper()
	for k := 1; ; k++ {
		before := hostState(t, h)
		h.Fault = Fault{Parent: k, Whole: new(atomic.Int64)}
		err := try()
		h.Fault = Fault{}
		if err == nil {
			return k - 1
		}
		what := fmt.Sprintf("step %d (%v)", k, err)
		if !errors.Is(err, errFault) && !strings.Contains(err.Error(), errFault.Error()) { // the other host tells it in words
			explainCriu(t, err)
			t.Fatal(what)
		}
		if left := settled(t, h, before); left != "" {
			t.Fatalf("%s: left behind (-before +after):\n%s", what, left)
		}
		after(what)
		if t.Failed() {
			t.FailNow()
		}
	}
}

// With a fault at each step of a snapshot, of one machine and of two, the machines run
// as before, with their connection, and there is no file.
func TestFaultsSnapshot(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	l := labOn(t, h, "")
	_, server, client := pair(t, l)
	file := filepath.Join(t.TempDir(), "f")
	goesOn := func(what string) {
		t.Helper()
		got(t, client, got(t, client, 0)+20)
		want(t, what, "running running", server.State()+" "+client.State())
		if n, err := server.still(); n != nil || err != nil {
			t.Errorf("%s: %+v, %v", what, n, err)
		}
		if _, err := os.Lstat(file); err == nil {
			t.Errorf("%s: there is a file", what)
		}
	}
	for name, o := range map[string]SnapshotOptions{"snapshot": {}, "files": {FilesOnly: true}, "hibernate": {Hibernate: true}} {
		machines := []*Machine{server}
		if o.Hibernate {
			machines = []*Machine{server, client}
		}
		n := failures(t, h, func() error {
			_, err := SnapshotFile(t.Context(), file, machines, o)
			return err
		}, goesOn)
		t.Logf("%s: %d steps", name, n)
		if n < 6 {
			t.Errorf("%s: only %d steps", name, n)
		}
		if o.Hibernate {
			all, err := l.WakeFile(t.Context(), file, WakeOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range all {
				if m.Name() == "server" {
					server = m
				} else {
					client = m
				}
			}
		}
		os.Remove(file)
		goesOn(name)
	}
}

// Of a clone: the first runs on, and there is no second.
func TestFaultsClone(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	l := labOn(t, h, "")
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Pids{Max: 100})
	started(t, m, counting)
	goesOn := func(what string) {
		t.Helper()
		n := strings.Count(readIn(t, m, "/count"), "\n")
		eventuallyIn(t, m, "/count", fmt.Sprintf("\n%d ", n+3))
	}
	eventuallyIn(t, m, "/count", "\n3 ")
	n := failures(t, h, func() error {
		_, err := m.Clone(t.Context(), WakeOptions{})
		return err
	}, goesOn)
	t.Logf("%d steps", n)
	if n < 15 {
		t.Errorf("only %d steps", n)
	}
	want(t, "machines", 2, len(l.Machines()))
}

// Of a move: on either side, with the root that is sent along. The machine runs on
// here, and there nothing is left.
func TestFaultsMigrate(t *testing.T) {
	needCriu(t)
	for _, side := range []string{"giver", "taker"} {
		t.Run(side, func(t *testing.T) {
			h := newHost(t)
			l := labOn(t, h, "")
			o := newOther(t, l)
			m := fork(t, l, &Root{Source: smallRoot(t), Write: "overlay"}, space("pidspace"), space("netspace"))
			started(t, m, counting)
			eventuallyIn(t, m, "/count", "\n3 ")
			goesOn := func(what string) {
				t.Helper()
				n := strings.Count(readIn(t, m, "/count"), "\n")
				eventuallyIn(t, m, "/count", fmt.Sprintf("\n%d ", n+3))
				if gone := o.machines(); len(gone) > 0 {
					t.Errorf("%s: there: %v", what, gone)
				}
				if labs, _ := o.Labs(); len(labs) != 1 { // the one that is taken
					t.Errorf("%s: there: labs %v", what, labs)
				}
				for _, dir := range []string{o.moves().Dir, o.layersDir()} {
					if left, _ := os.ReadDir(dir); len(left) > 0 {
						t.Errorf("%s: there: %v", what, left)
					}
				}
			}
			n := failures(t, h, func() error {
				if side == "taker" {
					o.Fault, h.Fault = h.Fault, Fault{}
				}
				_, err := m.Migrate(t.Context(), &Remote{Host: "other"}, MigrateOptions{dial: o.dial, Patience: long})
				o.served.Wait()
				o.Fault = Fault{}
				return err
			}, goesOn)
			t.Logf("%d steps", n)
			if n < 10 {
				t.Errorf("only %d steps", n)
			}
			if gone := o.machines(); len(gone) != 1 || m.State() != "dead" {
				t.Errorf("at last: here %s, there %v", m.State(), gone)
			}
		})
	}
}
