package interp

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"go.starlark.net/starlark"
)

var update = flag.Bool("update", false, "rewrite the goldens")

// golden compares got with a file of testdata, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// inputs returns the names of the files that match, with their suffix cut off.
func inputs(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("glob %s: %d files, error %v", pattern, len(paths), err)
	}
	for i, p := range paths {
		paths[i] = strings.TrimSuffix(p, filepath.Ext(p))
	}
	return paths
}

// probe is a word whose result only running can tell.
func probe() *Word {
	return &Word{
		Name:    "probe",
		Doc:     "Returns what only running can tell.",
		Example: "probe()",
		Fn: func(c *Call) (starlark.Value, error) {
			if c.Dry() {
				return Unknown, nil
			}
			return starlark.MakeInt(1), nil
		},
	}
}

// runIn runs one script to its end, deferred functions included. It returns what was printed and the joined errors.
func runIn(ctx context.Context, opts Options, run func(*Interp) error) (string, *Interp, error) {
	var out bytes.Buffer
	opts.Stdout, opts.Stderr = &out, &out
	in := New(opts)
	err := run(in)
	err = errors.Join(err, in.Close(context.WithoutCancel(ctx)))
	return out.String(), in, err
}

// runSource runs src and returns what a user would see.
func runSource(t *testing.T, opts Options, src string) string {
	t.Helper()
	out, in, err := runIn(t.Context(), opts, func(in *Interp) error { return in.RunSource(t.Context(), "test.star", src) })
	return out + in.FormatError(err)
}

func TestGoldens(t *testing.T) {
	tests := []struct {
		dir  string
		opts Options
	}{
		{"errors", Options{Stdlib: fstest.MapFS{"wait.star": {}}}},
		{"dry", Options{Dry: true, Words: []*Word{probe()}}},
	}
	for _, test := range tests {
		t.Run(test.dir, func(t *testing.T) {
			t.Chdir(filepath.Join("testdata", test.dir))
			for _, name := range inputs(t, "*.star") {
				t.Run(name, func(t *testing.T) {
					out, in, err := runIn(t.Context(), test.opts, func(in *Interp) error { return in.RunFile(t.Context(), name+".star") })
					golden(t, name+".golden", out+in.FormatError(err))
				})
			}
		})
	}
}

// TestExamples runs the example of every word.
func TestExamples(t *testing.T) {
	for _, w := range New(Options{}).Words() {
		t.Run(w.Name, func(t *testing.T) {
			if err := w.Check(); err != nil {
				t.Error(err)
			}
			out, in, err := runIn(t.Context(), Options{}, func(in *Interp) error { return in.RunSource(t.Context(), w.Name, w.Example) })
			if err != nil {
				t.Fatal(in.FormatError(err))
			}
			if diff := cmp.Diff(w.Output, out); w.Output != "" && diff != "" {
				t.Errorf("example (-want +got):\n%s", diff)
			}
		})
	}
}

// TestUniverse notices when Starlark gets a builtin that this language has not decided about.
func TestUniverse(t *testing.T) {
	if diff := cmp.Diff(starlark.Universe.Keys(), starlark.StringDict(func() starlark.StringDict {
		d := make(starlark.StringDict)
		for _, name := range strings.Fields(universe) {
			d[name] = starlark.None
		}
		return d
	}()).Keys()); diff != "" {
		t.Errorf("starlark.Universe (-it +ours):\n%s", diff)
	}
}
