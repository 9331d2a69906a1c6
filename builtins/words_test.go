package builtins

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"msh/interp"
	"msh/kernel"
	"msh/kernel/cgroup"
	"msh/stdlib"
)

// TestWords checks every word's doc and runs its example as root, against the
// output it promises. Afterwards nothing may be left of it.
func TestWords(t *testing.T) {
	for _, w := range newSession(t, nil, false).Words() {
		t.Run(w.Name, func(t *testing.T) {
			if err := w.Check(); err != nil {
				t.Error(err)
			}
			out, err := script(t, w.Example, false)
			if err != nil {
				t.Fatalf("example: %s", err)
			}
			if d := cmp.Diff(w.Output, out); d != "" {
				t.Errorf("output of the example (-want +got):\n%s", d)
			}
		})
	}
}

// TestWordsDry runs every example as `msh -n` would: nothing may be made.
func TestWordsDry(t *testing.T) {
	for _, w := range newSession(t, nil, false).Words() {
		t.Run(w.Name, func(t *testing.T) {
			_, err := script(t, w.Example, true)
			if err != nil && !strings.Contains(err.Error(), "only running can tell") {
				t.Fatal(err)
			}
		})
	}
}

// labName is this process's own, since control groups are the host's.
var labName = fmt.Sprintf("words-%d", os.Getpid())

func newSession(t *testing.T, out *bytes.Buffer, dry bool) *Session {
	t.Helper()
	host, err := kernel.NewHost(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Host: host, Lab: labName, Dry: dry, Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// script runs code in a lab of its own and checks that the lab leaves nothing.
func script(t *testing.T, code string, dry bool) (string, error) {
	t.Helper()
	if os.Getuid() != 0 && !dry {
		t.Skip("machines need root")
	}
	var out bytes.Buffer
	s := newSession(t, &out, dry)
	in := interp.New(interp.Options{Dry: dry, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, Words: s.Words(), Values: s.Values(), Stdlib: stdlib.FS})
	err := in.RunSource(t.Context(), "example.star", code)
	if e := in.Close(context.WithoutCancel(t.Context())); err == nil {
		err = e
	}
	if e := s.Close(context.Background()); e != nil {
		t.Errorf("close: %v", e)
	}
	if host, e := cgroup.Detect(); e != nil {
		t.Error(e)
	} else if dirs := host.Find("msh." + labName + ".*"); len(dirs) > 0 {
		t.Errorf("left behind: %v", dirs)
	}
	if err != nil {
		return out.String(), &formatted{in.FormatError(err)}
	}
	return out.String(), nil
}

type formatted struct{ text string }

func (f *formatted) Error() string { return f.text }
