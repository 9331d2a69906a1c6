package interp

import (
	"fmt"
	"strings"
	"testing"

	"go.starlark.net/starlark"
)

// takesAll is a word with every sort of parameter; it returns what it got.
func takesAll() *Word {
	return &Word{
		Name: "take", Doc: "Shows its arguments. It does nothing else.", Example: `take("x")`,
		Params: []Param{
			{Name: "name", Type: "string", Required: true, Pos: true, Doc: "d"},
			{Name: "size", Type: "int", Default: "7", Pos: true, Doc: "d"},
			{Name: "rate", Type: "float", Default: "None", Doc: "d"},
			{Name: "wait", Type: "duration", Default: `"1s"`, Doc: "d"},
			{Name: "link", Kwargs: true, Doc: "d"},
		},
		Fn: func(c *Call) (starlark.Value, error) {
			var name string
			size, rate, wait := 7, 0.5, Duration(1e9)
			var link []starlark.Tuple
			if err := c.Unpack(&name, &size, &rate, &wait, &link); err != nil {
				return nil, err
			}
			return starlark.String(fmt.Sprint(name, " ", size, " ", rate, " ", wait, " ", link)), nil
		},
	}
}

func takesRest() *Word {
	return &Word{
		Name: "rest", Doc: "Shows its arguments.", Example: `rest("x")`,
		Params: []Param{
			{Name: "first", Type: "any", Required: true, Pos: true, Doc: "d"},
			{Name: "others", Rest: true, Doc: "d"},
			{Name: "flag", Type: "bool", Default: "False", Doc: "d"},
		},
		Fn: func(c *Call) (starlark.Value, error) {
			var first starlark.Value
			var others starlark.Tuple
			var flag bool
			if err := c.Unpack(&first, &others, &flag); err != nil {
				return nil, err
			}
			return starlark.String(fmt.Sprint(first, " ", others, " ", starlark.Bool(flag))), nil
		},
	}
}

func TestUnpack(t *testing.T) {
	tests := []struct{ call, want string }{
		{`take("a")`, "a 7 0.5 1s []"},
		{`take("a", 3)`, "a 3 0.5 1s []"},
		{`take(size=3, name="a")`, "a 3 0.5 1s []"},
		{`take("a", rate=2)`, "a 7 2 1s []"},
		{`take("a", rate=None)`, "a 7 0.5 1s []"},
		{`take("a", wait="2m")`, "a 7 0.5 2m0s []"},
		{`take("a", wait=3*time.second)`, "a 7 0.5 3s []"},
		{`take("a", delay=1, loss=2)`, `a 7 0.5 1s [("delay", 1) ("loss", 2)]`},
		{`rest(1)`, "1 () False"},
		{`rest(1, 2, 3, flag=True)`, "1 (2, 3) True"},
		{`rest(None)`, "None () False"},

		{`take()`, "take: missing name: it takes name, size, rate, wait, **link"},
		{`take(1)`, "take: name: got int, want string"},
		{`take("a", "b")`, "take: size: got string, want int"},
		{`take("a", None)`, "take: size: got NoneType, want int"},
		{`take("a", 3, 0.5)`, "take: got 3 arguments by position, want at most 2: name the others: rate=, wait="},
		{`take("a", name="b")`, "take: name: given twice"},
		{`take("a", delay=1, **{"delay": 2})`, "take: delay: given twice"},
		{`take("a", link=1)`, `a 7 0.5 1s [("link", 1)]`},
		{`take("a", wait="soon")`, `take: wait: got "soon", want a duration such as "10ms", "1.5s" or "2m"`},
		{`take("a", wait="-1s")`, `take: wait: got "-1s", want a duration that is not negative`},
		{`rest(1, flg=True)`, "rest: flg: no such parameter (did you mean flag?): it takes first, *others, flag"},
		{`rest(1, others=2)`, "rest: others: no such parameter: it takes first, *others, flag"},
	}
	in := New(Options{Words: []*Word{takesAll(), takesRest()}})
	for _, test := range tests {
		if err := in.RunSource(t.Context(), "test.star", "got = catch(lambda: "+test.call+")\nresult = got.value if got.ok else got.error"); err != nil {
			t.Fatal(in.FormatError(err))
		}
		if got, _ := starlark.AsString(in.Globals()["result"]); got != test.want {
			t.Errorf("%s: got %s, want %s", test.call, got, test.want)
		}
	}
}

