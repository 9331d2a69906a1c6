package interp

import (
	"errors"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
)

// Unknown stands, in a dry run, for a value that only running can tell: the output of a program, a PID.
// It prints as `unknown`; attributes, calls, indexes and arithmetic on it give Unknown again.
// A script that compares it, or branches on it, stops: see rewriteDry.
var Unknown starlark.Value = unknown{"unknown"}

// unknown has a text, so that "pid %s" % m.pid prints as "pid unknown" and yet is not taken for a known string.
type unknown struct{ text string }

var (
	_ starlark.HasAttrs    = unknown{}
	_ starlark.HasSetField = unknown{}
	_ starlark.Callable    = unknown{}
	_ starlark.HasBinary   = unknown{}
	_ starlark.HasUnary    = unknown{}
	_ starlark.HasSetKey   = unknown{}
	_ starlark.Sliceable   = unknown{}
	_ starlark.Comparable  = unknown{}
)

// errUnknown is what a script gets that cannot go on without knowing.
var errUnknown error = unknownError{}

type unknownError struct{}

func (unknownError) Error() string {
	return "this depends on a value that only running can tell (unknown)"
}
func (unknownError) Hint() string {
	return "nothing is done in a dry run (msh -n), so its plan ends here; run the script to go on"
}

func (u unknown) String() string      { return u.text }
func (unknown) Type() string          { return "unknown" }
func (unknown) Freeze()               {}
func (unknown) Truth() starlark.Bool  { return true }
func (unknown) Hash() (uint32, error) { return 0, errUnknown }
func (unknown) Name() string          { return "unknown" }

func (unknown) Attr(string) (starlark.Value, error)              { return Unknown, nil }
func (unknown) AttrNames() []string                              { return nil }
func (unknown) SetField(string, starlark.Value) error            { return nil }
func (unknown) Get(starlark.Value) (starlark.Value, bool, error) { return Unknown, true, nil }
func (unknown) Index(int) starlark.Value                         { return Unknown }
func (unknown) Slice(start, end, step int) starlark.Value        { return Unknown }
func (unknown) Len() int                                         { return 0 }

func (unknown) SetKey(k, v starlark.Value) error { return nil }

func (unknown) CallInternal(*starlark.Thread, starlark.Tuple, []starlark.Tuple) (starlark.Value, error) {
	return Unknown, nil
}

func (unknown) CompareSameType(syntax.Token, starlark.Value, int) (bool, error) {
	return false, errUnknown
}

func (u unknown) Binary(op syntax.Token, y starlark.Value, side starlark.Side) (starlark.Value, error) {
	if op == syntax.IN {
		return nil, errUnknown
	}
	if op == syntax.PLUS {
		// A sum of strings keeps the text around what is unknown.
		if s, ok := starlark.AsString(y); ok && side == starlark.Left {
			return unknown{u.text + s}, nil
		} else if ok {
			return unknown{s + u.text}, nil
		}
	}
	return Unknown, nil
}

func (unknown) Unary(syntax.Token) (starlark.Value, error) { return Unknown, nil }

// IsUnknown reports whether v is an Unknown, or a list, tuple, set, dict or struct that holds one at any depth.
func IsUnknown(v starlark.Value) bool { return holdsUnknown(v, nil) }

// holdsUnknown looks no further into values it is already in: a list can hold itself.
func holdsUnknown(v starlark.Value, in []starlark.Value) bool {
	switch v.(type) {
	case unknown:
		return true
	case *starlark.List, *starlark.Dict, *starlark.Set, *starlarkstruct.Struct:
		for _, outer := range in {
			if outer == v {
				return false
			}
		}
		in = append(in, v)
	case starlark.Tuple:
	default:
		return false
	}
	switch v := v.(type) {
	case *starlark.Dict:
		for _, kv := range v.Items() {
			if holdsUnknown(kv[0], in) || holdsUnknown(kv[1], in) {
				return true
			}
		}
	case *starlarkstruct.Struct:
		for _, name := range v.AttrNames() {
			if field, err := v.Attr(name); err == nil && holdsUnknown(field, in) {
				return true
			}
		}
	case starlark.Iterable:
		for elem := range starlark.Elements(v) {
			if holdsUnknown(elem, in) {
				return true
			}
		}
	}
	return false
}

// unknownAmong reports whether a call is given an Unknown, as receiver or argument, at any depth.
func unknownAmong(recv starlark.Value, args starlark.Tuple, kwargs []starlark.Tuple) bool {
	if recv != nil && IsUnknown(recv) || IsUnknown(args) {
		return true
	}
	for _, kv := range kwargs {
		if IsUnknown(kv[1]) {
			return true
		}
	}
	return false
}

func isUnknown(v starlark.Value) bool { _, ok := v.(unknown); return ok }

// DependsOnUnknown reports whether err is that of a script which branched on an Unknown.
func DependsOnUnknown(err error) bool { return errors.Is(err, errUnknown) }
