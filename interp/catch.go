package interp

import (
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
)

func catchWord() *Word {
	return &Word{
		Name: "catch",
		Doc: "Calls a function and returns its failure as a value. An interrupt is not caught. " +
			"In a dry run, where the function does what only running can tell, `ok` and `error` are unknown.",
		Params: []Param{
			{Name: "fn", Type: "function", Required: true, Pos: true, Doc: "a function that takes no arguments"},
		},
		Returns: "struct(ok, value, error): `value` is what the function returned, None if it failed; " +
			"`error` is the message it failed with, None if it did not.",
		Example: `r = catch(lambda: 1 // 0)
print(r.ok, r.value, r.error)
r = catch(lambda: 7)
print(r.ok, r.value, r.error)`,
		Output: "False None floored division by zero\nTrue 7 None\n",
		Fn:     catch,
	}
}

func catch(c *Call) (starlark.Value, error) {
	var fn starlark.Callable
	if err := c.Unpack(&fn); err != nil {
		return nil, err
	}
	in := c.Interp()
	before := in.madeUnknown.Load()
	v, err := starlark.Call(c.Thread, in.guard(fn), nil, nil)
	if err != nil && (c.Context().Err() != nil || DependsOnUnknown(err)) {
		return nil, err
	}
	var ok, message starlark.Value = starlark.True, starlark.None
	switch {
	case err != nil:
		ok, v, message = starlark.False, starlark.None, starlark.String(err.Error())
	case in.dry() && in.madeUnknown.Load() != before:
		ok, message = Unknown, Unknown
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
		"ok": ok, "value": v, "error": message,
	}), nil
}
