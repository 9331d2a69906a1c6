package builtins

import (
	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var rootWord = &interp.Word{
	Name: "root",
	Doc: "Gives a machine another root directory, with a /proc, a read-only /sys and a minimal /dev of its own. " +
		`With write="overlay" what the machine changes is its own and the source stays as it is: gone with the machine, or under the directory upper.`,
	Params: []interp.Param{
		{Name: "source", Type: "string", Required: true, Pos: true, Doc: `a directory of the parent's; "/" is the parent's own root, without what is mounted below it`},
		{Name: "write", Type: "string", Default: `"overlay"`, Doc: `"overlay", "direct" (changes go to the source) or "none" (read-only)`},
		{Name: "size", Type: "size", Default: "None", Doc: "the most that changes in memory may take"},
		{Name: "upper", Type: "string", Default: "None", Doc: "a directory that keeps the changes, in upper/ and work/ below it"},
	},
	Returns: "a resource of kind root; mode new for an overlay, else shared",
	Errors:  "a source that is no directory; size with anything but an overlay in memory; a file system that cannot be a layer",
	Example: `m = machine_rfork(resources=[root("/", size="16M")])
m.write_file("/etc/motd-of-m", "hello\n")
print(m.read_file("/etc/motd-of-m").strip(), host.run("ls /etc/motd-of-m", check=False).ok)`,
	Output: "hello False\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var source, upper Text
		write := "overlay"
		var size Size
		if err := c.Unpack(&source, &write, &size, &upper); err != nil {
			return nil, err
		}
		if err := atLeast(c, "size", float64(size), 65536); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.Root{Source: string(source), Write: write, Size: int64(size), Upper: string(upper)})
	},
}

var mountWord = &interp.Word{
	Name: "mount",
	Doc: "Mounts something in a machine's own mount table. A bind mount shows a file or directory of the parent's; any other type is a file system of the kernel's. " +
		"In an overlay root the target is made where it is missing; elsewhere it must be there.",
	Params: []interp.Param{
		{Name: "source", Type: "string", Required: true, Pos: true, Doc: "what to mount: a path of the parent's, a device, or for a file system like tmpfs any name"},
		{Name: "target", Type: "string", Required: true, Pos: true, Doc: "where, in the machine"},
		{Name: "type", Type: "string", Default: `"bind"`, Doc: `"bind", or a file system: "tmpfs", "ext4", …`},
		{Name: "options", Type: "list", Default: "[]", Doc: `for all: "ro", "nosuid", "nodev", "noexec", "noatime", "nosymfollow"; for bind also "rbind" (with the mounts below) and "idmap" (owners shifted into the machine's uidspace); else those of the file system, as "size=1m"`},
	},
	Returns: "a resource of kind mount; mode shared for a bind mount, else new",
	Errors:  "a source that is not there; an option that a bind mount does not have; two mounts on one target",
	Example: `m = machine_rfork(resources=[root("/"), mount("/etc/passwd", "/data/users", options=["ro"]), mount("tmpfs", "/scratch", type="tmpfs", options=["size=1m"])])
print(m.run("echo x >>/data/users", check=False).ok, m.run("df -k /scratch | tail -1 | tr -s ' ' | cut -d' ' -f2").stdout.strip())`,
	Output: "False 1024\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var source, target Text
		fstype := Text("bind")
		var options Texts
		if err := c.Unpack(&source, &target, &fstype, &options); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.Mount{Source: string(source), Target: string(target), Type: string(fstype), Options: options})
	},
}
