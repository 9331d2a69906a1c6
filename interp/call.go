package interp

import (
	"context"
	"fmt"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Call is one call of a Word, as its Fn sees it.
type Call struct {
	Thread *starlark.Thread
	Word   *Word
	Recv   starlark.Value // what the method is called on; nil for a function
	Args   starlark.Tuple
	Kwargs []starlark.Tuple
}

// Context returns the context of the calling thread. A word that blocks returns when it is done.
func (c *Call) Context() context.Context { return Context(c.Thread) }

// Interp returns the interpreter that the thread belongs to.
func (c *Call) Interp() *Interp { return Of(c.Thread) }

// Dry reports whether this is a dry run: nothing may be done.
func (c *Call) Dry() bool { return c.Interp().dry() }

// Pos returns the script's position of the call: that of the innermost frame written in Starlark.
// It is the zero Position where Go code made the call.
func (c *Call) Pos() syntax.Position {
	for depth := range c.Thread.CallStackDepth() {
		if pos := c.Thread.CallFrame(depth).Pos; inScript(pos) {
			return pos
		}
	}
	return syntax.Position{}
}

// Unpack puts the arguments into dst, one pointer for each parameter of the word, in order.
// Pointers are those of starlark.UnpackArgs, and starlark.Unpacker for domain types;
// a *float64 takes an int as well. A Rest parameter takes a *starlark.Tuple, a Kwargs parameter a *[]starlark.Tuple.
// A parameter that is absent, or is None where None is its default, leaves its variable as it was.
func (c *Call) Unpack(dst ...any) error {
	params := c.Word.Params
	if len(dst) != len(params) {
		return fmt.Errorf("%s: internal error: %d variables for %d parameters", c.Word.Name, len(dst), len(params))
	}
	given := make([]bool, len(params))
	if err := c.unpackPositional(given, dst); err != nil {
		return err
	}
	if err := c.unpackNamed(given, dst); err != nil {
		return err
	}
	var missing []string
	for i, p := range params {
		if p.Required && !given[i] {
			missing = append(missing, p.Name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s: missing %s: it takes %s", c.Word.Name, strings.Join(missing, ", "), c.takes())
	}
	return nil
}

func (c *Call) unpackPositional(given []bool, dst []any) error {
	params := c.Word.Params
	next := 0 // the next parameter that may be given by position
	for i, arg := range c.Args {
		if next < len(params) && params[next].Pos {
			given[next] = true
			if err := c.unpackOne(params[next], arg, dst[next]); err != nil {
				return err
			}
			next++
			continue
		}
		for j, p := range params {
			if p.Rest {
				*dst[j].(*starlark.Tuple) = c.Args[i:]
				return nil
			}
		}
		return c.tooMany(next)
	}
	return nil
}

// tooMany is the error for more positional arguments than the max there are places for.
// Where the word has further parameters, they only need naming.
func (c *Call) tooMany(max int) error {
	msg := fmt.Sprintf("%s: got %d arguments by position, want at most %d", c.Word.Name, len(c.Args), max)
	var byName []string
	for _, p := range c.Word.Params[max:] {
		if !p.Rest && !p.Kwargs {
			byName = append(byName, p.Name+"=")
		}
	}
	if len(byName) > 0 {
		return fmt.Errorf("%s: name the others: %s", msg, strings.Join(byName, ", "))
	}
	return fmt.Errorf("%s", msg)
}

func (c *Call) unpackNamed(given []bool, dst []any) error {
	params := c.Word.Params
	var surplus []starlark.Tuple
	seen := func(name string) bool {
		for _, kv := range surplus {
			if string(kv[0].(starlark.String)) == name {
				return true
			}
		}
		return false
	}
	kwargs := -1
next:
	for _, kv := range c.Kwargs {
		name := string(kv[0].(starlark.String))
		for i, p := range params {
			if p.Kwargs {
				kwargs = i
			}
			if p.Name != name || p.Rest || p.Kwargs {
				continue
			}
			if given[i] {
				return fmt.Errorf("%s: %s: given twice", c.Word.Name, name)
			}
			given[i] = true
			if err := c.unpackOne(p, kv[1], dst[i]); err != nil {
				return err
			}
			continue next
		}
		if kwargs < 0 {
			return c.noParameter(name)
		}
		if seen(name) {
			return fmt.Errorf("%s: %s: given twice", c.Word.Name, name)
		}
		surplus = append(surplus, kv)
	}
	if kwargs >= 0 {
		*dst[kwargs].(*[]starlark.Tuple) = surplus
	}
	return nil
}

func (c *Call) noParameter(name string) error {
	var names []string
	for _, p := range c.Word.Params {
		names = append(names, p.Name)
	}
	return fmt.Errorf("%s: %s: no such parameter%s: it takes %s",
		c.Word.Name, name, didYouMean(name, names), c.takes())
}

// takes lists the parameters, for the errors about names.
func (c *Call) takes() string {
	var names []string
	for _, p := range c.Word.Params {
		switch {
		case p.Rest:
			names = append(names, "*"+p.Name)
		case p.Kwargs:
			names = append(names, "**"+p.Name)
		default:
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

func (c *Call) unpackOne(p Param, arg starlark.Value, dst any) error {
	if arg == starlark.None && p.Default == "None" {
		return nil
	}
	// UnpackArg takes only a float for a float64, but 50 is as good a percentage as 50.0.
	if f, ok := dst.(*float64); ok {
		if i, ok := arg.(starlark.Int); ok {
			*f = float64(i.Float())
			return nil
		}
	}
	if err := starlark.UnpackArg(arg, dst); err != nil {
		return fmt.Errorf("%s: %s: %w", c.Word.Name, p.Name, err)
	}
	return nil
}
