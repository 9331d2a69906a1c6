package builtins

import (
	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var memoryWord = &interp.Word{
	Name: "memory",
	Doc: "Limits a machine's physical memory, or reserves some for it alone. " +
		"What is reserved is promised to no other machine; msh refuses to promise more than there is. On cgroup v2 the kernel also keeps it from being reclaimed.",
	Params: []interp.Param{
		{Name: "max", Type: "size", Default: "None", Doc: "the quota: beyond it, processes are killed; at least 256K"},
		{Name: "high", Type: "size", Default: "None", Doc: "above it the machine is throttled and reclaimed from; cgroup v2 only"},
		{Name: "reserve", Type: "size", Default: "None", Doc: "kept for it alone"},
		{Name: "swap", Type: "size", Default: "None", Doc: "how much swap it may use; on cgroup v1 together with max"},
	},
	Returns: "a resource of kind memory; mode exclusive with reserve, else shared",
	Errors:  "a malformed size; high or reserve above max; more reserved than there is",
	Example: `m = machine_rfork(resources=[memory(max="64M")])
r = m.run(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"], check=False)
print("survived" if r.ok else "killed", m.stats().memory_peak <= 64 << 20)`,
	Output: "killed True\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var max, high, reserve, swap *Size
		if err := c.Unpack(sizePtr(&max), sizePtr(&high), sizePtr(&reserve), sizePtr(&swap)); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.Memory{Max: (*int64)(max), High: (*int64)(high), Reserve: (*int64)(reserve), Swap: (*int64)(swap)})
	},
}

// optionalSize unpacks a size that may be absent, told from one that is 0.
type optionalSize struct{ p **Size }

func sizePtr(p **Size) *optionalSize { return &optionalSize{p} }

// Unpack implements starlark.Unpacker.
func (o *optionalSize) Unpack(v starlark.Value) error {
	var s Size
	if err := s.Unpack(v); err != nil {
		return err
	}
	*o.p = &s
	return nil
}
