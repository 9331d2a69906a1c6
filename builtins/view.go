package builtins

import (
	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var viewWord = &interp.Word{
	Name: "view",
	Doc: `Has /proc/cpuinfo, /proc/meminfo and /sys/devices/system/cpu/online tell a machine's own limits: the CPUs of cpu(set=), no more of them than
cpu(quota=) fills, and memory(max=). They are files of msh's: as of the moment the machine was made, and laid out anew by set(), of the machine or of one
around it; what is free in meminfo is not kept up. Where lxcfs runs as the machine is made, meminfo is its, and always true, and /proc/stat, uptime, loadavg
and swaps with it; the CPUs stay msh's, for lxcfs takes no notice of a quota, or not everywhere (--enable-cfs), and numbers them anew: in /proc/stat a machine
has as many CPUs as cpu(set=) names. When lxcfs dies, what was its is an error to read ("Transport endpoint is not connected") for the machine's life: unmount
/var/lib/lxcfs, start lxcfs again, and make the machine anew. nproc(1) asks the scheduler first, and so knows set=, not quota=.`,
	Returns: "a resource of kind view, mode new",
	Errors:  "no pidspace() beside it: there is no /proc of the machine's own; an lxcfs that is mounted and does not answer",
	Example: `m = machine_rfork(resources=[pidspace(), view(), cpu(set=[0]), memory(max="64M")])
print(m.run("grep MemTotal /proc/meminfo; cat /sys/devices/system/cpu/online; nproc; grep -c ^processor /proc/cpuinfo").stdout)`,
	Output: "MemTotal:          65536 kB\n0\n1\n1\n\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		if err := c.Unpack(); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.ProcView{})
	},
}
