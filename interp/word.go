package interp

import (
	"fmt"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Word is one builtin of the language: what it does, what it takes, and an example that runs, in one Go value.
// Help, completion, the reference page and the check of the arguments all come from it.
//
// Name tells where the word is found:
//
//	sleep          a predeclared name
//	expect.eq      a member of the predeclared module expect
//	Machine.run    a method of a type (the part before the dot starts with a capital);
//	               documentation only, for the type's own Attr returns it with Bind
type Word struct {
	Name string
	// Doc says what the word does. Its first sentence is the summary.
	Doc    string
	Params []Param
	// Returns and Errors say what comes back and what goes wrong; both may be empty.
	Returns, Errors string
	// Example is a Starlark script that runs as it stands, and Output what it prints.
	// Tests run it and compare; with an empty Output it need only succeed.
	Example, Output string
	// Needs names what the example cannot run without, such as "root". Empty: nothing.
	Needs string
	// TakesUnknown makes a dry run call Fn even when an argument is, or holds, an Unknown.
	// Without it such a call is not made and gives Unknown.
	TakesUnknown bool
	// Pure words make a value and do nothing else. They are called without waiting for Options.Ready.
	Pure bool
	// Fn does the work. A nil value stands for None.
	Fn func(c *Call) (starlark.Value, error)
}

// Param is one parameter of a Word.
type Param struct {
	Name, Type string
	// Default is the default as it would be written in a script. A parameter whose default is None may be given None.
	Default string
	Doc     string
	// Required: a call without it is an error.
	Required bool
	// Pos: it may be given by position. Such parameters come first.
	Pos bool
	// Rest takes the surplus positional arguments (*args), Kwargs the surplus named ones (**kwargs).
	Rest, Kwargs bool
}

// Value returns the word as a value that scripts can call.
func (w *Word) Value() *Builtin { return &Builtin{word: w} }

// Bind returns the word as a method of recv.
func (w *Word) Bind(recv starlark.Value) *Builtin { return &Builtin{word: w, recv: recv} }

// Summary returns the first sentence of the word's doc, without its full stop.
func (w *Word) Summary() string { return firstSentence(w.Doc) }

func firstSentence(doc string) string {
	first, _, _ := strings.Cut(strings.Join(strings.Fields(doc), " "), ". ")
	return strings.TrimSuffix(first, ".")
}

// IsMethod reports whether the word is a method of a type: Machine.run, but not expect.eq.
func (w *Word) IsMethod() bool {
	owner, _, dotted := strings.Cut(w.Name, ".")
	return dotted && owner != "" && owner[0] >= 'A' && owner[0] <= 'Z'
}

// Signature returns the word as it is declared: parallel(fn, items, *, workers=None).
// What follows a bare * must be given by name.
func (w *Word) Signature() string {
	var parts []string
	named := false // the bare * is out, or not needed
	for _, p := range w.Params {
		switch {
		case p.Rest:
			parts = append(parts, "*"+p.Name)
			named = true
			continue
		case p.Kwargs:
			parts = append(parts, "**"+p.Name)
			continue
		case !p.Pos && !named:
			parts = append(parts, "*")
			named = true
		}
		if p.Required {
			parts = append(parts, p.Name)
		} else {
			parts = append(parts, p.Name+"="+p.Default)
		}
	}
	return w.Name + "(" + strings.Join(parts, ", ") + ")"
}

// Check reports what is missing from the word or contradicts itself. Tests call it on every word.
func (w *Word) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("word %s: %s", w.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case w.Name == "":
		return bad("no name")
	case w.Doc == "":
		return bad("no doc")
	case w.Example == "":
		return bad("no example")
	case w.Fn == nil:
		return bad("no function")
	}
	named, last := false, ""
	for _, p := range w.Params {
		switch {
		case p.Name == "" || p.Doc == "":
			return bad("parameter %q: no name or no doc", p.Name)
		case last == "kwargs":
			return bad("parameter %s: follows the **kwargs parameter", p.Name)
		case p.Rest && p.Kwargs:
			return bad("parameter %s: both Rest and Kwargs", p.Name)
		case p.Rest && last == "rest":
			return bad("parameter %s: a second Rest", p.Name)
		case p.Rest || p.Kwargs:
			named = true
		case p.Type == "":
			return bad("parameter %s: no type", p.Name)
		case p.Required == (p.Default != ""):
			return bad("parameter %s: either it is required or it has a default", p.Name)
		case p.Pos && named:
			return bad("parameter %s: by position, after one that must be named", p.Name)
		case !p.Pos:
			named = true
		}
		switch {
		case p.Kwargs:
			last = "kwargs"
		case p.Rest:
			last = "rest"
		}
	}
	return nil
}

// Builtin is a Word as a Starlark value: a function, or a method once it is bound to a receiver.
type Builtin struct {
	word *Word
	recv starlark.Value // nil for a function
}

var _ starlark.Callable = (*Builtin)(nil)
var _ starlark.Comparable = (*Builtin)(nil)

// Word returns the word that the builtin calls.
func (b *Builtin) Word() *Word { return b.word }

// Receiver returns the value the builtin is a method of, or nil.
func (b *Builtin) Receiver() starlark.Value { return b.recv }

func (b *Builtin) Name() string          { return b.word.Name }
func (b *Builtin) Type() string          { return "builtin_function_or_method" }
func (b *Builtin) Truth() starlark.Bool  { return true }
func (b *Builtin) Hash() (uint32, error) { return starlark.String(b.word.Name).Hash() }
func (b *Builtin) String() string {
	if b.recv != nil {
		return fmt.Sprintf("<built-in method %s>", b.word.Name)
	}
	return fmt.Sprintf("<built-in function %s>", b.word.Name)
}

func (b *Builtin) Freeze() {
	if b.recv != nil {
		b.recv.Freeze()
	}
}

// CallInternal runs the word's function. A thread whose context has ended runs no more words,
// so a script in a loop of builtins stops as soon as one in a loop of its own.
func (b *Builtin) CallInternal(thread *starlark.Thread, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	if err := canceled(Context(thread), nil); err != nil {
		return nil, err
	}
	in := Of(thread)
	if !b.word.Pure {
		in.ready()
	}
	if in.dry() && !b.word.TakesUnknown && unknownAmong(b.recv, args, kwargs) {
		in.madeUnknown.Add(1)
		return Unknown, nil
	}
	v, err := b.word.Fn(&Call{Thread: thread, Word: b.word, Recv: b.recv, Args: args, Kwargs: kwargs})
	if err != nil {
		return nil, err
	}
	if v == nil {
		return starlark.None, nil
	}
	if in.dry() && IsUnknown(v) {
		in.madeUnknown.Add(1)
	}
	return v, nil
}

// CompareSameType makes two bindings of one word to one value equal: m.run == m.run.
func (b *Builtin) CompareSameType(op syntax.Token, y starlark.Value, depth int) (bool, error) {
	o := y.(*Builtin)
	same := b.word == o.word && (b.recv == nil) == (o.recv == nil)
	if same && b.recv != nil {
		var err error
		if same, err = starlark.EqualDepth(b.recv, o.recv, depth-1); err != nil {
			return false, err
		}
	}
	switch op {
	case syntax.EQL:
		return same, nil
	case syntax.NEQ:
		return !same, nil
	}
	return false, fmt.Errorf("compare %s: functions have no order", b.word.Name)
}
