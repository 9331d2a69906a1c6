package interp

import (
	"context"
	"errors"
	"fmt"

	"go.starlark.net/starlark"
)

func deferWord() *Word {
	return &Word{
		Name: "defer",
		Doc: "Has a function called at the end of the script. The last one deferred is called first, " +
			"and all are called, whether the script succeeded, failed or was interrupted.",
		Params: []Param{
			{Name: "fn", Type: "function", Required: true, Pos: true, Doc: "a function that takes no arguments"},
		},
		Errors: "What the functions raise is reported at the end, all of it, and fails the script.",
		Example: `defer(lambda: print("second"))
defer(lambda: print("first"))
print("script")`,
		Output: "script\nfirst\nsecond\n",
		Fn:     deferFn,
	}
}

func deferFn(c *Call) (starlark.Value, error) {
	var fn starlark.Callable
	if err := c.Unpack(&fn); err != nil {
		return nil, err
	}
	in := c.Interp()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.deferred = append(in.deferred, fn)
	return nil, nil
}

// Close calls the deferred functions, the last first, each on a thread of its own, and joins their errors.
// The script may have been cancelled; ctx is for the functions alone. Those deferred meanwhile are called too.
func (in *Interp) Close(ctx context.Context) error {
	var errs []error
	for {
		fn := in.popDeferred()
		if fn == nil {
			return errors.Join(errs...)
		}
		if _, err := in.CallFn(ctx, fn); err != nil {
			errs = append(errs, fmt.Errorf("deferred %s: %w", fn.Name(), err))
		}
	}
}

func (in *Interp) popDeferred() starlark.Callable {
	in.mu.Lock()
	defer in.mu.Unlock()
	last := len(in.deferred) - 1
	if last < 0 {
		return nil
	}
	fn := in.deferred[last]
	in.deferred = in.deferred[:last]
	return fn
}
