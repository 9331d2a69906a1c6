package interp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.starlark.net/starlark"
)

// stop is a word that cancels the run it is part of, as a signal would.
func stop(cancel func()) *Word {
	return &Word{Name: "stop", Doc: "Cancels the run.", Example: "stop()", Fn: func(c *Call) (starlark.Value, error) {
		cancel()
		return nil, nil
	}}
}

// TestCancel: whatever a script is doing when it is cancelled, it ends, with an error that says so.
// A script that did not end would hang the test.
func TestCancel(t *testing.T) {
	tests := []struct{ name, src string }{
		{"loop", "stop()\nwhile True: pass"},
		{"loop of words", "stop()\nwhile True: getenv('x')"},
		{"sleep", "stop()\nsleep('10h')"},
		{"catch", "def f():\n    stop()\n    sleep('10h')\ncatch(f)\nprint('not reached')\n"},
		{"catch in a loop", "def f():\n    stop()\n    sleep('10h')\nwhile True: catch(f)"},
		{"fails", "def f():\n    stop()\n    sleep('10h')\nexpect.fails(f)\nprint('not reached')"},
		{"eventually", "expect.eventually(lambda: stop(), timeout='10h', every='10h')\nprint('not reached')"},
		{"parallel", "def f(i):\n    if i == 3: stop()\n    sleep('10h')\nparallel(f, range(5))\nprint('not reached')"},
		{"nested parallel", "def f(i):\n    return parallel(lambda j: stop() if j == 2 else sleep('10h'), range(3))\nparallel(f, range(3))\nprint('not reached')"},
		{"pure parallel", "def f(i):\n    if i == 1: stop()\n    while True: pass\nparallel(f, range(3))"},
		{"the last call", "stop()"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			src := "defer(lambda: print('deferred'))\n" + test.src
			out, in, err := runIn(ctx, Options{Words: []*Word{stop(cancel)}}, func(in *Interp) error { return in.RunSource(ctx, "test.star", src) })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want a cancelled context", err)
			}
			if out != "deferred\n" {
				t.Errorf("output: got %q, want that of the deferred function alone", out)
			}
			if text := in.FormatError(err); !strings.Contains(text, "canceled\n") {
				t.Errorf("format: got %s, want canceled", text)
			}
		})
	}
}

func TestCancelCause(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupt")
	_, in, err := runIn(ctx, Options{Words: []*Word{stop(func() { cancel(cause) })}}, func(in *Interp) error {
		return in.RunSource(ctx, "test.star", "stop()\nsleep('1h')")
	})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Errorf("got %v, want both the context's error and its cause", err)
	}
	if got, want := in.FormatError(err), "test.star:2:1: canceled: interrupt\n"; !strings.HasPrefix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestCallFn calls a script's function from Go, as init functions are, and looks for its traceback.
func TestCallFn(t *testing.T) {
	begin := &Word{Name: "begin", Doc: "Calls.", Example: "begin(print)",
		Params: []Param{{Name: "fn", Type: "function", Required: true, Pos: true, Doc: "d"}},
		Fn: func(c *Call) (starlark.Value, error) {
			var fn starlark.Callable
			if err := c.Unpack(&fn); err != nil {
				return nil, err
			}
			v, err := c.Interp().CallFn(c.Context(), fn, starlark.String("m1"))
			if err != nil {
				return nil, WithHint(fmt.Errorf("begin m1: init: %w", err), "look at init")
			}
			return v, nil
		}}
	got := runSource(t, Options{Words: []*Word{begin}}, `def init(m):
    fail("no init for " + m)

begin(init)
`)
	want := `test.star:2:5: begin m1: init: fail: no init for m1
traceback (most recent call last):
  test.star:4:1: in <toplevel>
  test.star:2:5: in init
    2 |     fail("no init for " + m)
      |     ^
hint: look at init
`
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestPrint has parallel threads print; run with -race. Every line comes out whole.
func TestPrint(t *testing.T) {
	out := runSource(t, Options{}, `parallel(lambda i: [print("line", i, "x" * 100) for _ in range(20)], range(20))`)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 400 {
		t.Errorf("got %d lines, want 400", len(lines))
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "line ") || !strings.HasSuffix(line, " "+strings.Repeat("x", 100)) {
			t.Fatalf("got line %q", line)
		}
	}
}

// broken is a writer whose reader is gone.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestPrintFails(t *testing.T) {
	in := New(Options{Stdout: broken{}})
	err := in.RunSource(t.Context(), "test.star", "while True: print('y')")
	if err == nil || !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("got %v, want the writer's error", err)
	}
}

func TestParallel(t *testing.T) {
	tests := []struct{ name, src, want string }{
		{"in order", "print(parallel(lambda i: i * 2, range(50), workers=7))", fmt.Sprintln("[" + doubled(50) + "]")},
		{"nothing", "print(parallel(len, []))", "[]\n"},
		{"captured globals are frozen", "seen = []\nother = []\nf = lambda i: seen.append(i)\nprint(catch(lambda: parallel(f, [1])).ok)\nother.append(1)\nprint(other)", "False\n[1]\n"},
		{"items are frozen", "xs = [[1]]\nprint(parallel(lambda x: len(x), xs))\nprint(catch(lambda: xs[0].append(2)).error)", "[1]\nappend: cannot append to frozen list\n"},
		{"results are not", "r = parallel(lambda i: [i], [1])\nr.append(2)\nr[0].append(3)\nprint(r)", "[[1, 3], 2]\n"},
		{"bound methods are frozen", "xs = []\nprint(catch(lambda: parallel(xs.append, [1])).ok, xs)", "False []\n"},
		{"no workers", "print(catch(lambda: parallel(len, [], workers=0)).error)", "parallel: workers: got 0, want at least 1\n"},
		{"no iterable", "print(catch(lambda: parallel(len, 3)).error)", "parallel: items: got int, want iterable\n"},
		{"the others end", "def f(i):\n    if i: sleep('10h')\n    fail('first')\nprint(catch(lambda: parallel(f, range(4))).error)", "parallel: item 0 (0): fail: first\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := runSource(t, Options{}, test.src); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func doubled(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprint(2*i))
	}
	return strings.Join(list, ", ")
}

func TestDeferOrder(t *testing.T) {
	got := runSource(t, Options{}, `def more():
    print("one")
    defer(lambda: print("deferred meanwhile"))

defer(lambda: print("last"))
defer(more)
`)
	if want := "one\ndeferred meanwhile\nlast\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestArgs(t *testing.T) {
	if got, want := runSource(t, Options{Args: []string{"a", "b c"}}, "print(args)"), "[\"a\", \"b c\"]\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRunFileMissing(t *testing.T) {
	var out bytes.Buffer
	in := New(Options{Stdout: &out})
	err := in.RunFile(t.Context(), "testdata/no/such.star")
	if got, want := in.FormatError(err), "run testdata/no/such.star: no such file or directory\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