func TestUnpackCount(t *testing.T) {
	c := &Call{Word: takesRest(), Thread: new(starlark.Thread)}
	if err := c.Unpack(); err == nil || !strings.Contains(err.Error(), "0 variables for 3 parameters") {
		t.Errorf("got %v, want an error about the count", err)
	}
}

func TestSignature(t *testing.T) {
	for _, test := range []struct {
		word *Word
		want string
	}{
		{takesAll(), `take(name, size=7, *, rate=None, wait="1s", **link)`},
		{takesRest(), "rest(first, *others, flag=False)"},
		{sleepWord(), "sleep(d)"},
	} {
		if got := test.word.Signature(); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
	if got, want := takesAll().Summary(), "Shows its arguments"; got != want {
		t.Errorf("summary: got %q, want %q", got, want)
	}
}

func TestCheck(t *testing.T) {
	if err := takesAll().Check(); err != nil {
		t.Error(err)
	}
	param := func(ps ...Param) func(*Word) { return func(w *Word) { w.Params = ps } }
	for name, spoil := range map[string]func(*Word){
		"no name":       func(w *Word) { w.Name = "" },
		"no doc":        func(w *Word) { w.Doc = "" },
		"no example":    func(w *Word) { w.Example = "" },
		"no function":   func(w *Word) { w.Fn = nil },
		"by position":   param(Param{Name: "a", Type: "t", Doc: "d", Required: true}, Param{Name: "b", Type: "t", Doc: "d", Required: true, Pos: true}),
		"no type":       param(Param{Name: "a", Doc: "d", Required: true}),
		"has a default": param(Param{Name: "a", Type: "t", Doc: "d"}),
		"second Rest":   param(Param{Name: "a", Doc: "d", Rest: true}, Param{Name: "b", Doc: "d", Rest: true}),
		"follows":       param(Param{Name: "a", Doc: "d", Kwargs: true}, Param{Name: "b", Type: "t", Doc: "d", Required: true}),
	} {
		w := takesAll()
		spoil(w)
		if err := w.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want an error that says so", name, err)
		}
	}
}

// box is a value with a method.
type box struct{ n int }

func (*box) String() string        { return "box" }
func (*box) Type() string          { return "Box" }
func (*box) Freeze()               {}
func (*box) Truth() starlark.Bool  { return true }
func (*box) Hash() (uint32, error) { return 0, nil }
func (*box) AttrNames() []string   { return []string{"get"} }
func (b *box) Attr(name string) (starlark.Value, error) {
	if name != "get" {
		return nil, nil
	}
	return boxGet.Bind(b), nil
}

var boxGet = &Word{Name: "Box.get", Doc: "Returns what is in it.", Example: "box.get()",
	Fn: func(c *Call) (starlark.Value, error) { return starlark.MakeInt(c.Recv.(*box).n), nil }}

func TestMethod(t *testing.T) {
	got := runSource(t, Options{
		Words:  []*Word{boxGet},
		Values: starlark.StringDict{"a": &box{1}, "b": &box{2}},
	}, `print(a.get(), b.get(), a.get == a.get, a.get == b.get, a.get != sleep, a.get, sleep)
help("Box")
a.gett()`)
	want := `1 2 True False True <built-in method Box.get> <built-in function sleep>
Box.get  Returns what is in it
test.star:3:3: Box has no .gett field or method (did you mean .get?)
`
	if !strings.HasPrefix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestPosition has a word tell where it was called.
func TestPosition(t *testing.T) {
	where := &Word{Name: "where", Doc: "Tells.", Example: "where()", Fn: func(c *Call) (starlark.Value, error) {
		return starlark.String(c.Pos().String()), nil
	}}
	for _, dry := range []bool{false, true} {
		got := runSource(t, Options{Dry: dry, Words: []*Word{where}}, "print(where())\ndef f():\n    return catch(where).value\nprint(f())")
		if want := "test.star:1:7\ntest.star:3:12\n"; got != want {
			t.Errorf("dry %v: got %q, want %q", dry, got, want)
		}
	}
}
