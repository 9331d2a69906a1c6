package interp

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"go.starlark.net/starlark"
)

func parallelWord() *Word {
	return &Word{
		Name: "parallel",
		Doc: "Calls a function on every item, all at the same time. " +
			"The first failure cancels the other calls and is raised here. " +
			"The function, the items, and the global variables that functions of the script use are frozen for good: " +
			"calls hand back results and share nothing they could change. " +
			"In a dry run the calls are made one after the other.",
		Params: []Param{
			{Name: "fn", Type: "function", Required: true, Pos: true, Doc: "a function that takes an item"},
			{Name: "items", Type: "iterable", Required: true, Pos: true, Doc: "what to call it on"},
			{Name: "workers", Type: "int", Default: "None", Doc: "how many calls may be under way at once; None: all"},
		},
		Returns: "The results as a list, in the order of the items.",
		Errors:  "The first failure, with the function's traceback and the item it failed on.",
		Example: `def square(n):
    return n * n

print(parallel(square, range(5), workers=2))`,
		Output:       "[0, 1, 4, 9, 16]\n",
		TakesUnknown: true,
		Fn:           parallel,
	}
}

func parallel(c *Call) (starlark.Value, error) {
	var fn starlark.Callable
	var items starlark.Value
	var workers atLeastOne
	if err := c.Unpack(&fn, &items, &workers); err != nil {
		return nil, err
	}
	if isUnknown(items) || isUnknown(fn) {
		return Unknown, nil
	}
	iterable, ok := items.(starlark.Iterable)
	if !ok {
		return nil, fmt.Errorf("parallel: items: got %s, want iterable", items.Type())
	}
	var list []starlark.Value
	for item := range starlark.Elements(iterable) {
		item.Freeze()
		list = append(list, item)
	}
	n := int(workers)
	if n == 0 || n > len(list) {
		n = len(list)
	}
	if c.Dry() {
		n = min(n, 1) // so that the plan has one order
	}
	fn.Freeze()
	c.Interp().freezeCaptured(c.Thread, fn)
	return c.Interp().parallel(c.Context(), fn, list, n)
}

// atLeastOne is an int from 1 up.
type atLeastOne int

func (n *atLeastOne) Unpack(v starlark.Value) error {
	var i int
	if err := starlark.AsInt(v, &i); err != nil {
		return err
	}
	if i < 1 {
		return fmt.Errorf("got %d, want at least 1", i)
	}
	*n = atLeastOne(i)
	return nil
}

// parallel calls fn on each item, workers at a time, and waits for all of them.
func (in *Interp) parallel(parent context.Context, fn starlark.Callable, items []starlark.Value, workers int) (starlark.Value, error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	var (
		results = make([]starlark.Value, len(items))
		next    atomic.Int64
		first   error
		once    sync.Once
		all     sync.WaitGroup
	)
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(items) {
					return
				}
				v, err := in.CallFn(ctx, fn, items[i])
				if err != nil {
					once.Do(func() { first = fmt.Errorf("parallel: item %d (%s): %w", i, quoted(items[i]), err) })
					cancel()
					return
				}
				results[i] = v
			}
		})
	}
	all.Wait()
	if err := canceled(parent, first); err != nil {
		return nil, err
	}
	return starlark.NewList(results), nil
}
