package interp

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

var gotParam = Param{Name: "got", Type: "any", Required: true, Pos: true, Doc: "what the script has"}

func expectEq() *Word {
	return &Word{
		Name:   "expect.eq",
		Doc:    "Fails unless two values are equal. Long texts are compared line by line.",
		Params: []Param{gotParam, {Name: "want", Type: "any", Required: true, Pos: true, Doc: "what it should be"}},
		Errors: "A difference, with both values.",
		Example: `expect.eq(1 + 1, 2)
print(catch(lambda: expect.eq([1, 2], [1, 3])).error)`,
		Output: "expect.eq: got [1, 2], want [1, 3]\n",
		Fn: func(c *Call) (starlark.Value, error) {
			var got, want starlark.Value
			if err := c.Unpack(&got, &want); err != nil {
				return nil, err
			}
			equal, err := starlark.Equal(got, want)
			if err == nil && !equal {
				err = errors.New(mismatch(got, want))
			}
			return nil, expectation(c, err)
		},
	}
}

func expectNe() *Word {
	return &Word{
		Name:    "expect.ne",
		Doc:     "Fails if two values are equal.",
		Params:  []Param{gotParam, {Name: "other", Type: "any", Required: true, Pos: true, Doc: "what it should not be"}},
		Errors:  "Equality, with the value.",
		Example: `expect.ne("m1", "m2")`,
		Fn: func(c *Call) (starlark.Value, error) {
			var got, other starlark.Value
			if err := c.Unpack(&got, &other); err != nil {
				return nil, err
			}
			equal, err := starlark.Equal(got, other)
			if err == nil && equal {
				err = fmt.Errorf("got %s, want anything else", quoted(got))
			}
			return nil, expectation(c, err)
		},
	}
}

func expectTrue() *Word {
	return &Word{
		Name: "expect.true",
		Doc:  "Fails unless a value is true, as `if` has it.",
		Params: []Param{gotParam,
			{Name: "message", Type: "string", Default: `""`, Pos: true, Doc: "what to say when it is not"}},
		Errors: "A false value, with the message.",
		Example: `expect.true(len("abc") == 3)
print(catch(lambda: expect.true([], "nothing found")).error)`,
		Output: "expect.true: nothing found: got [], want a true value\n",
		Fn: func(c *Call) (starlark.Value, error) {
			var got starlark.Value
			var message string
			if err := c.Unpack(&got, &message); err != nil {
				return nil, err
			}
			if got.Truth() {
				return nil, nil
			}
			err := fmt.Errorf("got %s, want a true value", quoted(got))
			if message != "" {
				err = fmt.Errorf("%s: %w", message, err)
			}
			return nil, expectation(c, err)
		},
	}
}

func expectContains() *Word {
	return &Word{
		Name:   "expect.contains",
		Doc:    "Fails unless `want in got`: a string holds a text, a list an element, a dict a key.",
		Params: []Param{gotParam, {Name: "want", Type: "any", Required: true, Pos: true, Doc: "what should be in it"}},
		Errors: "An absence, with both values.",
		Example: `expect.contains("uid=0(root) gid=0(root)", "uid=0")
expect.contains(["h1", "h2"], "h2")`,
		Fn: func(c *Call) (starlark.Value, error) {
			var got, want starlark.Value
			if err := c.Unpack(&got, &want); err != nil {
				return nil, err
			}
			in, err := starlark.Binary(syntax.IN, want, got)
			if err == nil && !bool(in.Truth()) {
				err = fmt.Errorf("want %s in it, %s", quoted(want), gotten(got))
			}
			return nil, expectation(c, err)
		},
	}
}

