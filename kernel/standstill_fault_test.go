package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// failures has try fail at each step of all that it does, or be interrupted there, and
// looks after each whether the host is as it was, and calls after. It returns how many
// there were.
func failures(t *testing.T, h *Host, how string, try func(context.Context) error, after func(what string)) (n int) {
	t.Helper()
	for k := 1; ; k++ {
		before := hostState(t, h)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		h.Fault = Fault{Parent: k, Whole: new(atomic.Int64)}
		cause := errFault
		if how == interrupted {
			h.Fault.Do, cause = cancel, context.Canceled
		}
		err := try(ctx)
		h.Fault = Fault{}
		if err == nil {
			return k - 1
		}
		what := fmt.Sprintf("%s at step %d (%v)", how, k, err)
		if !errors.Is(err, cause) && !strings.Contains(err.Error(), cause.Error()) { // the other host tells it in words
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

const (
	faulty      = "a fault"
	interrupted = "an interrupt"
)

// With a fault, or an interrupt, at each step of a snapshot, of one machine and of two, the machines run
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
	for _, c := range []struct {
		name, how string
		o         SnapshotOptions
	}{
		{"snapshot", faulty, SnapshotOptions{}}, {"snapshot", interrupted, SnapshotOptions{}},
		{"files", faulty, SnapshotOptions{FilesOnly: true}},
		{"hibernate", faulty, SnapshotOptions{Hibernate: true}}, {"hibernate", interrupted, SnapshotOptions{Hibernate: true}},
	} {
		name, o := c.name+", "+c.how, c.o
		machines := []*Machine{server}
		if o.Hibernate {
			machines = []*Machine{server, client}
		}
		n := failures(t, h, c.how, func(ctx context.Context) error {
			_, err := SnapshotFile(ctx, file, machines, o)
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
	for i, how := range []string{faulty, interrupted} {
		n := failures(t, h, how, func(ctx context.Context) error {
			_, err := m.Clone(ctx, WakeOptions{})
			return err
		}, goesOn)
		t.Logf("%s: %d steps", how, n)
		if n < 15 {
			t.Errorf("only %d steps", n)
		}
		want(t, "machines", 2+i, len(l.Machines()))
	}
}

// Of a move: on either side, with the root that is sent along. The machine runs on
// here, and there nothing is left.
func TestFaultsMigrate(t *testing.T) {
	needCriu(t)
	for side, how := range map[string]string{"giver": faulty, "taker": faulty, "interrupted": interrupted} {
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
			n := failures(t, h, how, func(ctx context.Context) error {
				if side == "taker" {
					o.Fault, h.Fault = h.Fault, Fault{}
				}
				_, err := m.Migrate(ctx, &Remote{Host: "other"}, MigrateOptions{dial: o.dial, Patience: long})
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

// Of waking, interrupted: nothing is there, and the file still is.
func TestWakeInterrupted(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	l := labOn(t, h, "")
	makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.7.0.0/24")
	m := forkCalled(t, l, "m", &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Netif{VNet: "lan"}, &Pids{Max: 100})
	started(t, m, counting)
	eventuallyIn(t, m, "/count", "\n3 ")
	file := hibernate(t, m)
	var all []*Machine
	n := failures(t, h, interrupted, func(ctx context.Context) (err error) {
		all, err = l.WakeFile(ctx, file, WakeOptions{})
		return err
	}, func(what string) { want(t, what+": machines", 0, len(l.Machines())) })
	t.Logf("%d steps", n)
	if n < 8 {
		t.Errorf("only %d steps", n)
	}
	before := strings.Count(readIn(t, all[0], "/count"), "\n")
	eventuallyIn(t, all[0], "/count", fmt.Sprintf("\n%d ", before+3))
}
