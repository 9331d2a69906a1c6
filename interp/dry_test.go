package interp

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.starlark.net/starlark"
)

func TestIsUnknown(t *testing.T) {
	self := starlark.NewList(nil)
	if err := self.Append(self); err != nil {
		t.Fatal(err)
	}
	dict := starlark.NewDict(1)
	if err := dict.SetKey(starlark.String("k"), starlark.Tuple{starlark.NewList([]starlark.Value{Unknown})}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		v    starlark.Value
		want bool
	}{
		{Unknown, true},
		{starlark.None, false},
		{starlark.NewList([]starlark.Value{starlark.None}), false},
		{starlark.Tuple{starlark.None, Unknown}, true},
		{dict, true},
		{self, false},
	} {
		if got := IsUnknown(test.v); got != test.want {
			t.Errorf("%s: got %v, want %v", test.v, got, test.want)
		}
	}
}

// TestDryTwice: in a run that is not dry the same scripts decide without complaint.
func TestDryTwice(t *testing.T) {
	if got, want := runSource(t, Options{Words: []*Word{probe()}}, "u = probe()\nprint(u == 1, 'yes' if u else 'no', u in [1])"), "True yes True\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestDryDoesNothing has words that would be noticed if a dry run called them.
func TestDryDoesNothing(t *testing.T) {
	for _, takes := range []bool{false, true} {
		calls := 0
		act := &Word{Name: "act", Doc: "Acts.", Example: "act(1)", TakesUnknown: takes,
			Params: []Param{{Name: "x", Type: "any", Required: true, Pos: true, Doc: "d"}},
			Fn:     func(c *Call) (starlark.Value, error) { calls++; return nil, nil }}
		got := runSource(t, Options{Dry: true, Words: []*Word{probe(), act}}, `print(act(struct(a = [probe()])))
sleep("10h")`)
		want, wantCalls := "unknown\n", 0
		if takes {
			want, wantCalls = "None\n", 1
		}
		if got != want || calls != wantCalls {
			t.Errorf("takes unknown %v: got %q after %d calls, want %q after %d", takes, got, calls, want, wantCalls)
		}
	}
}

// FuzzDryRewrite: a program in which nothing is unknown does, prints and fails the same in a dry run.
func FuzzDryRewrite(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		src := newProgram(seed)
		if diff := cmp.Diff(runSource(t, Options{}, src), runSource(t, Options{Dry: true}, src)); diff != "" {
			t.Errorf("(-plain +dry):\n%s\n%s", diff, src)
		}
	})
}

// FuzzSessionRewrite: so does a program that is typed into the REPL, whether dry or not.
func FuzzSessionRewrite(f *testing.F) {
	for seed := range uint64(100) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		src := newProgram(seed)
		want := runSource(t, Options{}, src)
		for _, dry := range []bool{false, true} {
			var out strings.Builder
			in := New(Options{Dry: dry, Stdout: &out})
			if _, err := in.runInput(t.Context(), src, 1); err != nil {
				out.WriteString(strings.ReplaceAll(in.FormatError(err), sessionName, "test.star"))
			}
			if diff := cmp.Diff(stripSource(want), stripSource(out.String())); diff != "" {
				t.Errorf("dry %v: (-file +session):\n%s\n%s", dry, diff, src)
			}
		}
	})
}

