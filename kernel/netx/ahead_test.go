package netx

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Several are made at once, each a namespace of its own and set up; no thread of the
// process stays in one, so that it ends with who took it.
func TestMakeAhead(t *testing.T) {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // by new makers, then by those that wait
		var all []<-chan Made
		for range 2 * mostIdle {
			all = append(all, MakeAhead(func() error { return TakeUp("lo") }))
		}
		seen := map[uint64]bool{}
		for _, c := range all {
			made := <-c
			if made.Err != nil {
				t.Fatal(made.Err)
			}
			defer made.NS.Close()
			id, err := made.NS.ID()
			if err != nil {
				t.Fatal(err)
			}
			if seen[id] {
				t.Error("two are the same")
			}
			seen[id] = true
			links, err := made.NS.Links()
			if err != nil {
				t.Fatal(err)
			}
			if len(links) != 1 || !links[0].Up {
				t.Errorf("%v, want lo, up", links)
			}
		}
	}
	broken := errors.New("broken")
	if made := <-MakeAhead(func() error { return broken }); made.NS != nil || !errors.Is(made.Err, broken) {
		t.Errorf("a failing setup: %v, %v", made.NS, made.Err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if len(strayed(t, home)) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("threads in other namespaces: %v", strayed(t, home))
		}
	}
	if n := idleMakers.Load(); n > mostIdle {
		t.Errorf("%d makers wait, want at most %d", n, mostIdle)
	}
}

// strayed are the threads of this process that do not stand in that namespace.
func strayed(t *testing.T, home string) (threads []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if at, err := os.Readlink(path); err == nil && at != home {
			threads = append(threads, path)
		}
	}
	return threads
}
