package builtins

import (
	"fmt"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var pidsWord = &interp.Word{
	Name: "pids",
	Doc:  "Limits how many tasks (processes and threads) a machine may have, its init counted.",
	Params: []interp.Param{
		{Name: "max", Type: "int", Required: true, Pos: true, Doc: "1 to 4194304"},
	},
	Returns: "a resource of kind pids, mode shared",
	Errors:  "a number out of range",
	Example: `m = machine_rfork(resources=[pids(8)])
r = m.run("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; kill $(jobs -p)", check=False)
print("Cannot fork" in r.stderr or "Resource temporarily unavailable" in r.stderr)`,
	Output: "True\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var max Whole
		if err := c.Unpack(&max); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.Pids{Max: int64(max)})
	},
}

var ioWord = &interp.Word{
	Name: "io",
	Doc:  "Limits a machine's use of one block device; give it once for each device.",
	Params: []interp.Param{
		{Name: "device", Type: "string", Required: true, Pos: true, Doc: `a whole disk: "/dev/sda" or "8:0"`},
		{Name: "read_bps", Type: "size", Default: "None", Doc: "bytes read per second"},
		{Name: "write_bps", Type: "size", Default: "None", Doc: "bytes written per second"},
		{Name: "read_iops", Type: "int", Default: "None", Doc: "reads per second"},
		{Name: "write_iops", Type: "int", Default: "None", Doc: "writes per second"},
		{Name: "weight", Type: "int", Default: "None", Doc: "its share of the device, 1 to 10000, where the device's scheduler takes weights (bfq, iocost)"},
	},
	Returns: "a resource of kind io, mode shared",
	Errors:  "a path that is no block device; no limit at all",
	Example: `disk = [r.name for r in resources("io") if r.available][:1]
if disk:
    print(io(disk[0], write_bps="10M", read_iops=1000).mode)
else:
    print("shared")`,
	Output: "shared\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var device Text
		var readBPS, writeBPS Size
		var readIOPS, writeIOPS, weight Whole
		if err := c.Unpack(&device, &readBPS, &writeBPS, &readIOPS, &writeIOPS, &weight); err != nil {
			return nil, err
		}
		for _, f := range []struct {
			name string
			v    float64
		}{{"read_bps", float64(readBPS)}, {"write_bps", float64(writeBPS)}, {"read_iops", float64(readIOPS)}, {"write_iops", float64(writeIOPS)}, {"weight", float64(weight)}} {
			if err := atLeast(c, f.name, f.v, 1); err != nil {
				return nil, err
			}
		}
		return newResource(c, &kernel.IO{Device: string(device), ReadBPS: uint64(readBPS), WriteBPS: uint64(writeBPS),
			ReadIOPS: uint64(readIOPS), WriteIOPS: uint64(writeIOPS), Weight: int(weight)})
	},
}

var childrenWord = &interp.Word{
	Name: "children",
	Doc:  "Lets a machine rfork machines of its own; without it, it may have none.",
	Params: []interp.Param{
		{Name: "max", Type: "int", Required: true, Pos: true, Doc: "how many at a time, 0 to 4096"},
	},
	Returns: "a resource of kind children, mode shared",
	Errors:  "a number out of range",
	Example: `m = machine_rfork(name="outer", resources=[children(1)])
inner = m.rfork(name="inner")
print(inner.parent.name, [c.name for c in m.children])`,
	Output: "outer [\"inner\"]\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var max Whole
		if err := c.Unpack(&max); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.Children{Max: int(max)})
	},
}

// atLeast refuses a number that was given and is too small; one that was left
// out is 0 and passes.
func atLeast(c *interp.Call, name string, v, least float64) error {
	for _, kv := range c.Kwargs {
		if n, _ := starlark.AsString(kv[0]); n == name && kv[1] != starlark.None && v < least {
			return fmt.Errorf("%s: %s: got %s, want at least %g", c.Word.Name, name, kv[1], least)
		}
	}
	return nil
}
