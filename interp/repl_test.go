package interp

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.starlark.net/starlark"
)

// transcript is a LineReader that shows what a terminal would: prompts, and the lines typed.
type transcript struct {
	lines  []string
	prompt string
	out    io.Writer
}

func (r *transcript) SetPrompt(p string) { r.prompt = p }
func (r *transcript) Close() error       { return nil }

func (r *transcript) Readline() (string, error) {
	if len(r.lines) == 0 {
		return "", io.EOF
	}
	line := r.lines[0]
	r.lines = r.lines[1:]
	if line == "^C" {
		io.WriteString(r.out, r.prompt+"^C\n")
		return "", ErrInterrupt
	}
	io.WriteString(r.out, r.prompt+line+"\n")
	return line, nil
}

func TestREPLGoldens(t *testing.T) {
	t.Chdir(filepath.Join("testdata", "repl"))
	for _, name := range inputs(t, "*.in") {
		t.Run(name, func(t *testing.T) {
			input, err := os.ReadFile(name + ".in")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".golden", repl(t, Options{}, string(input)))
		})
	}
}

func repl(t *testing.T, opts Options, input string) string {
	t.Helper()
	var out bytes.Buffer
	opts.Stdout, opts.Stderr = &out, &out
	in := New(opts)
	lines := strings.Split(strings.TrimSuffix(input, "\n"), "\n")
	if err := in.REPL(t.Context(), &transcript{lines: lines, out: &out}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestREPLInterrupt(t *testing.T) {
	got := repl(t, Options{}, "def f():\n    x\n^C\nf")
	want := ">>> def f():\n...     x\n... ^C\n>>> f\n" +
		"<stdin>:1:1: undefined: f\n    1 | f\n      | ^\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("transcript (-want +got):\n%s", diff)
	}
}

func TestREPLDry(t *testing.T) {
	got := repl(t, Options{Dry: true, Words: []*Word{probe()}}, "u = probe()\nu\nu == 1\n'still here'")
	for _, want := range []string{"\nunknown\n", "only running can tell", `"still here"`} {
		if !strings.Contains(got, want) {
			t.Errorf("got %s, want %q in it", got, want)
		}
	}
}

// TestREPLSignal has a word interrupt the process while an input runs: that input ends, and the session goes on.
func TestREPLSignal(t *testing.T) {
	interrupt := &Word{Name: "interrupt", Doc: "Interrupts.", Example: "interrupt()", Fn: interruptSelf}
	got := repl(t, Options{Words: []*Word{interrupt}}, "interrupt()\n1 + 1")
	if !strings.Contains(got, "canceled") || !strings.HasSuffix(got, ">>> 1 + 1\n2\n") {
		t.Errorf("got %s, want a cancelled input and one that runs", got)
	}
}

func TestREPLEndsWithContext(t *testing.T) {
	r, w := io.Pipe() // never written to
	defer w.Close()
	in := New(Options{Stdin: r})
	lines, err := in.NewLineReader()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.REPL(ctx, lines); err == nil {
		t.Error("got no error, want that of the context")
	}
}

func TestPlainReader(t *testing.T) {
	var out bytes.Buffer
	in := New(Options{Stdin: strings.NewReader("x = 20\nx + 1\nx + 2"), Stdout: &out, Stderr: &out})
	lines, err := in.NewLineReader()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.REPL(t.Context(), lines); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("21\n22\n", out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

func TestHistoryFile(t *testing.T) {
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	got, err := historyFile()
	if want := filepath.Join(state, "msh", "history"); got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_STATE_HOME", "relative")
	got, err = historyFile()
	if want := filepath.Join(home, ".local", "state", "msh", "history"); got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestComplete(t *testing.T) {
	in := New(Options{})
	if err := in.RunSource(t.Context(), "test.star", "box = struct(inner = struct(deep = 1), other = 2)\ndef fill(box, *, level = 1): pass"); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		line string
		want string
		n    int
	}{
		{"slee", "sleep", 4},
		{"x = paral", "parallel", 5},
		{"box.", "inner other", 0},
		{"box.inner.d", "deep", 1},
		{"print(box.o", "other", 1},
		{"expect.eve", "eventually", 3},
		{"parallel(", "fn= items= workers=", 0},
		{"parallel(fn=len, w", "while workers=", 1},
		{"fill(l", "lambda len level= list load", 1},
		{"parallel(f([], w", "while", 1},
		{`print("slee`, "", 0},
		{"# slee", "", 0},
		{"fill(1).", "", 0}, // a call is not made to find out
		{"1.", "", 0},
		{"nothing.", "", 0},
		{"", "", 0},
	}
	for _, test := range tests {
		words, n := in.Complete(test.line)
		if got := strings.Join(words, " "); got != test.want || got != "" && n != test.n {
			t.Errorf("complete %q: got %q, %d, want %q, %d", test.line, got, n, test.want, test.n)
		}
	}
}

// interruptSelf sends the process the signal of a Ctrl-C and waits for the call's context to end.
func interruptSelf(c *Call) (starlark.Value, error) {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		return nil, err
	}
	if err := self.Signal(os.Interrupt); err != nil {
		return nil, err
	}
	<-c.Context().Done()
	return nil, c.Context().Err()
}
