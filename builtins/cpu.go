package builtins

import (
	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var cpuWord = &interp.Word{
	Name: "cpu",
	Doc: "Limits a machine's processor time, and which CPUs it runs on. " +
		"With exclusive=True no other machine may run on those CPUs and, with cgroup v2, nothing else on the host either.",
	Params: []interp.Param{
		{Name: "quota", Type: "percent", Default: "None", Doc: "a hard ceiling, in percent of ONE CPU: 50 is half of one, 200 two; at least 0.1"},
		{Name: "weight", Type: "int", Default: "None", Doc: "its share under contention, 1 to 10000; everybody else has 100"},
		{Name: "set", Type: "CPUs", Default: "None", Doc: `the CPUs it is confined to: "0-1,3" or [0, 1, 3]`},
		{Name: "exclusive", Type: "bool", Default: "False", Doc: "whether it has the CPUs of set alone"},
	},
	Returns: "a resource of kind cpu; mode exclusive with exclusive=True, else shared",
	Errors:  "a number out of range; a CPU that the parent does not have, or that another machine has exclusively (named)",
	Example: `m = machine_rfork(resources=[cpu(quota=50, weight=200, set="0")])
print(m.run(["nproc"]).stdout.strip(), m.given[0])`,
	Output: "1 cpu(quota=50, weight=200, set=\"0\")\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var quota Percent
		var weight Whole
		var set CPUs
		r := &kernel.CPU{}
		if err := c.Unpack(&quota, &weight, &set, &r.Exclusive); err != nil {
			return nil, err
		}
		// A zero that was given is not a parameter left out.
		if err := atLeast(c, "quota", float64(quota), 0.1); err != nil {
			return nil, err
		}
		if err := atLeast(c, "weight", float64(weight), 1); err != nil {
			return nil, err
		}
		r.Quota, r.Weight, r.Set = float64(quota), int(weight), set
		return newResource(c, r)
	},
}
