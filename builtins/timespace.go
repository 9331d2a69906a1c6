package builtins

import (
	"time"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var timespaceWord = &interp.Word{
	Name: "timespace",
	Doc:  "Moves a machine's clocks away from its parent's. The wall clock (CLOCK_REALTIME) is not among them: Linux has one for all.",
	Params: []interp.Param{
		{Name: "boottime", Type: "duration", Default: "None", Doc: "added to CLOCK_BOOTTIME, and so to the uptime; may be negative"},
		{Name: "monotonic", Type: "duration", Default: "None", Doc: "added to CLOCK_MONOTONIC; may be negative"},
	},
	Returns: "a resource of kind timespace, mode new",
	Errors:  "an offset that would set a clock below zero",
	Example: `m = machine_rfork(resources=[timespace(boottime="240h")])
print(float(m.run(["cut", "-d.", "-f1", "/proc/uptime"]).stdout.strip()) > 240 * 3600)`,
	Output: "True\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var boottime, monotonic interp.Offset
		if err := c.Unpack(&boottime, &monotonic); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.Timespace{Boottime: time.Duration(boottime), Monotonic: time.Duration(monotonic)})
	},
}