// stripSource drops the source lines from an error: the REPL keeps its sources apart.
func stripSource(s string) string {
	var out []string
	for _, line := range strings.Split(s, "\n") {
		if !strings.Contains(line, " | ") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// program writes random programs that terminate. Many fail, which is as good a test as any.
type program struct {
	rand  *rand.Rand
	b     strings.Builder
	depth int
	loops int
}

func newProgram(seed uint64) string {
	p := &program{rand: rand.New(rand.NewPCG(seed, 0))}
	p.b.WriteString("a, b, c = 1, [1, 2, 3], 'x%s'\nd = {'k': 1, 2: 'v'}\n")
	p.b.WriteString("def f(x, y=2, *z, **k):\n    return [x, y, z, k]\n")
	for range 8 {
		p.stmt("")
	}
	p.b.WriteString("print(a, b, c, d)\n")
	return p.b.String()
}

func (p *program) pick(choices ...string) string { return choices[p.rand.IntN(len(choices))] }

func (p *program) line(indent, format string, args ...any) {
	fmt.Fprintf(&p.b, indent+format+"\n", args...)
}

func (p *program) stmt(indent string) {
	kind := p.rand.IntN(12)
	if p.depth > 2 {
		kind %= 6
	}
	p.depth++
	defer func() { p.depth-- }()
	in := indent + "    "
	switch kind {
	case 0, 1:
		p.line(indent, "print(%s)", p.expr())
	case 2:
		p.line(indent, "%s = %s", p.pick("a", "b", "c"), p.expr())
	case 3:
		p.line(indent, "%s %s %s", p.pick("a", "b", "c", "d['k']", "b[0]"), p.pick("+=", "-=", "*=", "%=", "|="), p.expr())
	case 4:
		p.line(indent, "a, (b, c) = %s, (%s, %s)", p.expr(), p.expr(), p.expr())
	case 5:
		p.line(indent, "print(catch(lambda: %s))", p.expr())
	case 6, 7:
		p.line(indent, "if %s:", p.expr())
		p.stmt(in)
		if p.rand.IntN(2) == 0 {
			p.line(indent, "elif %s:", p.expr())
			p.stmt(in)
			p.line(indent, "else:")
			p.stmt(in)
		}
	case 8:
		p.line(indent, "for %s in %s:", p.pick("e", "a", "(e, a)"), p.expr())
		p.stmt(in)
		p.line(in, p.pick("pass", "continue", "break"))
	case 9:
		p.loops++
		p.line(indent, "n%d = [0]", p.loops)
		p.line(indent, "while n%d[0] < 3 and %s:", p.loops, p.expr())
		p.line(in, "n%d[0] += 1", p.loops)
		p.stmt(in)
	case 10:
		p.loops++
		p.line(indent, "def g%d(a, b=%s, c=%s, d=d):", p.loops, p.expr(), p.expr())
		p.stmt(in)
		p.line(in, "return %s", p.expr())
		p.line(indent, "print(g%d(%s, %s))", p.loops, p.expr(), p.pick("b=", "c=", "")+p.expr())
	case 11:
		p.line(indent, "b[%s] = d[%s] = 0", p.expr(), p.expr())
	}
}

func (p *program) expr() string {
	if p.depth > 4 {
		return p.pick("a", "b", "c", "d", "0", "1", "-2", "2.5", "'s'", "''", "None", "True", "()", "[]", "{}", "len")
	}
	p.depth++
	defer func() { p.depth-- }()
	x := p.expr
	switch p.rand.IntN(14) {
	case 0, 1:
		return fmt.Sprintf("(%s %s %s)", x(), p.pick("==", "!=", "<", ">", "<=", ">=", "in", "not in"), x())
	case 2:
		return fmt.Sprintf("(%s %s %s)", x(), p.pick("+", "-", "*", "/", "//", "%", "|", "&"), x())
	case 3:
		return fmt.Sprintf("(%s %s %s)", x(), p.pick("and", "or"), x())
	case 4:
		return "(not " + x() + ")"
	case 5:
		return fmt.Sprintf("(%s if %s else %s)", x(), x(), x())
	case 6:
		return fmt.Sprintf("[%s for e in %s if %s]", p.pick("e", x()), x(), x())
	case 7:
		return fmt.Sprintf("{%s: %s for a in %s}", p.pick("a", x()), x(), x())
	case 8:
		return fmt.Sprintf("%s(%s)", p.pick("len", "str", "sorted", "bool", "type", "list", "any", "all", "repr", "f", "max", "range"), x())
	case 9:
		return fmt.Sprintf("f(%s, y=%s, *%s, **%s)", x(), x(), p.pick("b", "[1]", "()"), p.pick("d", "{}", "{'q': 1}"))
	case 10:
		return fmt.Sprintf("%s[%s]", p.pick("b", "d", "c", "[1, 2]"), x())
	case 11:
		// Starlark places the error of a slice where its last operand is; plain operands have no place of their own.
		return fmt.Sprintf("%s[%s:%s]", p.pick("b", "c", "(1, 2, 3)"), p.pick("1", "a", "-1", ""), p.pick("2", "b", "None"))
	case 12:
		return fmt.Sprintf("%s.%s", p.pick("c", "b", "'%s and {}'"), p.pick("upper()", "format("+x()+")", "index("+x()+")", "join("+x()+")", "append("+x()+")", "nothing"))
	}
	return fmt.Sprintf("(lambda v, w=%s: %s)(%s)", x(), p.pick("v", "w", x()), x())
}
