package interp

import (
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// A dry run must notice where a script depends on an Unknown. Starlark itself cannot say so: == between two types
// is False without asking either, and Truth returns no error. So a dry run rewrites the script first:
//
//	if c: …           if ~decide~(c): …              also elif, while, not, and, or, x if c else y, [… if c]
//	for v in x: …     for v in ~iterate~(x): …       also comprehensions, a, b = x, f(*x), f(**x)
//	a == b            ~compare ==~(a, b)             also != < <= > >= in, not in
//	s % x             ~format~(s, x)
//	f(x)              ~callee~(f)(x)
//
// The functions between tildes give what they are given, or raise. They are predeclared under names that
// no script can write. A program in which nothing is unknown does and prints the same as before.
const (
	hiddenDecide  = "~decide~"
	hiddenIterate = "~iterate~"
	hiddenCompare = "~compare ~" // and the operator before the second tilde
	hiddenFormat  = "~format~"
	hiddenCallee  = "~callee~"
)

func rewriteDry(f *syntax.File) {
	wrap := func(name string) func(syntax.Expr) syntax.Expr {
		return func(x syntax.Expr) syntax.Expr { return hiddenCall(name, syntax.Start(x), x) }
	}
	r := &rewriter{cond: wrap(hiddenDecide), iter: wrap(hiddenIterate), expr: dryExpr}
	r.file(f)
}

func dryExpr(x syntax.Expr) syntax.Expr {
	switch x := x.(type) {
	case *syntax.BinaryExpr:
		switch x.Op {
		case syntax.EQL, syntax.NEQ, syntax.LT, syntax.LE, syntax.GT, syntax.GE, syntax.IN, syntax.NOT_IN:
			return hiddenCall(compareName(x.Op), x.OpPos, x.X, x.Y)
		case syntax.PERCENT:
			return hiddenCall(hiddenFormat, x.OpPos, x.X, x.Y)
		}
	case *syntax.CallExpr:
		x.Fn = hiddenCall(hiddenCallee, x.Lparen, x.Fn)
	}
	return x
}

func compareName(op syntax.Token) string {
	return strings.TrimSuffix(hiddenCompare, "~") + op.String() + "~"
}

// dryFunctions returns the functions that rewritten scripts call.
func (in *Interp) dryFunctions() starlark.StringDict {
	fns := make(starlark.StringDict)
	add := func(name string, fn func(args starlark.Tuple) (starlark.Value, error)) {
		fns[name] = starlark.NewBuiltin(name, func(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
			return fn(args)
		})
	}
	known := func(args starlark.Tuple) (starlark.Value, error) {
		if isUnknown(args[0]) {
			return nil, errUnknown
		}
		return args[0], nil
	}
	add(hiddenDecide, known)
	add(hiddenIterate, known)
	add(hiddenFormat, func(args starlark.Tuple) (starlark.Value, error) { return dryFormat(args[0], args[1]) })
	add(hiddenCallee, func(args starlark.Tuple) (starlark.Value, error) { return in.guard(args[0]), nil })
	for _, op := range []syntax.Token{
		syntax.EQL, syntax.NEQ, syntax.LT, syntax.LE, syntax.GT, syntax.GE, syntax.IN, syntax.NOT_IN,
	} {
		add(compareName(op), func(args starlark.Tuple) (starlark.Value, error) { return dryCompare(op, args[0], args[1]) })
	}
	return fns
}

// dryCompare is x op y. Values of two types are unequal whatever is unknown inside them, so x != None can be told.
func dryCompare(op syntax.Token, x, y starlark.Value) (starlark.Value, error) {
	if isUnknown(x) || isUnknown(y) {
		return nil, errUnknown
	}
	switch op {
	case syntax.IN, syntax.NOT_IN:
		// A dict's keys are never unknown, for they are hashed.
		if _, isDict := y.(*starlark.Dict); !isDict && IsUnknown(y) || IsUnknown(x) {
			return nil, errUnknown
		}
		in, err := starlark.Binary(syntax.IN, x, y)
		if err != nil || op == syntax.IN {
			return in, err
		}
		return !in.Truth(), nil
	}
	if x.Type() == y.Type() && (IsUnknown(x) || IsUnknown(y)) {
		return nil, errUnknown
	}
	ok, err := starlark.Compare(op, x, y)
	return starlark.Bool(ok), err
}

// dryFormat is x % y. Text with something unknown in it is unknown, but prints all the same.
func dryFormat(x, y starlark.Value) (starlark.Value, error) {
	if _, isString := x.(starlark.String); !isString || !IsUnknown(y) {
		return starlark.Binary(syntax.PERCENT, x, y)
	}
	v, err := starlark.Binary(syntax.PERCENT, x, y)
	if err != nil { // as of "%d", which wants a number
		return Unknown, nil
	}
	return unknown{string(v.(starlark.String))}, nil
}

// guard returns the function that a dry run calls for fn. Words look after themselves, and so do functions of the script;
// Starlark's own builtins would take an Unknown for what it is not.
func (in *Interp) guard(fn starlark.Value) starlark.Value {
	if b, ok := fn.(*starlark.Builtin); ok && in.dry() {
		return guarded{b}
	}
	return fn
}

// guarded is one of Starlark's own builtins in a dry run.
type guarded struct{ *starlark.Builtin }

func (g guarded) CallInternal(thread *starlark.Thread, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	call := func() (starlark.Value, error) { return g.Builtin.CallInternal(thread, args, kwargs) }
	if !unknownAmong(g.Receiver(), args, kwargs) {
		return call()
	}
	switch g.Receiver().(type) {
	case nil:
		return g.callFunction(args, kwargs, call)
	case starlark.String, starlark.Bytes:
		return g.text(args, call)
	case *starlark.List:
		if name := g.Name(); name == "index" || name == "remove" { // these compare
			return nil, errUnknown
		}
	}
	// A list or a dict holds an Unknown like any value, but cannot be extended by one.
	v, err := call()
	if err != nil && g.shallow(args, kwargs) {
		return nil, errUnknown
	}
	return v, restored(err)
}

func (g guarded) callFunction(args starlark.Tuple, kwargs []starlark.Tuple, call func() (starlark.Value, error)) (starlark.Value, error) {
	switch g.Name() {
	case "print", "struct", "fail":
		return call()
	case "getattr":
		if len(args) > 1 && isUnknown(args[1]) {
			return nil, errUnknown
		}
		return call()
	case "str", "repr":
		return g.text(args, call)
	case "all", "any", "max", "min", "sorted": // these compare or decide about elements
		return nil, errUnknown
	}
	if _, universal := starlark.Universe[g.Name()]; !universal { // json, math, time
		return Unknown, nil
	}
	if g.shallow(args, kwargs) {
		return nil, errUnknown
	}
	v, err := call()
	return v, restored(err)
}

// restored returns errUnknown for an error that has only its text: Starlark's builtins do not wrap what Hash returns.
func restored(err error) error {
	if err != nil && strings.Contains(err.Error(), errUnknown.Error()) {
		return errUnknown
	}
	return err
}

// text calls a function that makes a string of what it is given, and returns it as an Unknown that prints so.
func (g guarded) text(args starlark.Tuple, call func() (starlark.Value, error)) (starlark.Value, error) {
	switch g.Name() {
	case "str", "repr", "format":
		if v, err := call(); err == nil {
			s, _ := starlark.AsString(v)
			return unknown{s}, nil
		}
	case "join":
		if iter, ok := args[0].(starlark.Iterable); ok {
			var parts []string
			for elem := range starlark.Elements(iter) {
				if s, ok := starlark.AsString(elem); ok {
					parts = append(parts, s)
				} else {
					parts = append(parts, elem.String())
				}
			}
			sep, _ := starlark.AsString(g.Receiver())
			return unknown{strings.Join(parts, sep)}, nil
		}
	}
	return Unknown, nil
}

// shallow reports whether an argument itself is unknown, and not only something in it.
func (g guarded) shallow(args starlark.Tuple, kwargs []starlark.Tuple) bool {
	for _, arg := range args {
		if isUnknown(arg) {
			return true
		}
	}
	for _, kv := range kwargs {
		if isUnknown(kv[1]) {
			return true
		}
	}
	return false
}
