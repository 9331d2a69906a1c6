package msh_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// rooms are the packages of the house and what only some of them may import. A package below a room is in it.
// An exception has its reason.
var arrows = []struct {
	imports string   // a package, and those below it
	allowed []string // the rooms that may
}{
	{"golang.org/x/sys/unix", []string{"msh/kernel"}},
	{"github.com/vishvananda/netlink", []string{"msh/kernel"}},
	{"github.com/vishvananda/netns", []string{"msh/kernel"}},
	{"github.com/containerd/cgroups", []string{"msh/kernel"}},
	{"github.com/opencontainers/runtime-spec", []string{"msh/kernel"}},
	{"os/exec", []string{"msh/kernel", "msh/bench"}}, // a supervisor is an msh; a benchmark starts the peers
	// kernel joins a machine's terminal with the caller's, window changes included.
	{"os/signal", []string{"msh/cmd/msh", "msh/interp", "msh/bench", "msh/kernel"}},
	{"golang.org/x/term", []string{"msh/cmd/msh", "msh/interp", "msh/kernel"}},
	{"syscall", []string{"msh/kernel", "msh/cmd/msh", "msh/bench"}}, // cmd/msh: the names of signals
	{"github.com/chzyer/readline", []string{"msh/interp"}},
	{"github.com/spf13", []string{"msh/cmd/msh"}},
	{"go.starlark.net", []string{"msh/interp", "msh/builtins", "msh/bench"}},
	{"msh/interp", []string{"msh/interp", "msh/builtins", "msh/cmd/msh", "msh/bench"}},
	{"msh/builtins", []string{"msh/builtins", "msh/cmd/msh", "msh/bench"}},
	{"msh/kernel", []string{"msh/kernel", "msh/builtins", "msh/cmd/msh", "msh/bench"}},
	{"github.com/klauspost/compress", []string{"msh/kernel"}}, // of checkpoints
	{"github.com/moby/profiles", []string{"msh/kernel"}},
	{"golang.org/x/net", []string{"msh/kernel"}}, // bpf: filters of system calls
	{"msh/kernel/stage0", []string{"msh/kernel"}},
	{"msh/kernel/ledger", []string{"msh/kernel"}},
	{"msh/cmd", nil},
	{"unsafe", []string{"msh/kernel"}},
}

// TestArrows holds the picture in doc.go: who may import what. Tests are free.
func TestArrows(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			for _, a := range arrows {
				if within(imported, a.imports) && !slices.ContainsFunc(a.allowed, func(room string) bool { return within(p.ImportPath, room) }) {
					t.Errorf("%s imports %s: only %v may", p.ImportPath, imported, a.allowed)
				}
			}
		}
	}
}

// TestRooms tells a package that stands nowhere in the picture.
func TestRooms(t *testing.T) {
	rooms := []string{"msh/cmd/msh", "msh/builtins", "msh/interp", "msh/kernel", "msh/stdlib", "msh/bench"}
	for _, p := range packages(t) {
		if p.ImportPath != "msh" && !slices.ContainsFunc(rooms, func(room string) bool { return within(p.ImportPath, room) }) {
			t.Errorf("package %s is in no room of doc.go", p.ImportPath)
		}
	}
}

func within(pkg, above string) bool { return pkg == above || strings.HasPrefix(pkg, above+"/") }

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if path.Base(p.ImportPath) != "testdata" {
			all = append(all, p)
		}
	}
	if len(all) < 5 {
		t.Fatalf("go list found only %v", all)
	}
	return all
}
