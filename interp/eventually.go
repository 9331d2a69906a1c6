package interp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.starlark.net/starlark"
)

// eventually calls fn until it returns a true value, for at most timeout. Each call has a thread whose context ends
// with the time, so that what blocks in it is cancelled.
func (in *Interp) eventually(c *Call, fn starlark.Callable, timeout, every time.Duration) (starlark.Value, error) {
	parent := c.Context()
	ctx, cancel := context.WithTimeout(parent, timeout)
	defer cancel()
	last := errors.New("the first call did not end")
	for {
		v, err := in.CallFn(ctx, fn)
		switch {
		case parent.Err() != nil:
			return nil, canceled(parent, err)
		case err == nil && bool(v.Truth()):
			return v, nil
		case err == nil:
			last = fmt.Errorf("got %s, want a true value", quoted(v))
		case ctx.Err() == nil:
			last = err
		}
		if pause(ctx, every) != nil && parent.Err() == nil {
			return nil, expectation(c, fmt.Errorf("not within %s: %w", timeout, last))
		}
	}
}
