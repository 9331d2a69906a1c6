package stdlib_test

import (
	"bytes"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.starlark.net/starlark"

	"msh/interp"
	"msh/stdlib"
)

// run runs a script with the standard library and returns what it printed and, after that, its error.
func run(t *testing.T, dry bool, src string) string {
	t.Helper()
	var out bytes.Buffer
	in := interp.New(interp.Options{
		Dry:    dry,
		Stdout: &out,
		Stdlib: stdlib.FS,
		Words:  []*interp.Word{probe()},
	})
	if err := in.RunSource(t.Context(), "test.star", src); err != nil {
		out.WriteString(err.Error() + "\n")
	}
	return out.String()
}

func TestModules(t *testing.T) {
	const counted = `
calls = []
def flaky():
    calls.append(len(calls) + 1)
    if len(calls) < 3:
        fail("call %d" % len(calls))
    return "done"
`
	tests := []struct {
		name      string
		dry       bool
		src, want string
	}{
		{"retry until it succeeds", false, `load("@msh//wait.star", "retry")` + counted + `
print(retry(flaky, times=5, every="1ms"), calls)`, "done [1, 2, 3]\n"},
		{"retry gives up", false, `load("@msh//wait.star", "retry")` + counted + `
retry(flaky, times=2, every="1ms")`, "fail: call 2\n"},
		{"retry needs a call", false, `load("@msh//wait.star", "retry")
retry(lambda: 1, times=0)`, "fail: retry: times: got 0, want at least 1\n"},
		{"retry in a dry run", true, `load("@msh//wait.star", "retry")
print(retry(probe))`, "unknown\n"},
		{"first that succeeds", false, `load("@msh//wait.star", "first")
print(first([lambda: fail("no"), lambda: "yes", lambda: fail("never called")]))`, "yes\n"},
		{"first of none", false, `load("@msh//wait.star", "first")
first([lambda: fail("a"), lambda: fail("b")])`, "fail: first: none of 2 succeeded: fail: a; fail: b\n"},
		{"first in a dry run", true, `load("@msh//wait.star", "first")
print(first([probe]))`, "unknown\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, run(t, test.dry, test.src)); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDocs holds every module to what doc.go promises: it loads, and its exports have doc strings.
func TestDocs(t *testing.T) {
	files, err := fs.Glob(stdlib.FS, "*.star")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		src, err := fs.ReadFile(stdlib.FS, file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(src), `"""`) {
			t.Errorf("%s: no doc string at its top", file)
		}
		lines := strings.Split(string(src), "\n")
		for i, line := range lines {
			if strings.HasPrefix(line, "def ") && !strings.HasPrefix(line, "def _") && !strings.HasPrefix(lines[i+1], `    """`) {
				t.Errorf("%s:%d: no doc string: %s", filepath.Base(file), i+1, line)
			}
		}
	}
}

// probe is a word whose result only running can tell.
func probe() *interp.Word {
	return &interp.Word{
		Name:    "probe",
		Doc:     "Returns what only running can tell.",
		Example: "probe()",
		Fn: func(c *interp.Call) (starlark.Value, error) {
			if c.Dry() {
				return interp.Unknown, nil
			}
			return starlark.String("told"), nil
		},
	}
}
