package msh_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the packages may allocate before main, all together. It is some tenth more than they do: a table or an
// expression that a package makes when it is linked is paid for by every script. Make it when it is first asked for
// (sync.OnceValue), or find a dependency that does.
const (
	startBytes  = 176 << 10
	startAllocs = 1300
)

// TestStart holds what happens before main. It counts; it takes no time.
func TestStart(t *testing.T) {
	msh := filepath.Join(t.TempDir(), "msh")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", msh, "./cmd/msh")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	run := exec.CommandContext(t.Context(), msh, "version")
	run.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("msh version: %v\n%s", err, out)
	}
	type made struct {
		pkg           string
		bytes, allocs int
	}
	var all []made
	var sum made
	for line := range strings.Lines(string(out)) {
		var m made
		var at, took float64
		if n, _ := fmt.Sscanf(line, "init %s @%f ms, %f ms clock, %d bytes, %d allocs", &m.pkg, &at, &took, &m.bytes, &m.allocs); n == 5 {
			all = append(all, m)
			sum.bytes, sum.allocs = sum.bytes+m.bytes, sum.allocs+m.allocs
		}
	}
	find := func(prefix string) int {
		return slices.IndexFunc(all, func(m made) bool { return within(m.pkg, prefix) })
	}
	prefault, last := find("msh/kernel/prefault"), find("os")
	if prefault < 0 || last < 0 {
		t.Fatalf("no trace of the packages' initialization:\n%s", out)
	}
	if prefault > last {
		t.Errorf("package prefault is initialized after os: it maps pages that were touched already")
	}
	if i := find("google.golang.org/protobuf"); i >= 0 {
		t.Errorf("%s is linked: see kernel/cgroup/protobuf", all[i].pkg)
	}
	if sum.bytes > startBytes || sum.allocs > startAllocs {
		slices.SortFunc(all, func(a, b made) int { return b.bytes - a.bytes })
		t.Errorf("before main %d bytes are allocated in %d pieces, want at most %d in %d; most of it by %v", sum.bytes, sum.allocs, startBytes, startAllocs, all[:min(10, len(all))])
	}
}
