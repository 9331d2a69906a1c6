package interp

import (
	"os"

	"go.starlark.net/starlark"
)

func getenvWord() *Word {
	return &Word{
		Name: "getenv",
		Doc:  "Returns a variable of msh's own environment. Machines do not inherit it.",
		Params: []Param{
			{Name: "name", Type: "string", Required: true, Pos: true, Doc: "the variable"},
			{Name: "default", Type: "any", Default: "None", Pos: true, Doc: "what to return when it is not set"},
		},
		Returns: "The variable's value as a string, which may be empty, or `default` when it is not set.",
		Example: `print(getenv("MSH_NO_SUCH_VARIABLE", "none"))
print(type(getenv("PATH")))`,
		Output: "none\nstring\n",
		Fn:     getenv,
	}
}

func getenv(c *Call) (starlark.Value, error) {
	var name string
	var fallback starlark.Value = starlark.None
	if err := c.Unpack(&name, &fallback); err != nil {
		return nil, err
	}
	if value, ok := os.LookupEnv(name); ok {
		return starlark.String(value), nil
	}
	return fallback, nil
}
