package interp

import "go.starlark.net/starlark"

func assumeWord() *Word {
	return &Word{
		Name: "assume",
		Doc: "Returns a value, or what a dry run is to take for it. " +
			"A dry run stops where the script decides by what only running can tell; this lets its plan go on, one way or the other.",
		Params: []Param{
			{Name: "value", Type: "any", Required: true, Pos: true, Doc: "the value"},
			{Name: "plan", Type: "any", Required: true, Pos: true, Doc: "what a dry run returns when the value is unknown"},
		},
		Returns: "`value`, or in a dry run `plan` where the value is, or holds, an unknown.",
		Example: `if assume(catch(lambda: len("abc")).ok, True):
    print("went well")`,
		Output:       "went well\n",
		TakesUnknown: true,
		Fn: func(c *Call) (starlark.Value, error) {
			var value, plan starlark.Value
			if err := c.Unpack(&value, &plan); err != nil {
				return nil, err
			}
			if IsUnknown(value) {
				return plan, nil
			}
			return value, nil
		},
	}
}
