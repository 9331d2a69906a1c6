package builtins

import (
	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

// spaces are the namespaces that take no parameters.
var spaces = map[string]struct{ doc, example, output string }{
	"pidspace": {
		"Gives a machine a PID space of its own, with its own /proc: its init is process 1, and it sees no process but its own.",
		`m = machine_rfork(resources=[pidspace()])
print(m.run("echo $PPID").stdout.strip(), m.read_file("/proc/1/comm").strip())`,
		"0 .init\n",
	},
	"ipcspace": {
		"Gives a machine System V IPC and POSIX message queues of its own.",
		`m = machine_rfork(resources=[ipcspace()])
print(m.run(["ls", "-L", "/proc/self/ns/ipc"]).ok)`,
		"True\n",
	},
	"netspace": {
		"Gives a machine an empty network universe of its own: loopback, up, and nothing else.",
		`m = machine_rfork(resources=[netspace(), pidspace()])
print(m.run("tail -n +3 /proc/net/dev | cut -d: -f1").stdout.strip())`,
		"lo\n",
	},
	"mountspace": {
		"Gives a machine a mount table of its own: what it mounts nobody else sees, and what others mount later it does not see.",
		`m = machine_rfork(resources=[mountspace()])
m.run("mount -t tmpfs none /mnt && touch /mnt/here")
print(m.run("ls /mnt").stdout.strip(), host.run("ls /mnt/here", check=False).ok)`,
		"here False\n",
	},
	"cgroupspace": {
		"Hides a machine's place in the tree of control groups: it sees its own as the root.",
		`m = machine_rfork(resources=[cgroupspace()])
print(m.run("grep ^0:: /proc/self/cgroup || echo 0::/").stdout.strip())`,
		"0::/\n",
	},
}

func spaceWord(name string) *interp.Word {
	s := spaces[name]
	return &interp.Word{
		Name: name, Doc: s.doc, Example: s.example, Output: s.output, Needs: "root",
		Returns: "a resource of kind " + name + ", mode new",
		Fn: func(c *interp.Call) (starlark.Value, error) {
			if err := c.Unpack(); err != nil {
				return nil, err
			}
			return newResource(c, &kernel.Space{Name: name})
		},
	}
}
