package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Killed at any step of a snapshot, the machines run as before; of hibernating, they do
// or are whole in the file; of waking, they are there or not. All of them, always, with
// the connection between them, and nothing else is left.
func TestCrashSaving(t *testing.T) {
	c := newCrashes(t)
	c.pair()
	c.hibernate()
	c.empty = hostState(t, c.h)
	c.wake()
	for _, role := range []string{"snapshot", "files"} {
		up := hostState(t, c.h)
		for k := 1; ; k++ {
			done := c.run(role, k)
			what := fmt.Sprintf("%s, killed at step %d", role, k)
			c.goOn(what)
			c.same(what, up)
			if done {
				t.Logf("%s: %d steps", role, k-1)
				break
			}
		}
	}
	ended := 0
	for k := 1; ; k++ {
		os.Remove(os.Getenv(makerFile))
		up := hostState(t, c.h)
		done := c.run("hibernate", k)
		what := fmt.Sprintf("hibernate, killed at step %d", k)
		if c.isUp(what) {
			c.goOn(what)
			c.same(what, up)
			continue
		}
		ended++
		c.same(what, c.empty)
		if done {
			t.Logf("hibernate: %d steps, of which %d lie behind the last one that could be taken back", k-1, ended-1)
			break
		}
		c.wake()
		c.goOn(what + " and woken")
	}
	if ended < 3 {
		t.Errorf("ended %d times only", ended)
	}
	for k := 1; ; k++ {
		done := c.run("wake", k)
		what := fmt.Sprintf("wake, killed at step %d", k)
		if !c.isUp(what) {
			c.same(what, c.empty)
			continue
		}
		c.goOn(what)
		if done {
			t.Logf("wake: %d steps", k-1)
			break
		}
		c.hibernate()
	}
}

// Killed at any step of a clone, the first runs on, and the second is there or not.
func TestCrashClone(t *testing.T) {
	c := newCrashes(t)
	copies := 0
	for k := 1; ; k++ {
		done := c.run("clone", k)
		what := fmt.Sprintf("clone, killed at step %d", k)
		ids := machines(t, c.h)
		if len(ids) < 1 || len(ids) > 2 || ids[0] != c.name+"/m" {
			t.Fatalf("%s: machines %v", what, ids)
		}
		for _, id := range ids {
			m, err := c.h.Find(id)
			if err != nil {
				t.Fatal(err)
			}
			want(t, what+": "+id, "running", m.State())
			eventuallyIn(t, m, "/count", "\n") // it may have been killed before it counted
			n := strings.Count(readIn(t, m, "/count"), "\n")
			eventuallyIn(t, m, "/count", fmt.Sprintf("\n%d ", n+3))
			m.Close()
		}
		copies += len(ids) - 1
		c.down(c.h)
		c.nothing(what, c.h)
		if done {
			t.Logf("%d steps", k-1)
			break
		}
	}
	if copies == 0 {
		t.Error("there was never a copy")
	}
}

// Whichever side of a move is killed, and at which step: exactly one machine runs, or
// it stands still until the other host is asked, and then exactly one does.
func TestCrashMigrate(t *testing.T) {
	c := newCrashes(t)
	there, err := NewHost(filepath.Join(t.TempDir(), "there"))
	if err != nil {
		t.Fatal(err)
	}
	there.apart = true
	t.Setenv(makerOther, there.State)
	t.Cleanup(func() { c.down(there) })
	moved, asked := 0, 0
	for k := 1; ; k++ {
		if line := c.move(there, fmt.Sprintf("the giver killed at step %d", k), k, 0, "", &moved, &asked); line == "past the last step" {
			t.Logf("the giver: %d steps, it has moved %d times", k-1, moved)
			break
		}
	}
	for k := 1; ; k++ {
		if line := c.move(there, fmt.Sprintf("the taker killed at step %d", k), 0, k, "", &moved, &asked); line == "past the last step" {
			t.Logf("the taker: %d steps", k-1)
			break
		}
	}
	for _, at := range []string{"giver:O+", "giver:E+", "giver:G-", "giver:G+", "giver:T-", "giver:T+", "taker:W+", "taker:R-", "taker:R+", "taker:A-", "taker:A+"} {
		c.move(there, "killed at frame "+at, 0, 0, at, &moved, &asked)
	}
	t.Logf("moved %d times, asked %d times", moved, asked)
	if moved < 3 || asked < 2 { // the two cuts at G are sure to be in doubt
		t.Error("that is too few")
	}
}
