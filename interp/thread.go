package interp

import (
	"context"
	"errors"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Keys of the thread's locals.
const (
	localContext = "msh.context"
	localInterp  = "msh.interp"
	localLoading = "msh.loading" // *loading: the chain of files being loaded
)

// Context returns the thread's context. It ends when the run is cancelled; builtins that block watch it,
// for Starlark itself sees a cancellation only between two steps.
func Context(thread *starlark.Thread) context.Context {
	if ctx, ok := thread.Local(localContext).(context.Context); ok {
		return ctx
	}
	return context.Background()
}

// Of returns the interpreter the thread belongs to, or nil for a thread made by other means.
func Of(thread *starlark.Thread) *Interp {
	in, _ := thread.Local(localInterp).(*Interp)
	return in
}

// NewThread returns a thread of the interpreter: it prints, loads and is cancelled as the script is.
// The end of ctx cancels it; ctx keeps the thread in memory until then.
func (in *Interp) NewThread(ctx context.Context, name string) *starlark.Thread {
	thread, _ := in.newThread(ctx, name)
	return thread
}

// newThread also returns the function that lets go of ctx once the thread has done its work.
func (in *Interp) newThread(ctx context.Context, name string) (*starlark.Thread, func() bool) {
	thread := &starlark.Thread{Name: name, Print: in.print, Load: in.load}
	thread.SetLocal(localContext, ctx)
	thread.SetLocal(localInterp, in)
	stop := context.AfterFunc(ctx, func() { thread.Cancel(context.Cause(ctx).Error()) })
	return thread, stop
}

// CallFn calls a Starlark function on a thread of its own: for Go code that is handed a function, as `init` is,
// and for what must be cancelled apart from its caller. The error keeps the function's own traceback,
// which Format prints after the caller's; wrap it with %w to say which call it was.
func (in *Interp) CallFn(ctx context.Context, fn starlark.Value, args ...starlark.Value) (starlark.Value, error) {
	name := fn.String()
	if c, ok := fn.(starlark.Callable); ok {
		name = c.Name()
	}
	thread, stop := in.newThread(ctx, name)
	defer stop()
	v, err := starlark.Call(thread, in.guard(fn), args, nil)
	if err != nil {
		return nil, &threadError{canceled(ctx, err)}
	}
	return v, nil
}

// threadError hides the type of an error from another thread: starlark.Call passes an *EvalError on as it is,
// and the calling thread's frames would be lost.
type threadError struct{ err error }

func (e *threadError) Error() string { return e.err.Error() }
func (e *threadError) Unwrap() error { return e.err }

// canceled returns err, made to say that ctx has ended where it has. A nil err with a live ctx stays nil.
func canceled(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if already := (*canceledError)(nil); errors.As(err, &already) && already.ended == ctx.Err() {
		return err
	}
	return &canceledError{ended: ctx.Err(), cause: context.Cause(ctx), err: err}
}

// canceledError is the end of a run by its context: errors.Is finds context.Canceled, the cause,
// and the error that the script was stopped with.
type canceledError struct {
	ended, cause, err error
}

func (e *canceledError) Error() string {
	switch {
	case errors.Is(e.cause, context.Canceled):
		return "canceled"
	case errors.Is(e.cause, context.DeadlineExceeded):
		return "timed out"
	}
	return "canceled: " + e.cause.Error()
}

func (e *canceledError) Unwrap() []error {
	errs := []error{e.ended, e.cause}
	if e.err != nil {
		errs = append(errs, e.err)
	}
	return errs
}

// inScript reports whether the position is in a script, and not that of a builtin's frame.
func inScript(pos syntax.Position) bool { return pos.IsValid() && pos.Line > 0 }
