package builtins

import (
	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var deviceWord = &interp.Word{
	Name: "device",
	Doc:  "Gives a machine a device node of its parent's. It can then open no devices but those it is given and the ones that every /dev has: null, zero, full, random, urandom, tty, and terminals of its own. From security level 1 on that is so with none given.",
	Params: []interp.Param{
		{Name: "path", Type: "string", Required: true, Pos: true, Doc: `the node, as "/dev/kvm"; where the machine has a root of its own it appears there under the same name`},
		{Name: "access", Type: "string", Default: `"rw"`, Doc: `"r", "w" or "rw": how it can be opened, whatever the mode of the node`},
	},
	Returns: "a resource of kind device, mode shared",
	Errors:  "a path that is not below /dev, or that is no device node of the parent's; the same one twice",
	Example: `m = machine_rfork(resources=[root("/"), device("/dev/fuse")])
print(m.run("exec 3<>/dev/fuse && echo open").stdout.strip())
print(m.run("mknod /tmp/kmsg c 1 11 && exec 3</tmp/kmsg", check=False).ok)`,
	Output: "open\nFalse\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var path Text
		access := Text("rw")
		if err := c.Unpack(&path, &access); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.Device{Path: string(path), Access: string(access)})
	},
}