func expectMatches() *Word {
	return &Word{
		Name: "expect.matches",
		Doc: "Fails unless a string matches a regular expression. The expression is in the syntax of RE2 and " +
			"may match anywhere: use ^ and $ for all of the string.",
		Params: []Param{{Name: "got", Type: "string", Required: true, Pos: true, Doc: "what the script has"},
			{Name: "pattern", Type: "string", Required: true, Pos: true, Doc: "the regular expression"}},
		Errors:  "No match, with the string and the expression.",
		Example: `expect.matches("eth0: up, 1500 bytes", r"^eth\d+: up")`,
		Fn: func(c *Call) (starlark.Value, error) {
			var got, pattern string
			if err := c.Unpack(&got, &pattern); err != nil {
				return nil, err
			}
			re, err := regexp.Compile(pattern)
			if err == nil && !re.MatchString(got) {
				err = fmt.Errorf("want a match of %s, %s", pattern, gotten(starlark.String(got)))
			}
			return nil, expectation(c, err)
		},
	}
}

func expectFails() *Word {
	return &Word{
		Name: "expect.fails",
		Doc: "Calls a function and fails unless it does. " +
			"In a dry run a function that succeeds is let pass, for it may yet fail when run; then the result is unknown.",
		Params: []Param{
			{Name: "fn", Type: "function", Required: true, Pos: true, Doc: "a function that takes no arguments"},
			{Name: "contains", Type: "string", Default: "None", Pos: true, Doc: "a text that the message must hold"},
		},
		Returns: "The message that the function failed with.",
		Errors:  "A success, with the value returned, or a failure with another message.",
		Example: `print(expect.fails(lambda: 1 // 0, contains="division"))`,
		Output:  "floored division by zero\n",
		Fn: func(c *Call) (starlark.Value, error) {
			var fn starlark.Callable
			var contains string
			if err := c.Unpack(&fn, &contains); err != nil {
				return nil, err
			}
			v, err := starlark.Call(c.Thread, c.Interp().guard(fn), nil, nil)
			switch {
			case err != nil && (c.Context().Err() != nil || DependsOnUnknown(err)):
				return nil, err
			case err == nil && c.Dry():
				return Unknown, nil
			case err == nil:
				return nil, expectation(c, fmt.Errorf("got %s, want a failure", quoted(v)))
			case !strings.Contains(err.Error(), contains):
				return nil, expectation(c, fmt.Errorf("want %q in the failure, %s", contains, gotten(starlark.String(err.Error()))))
			}
			return starlark.String(err.Error()), nil
		},
	}
}

func expectEventually() *Word {
	return &Word{
		Name: "expect.eventually",
		Doc: "Calls a function again and again until it returns a true value. A failure counts as not yet. " +
			"A call that is still under way when the time is up is cancelled. " +
			"In a dry run the function is called once, and the result is unknown.",
		Params: []Param{
			{Name: "fn", Type: "function", Required: true, Pos: true, Doc: "a function that takes no arguments"},
			{Name: "timeout", Type: "duration", Default: `"5s"`, Doc: "for how long to try"},
			{Name: "every", Type: "duration", Default: `"50ms"`, Doc: "how long to wait between two calls"},
		},
		Returns: "What the function returned in the end.",
		Errors:  "The time is up: what the last call returned, or failed with.",
		Example: `tries = []

def third():
    tries.append("x")
    return len(tries) >= 3

expect.eventually(third, every="1ms")
print(len(tries))`,
		Output: "3\n",
		Fn:     eventually,
	}
}

func eventually(c *Call) (starlark.Value, error) {
	var fn starlark.Callable
	timeout, every := Duration(5*time.Second), Duration(50*time.Millisecond)
	if err := c.Unpack(&fn, &timeout, &every); err != nil {
		return nil, err
	}
	in := c.Interp()
	if c.Dry() {
		// Ordinary failures are as open as results, but what the function plans should be seen.
		if _, err := in.CallFn(c.Context(), fn); err != nil && c.Context().Err() != nil {
			return nil, err
		}
		return Unknown, nil
	}
	return in.eventually(c, fn, time.Duration(timeout), time.Duration(every))
}

// expectation puts the word's name before err, which may be nil.
func expectation(c *Call, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", c.Word.Name, err)
}
