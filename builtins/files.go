package builtins

import (
	"fmt"
	"os"

	"go.starlark.net/starlark"

	"msh/interp"
)

var readFileWord = method(&interp.Word{
	Name: "read_file",
	Doc:  "Reads a file of the machine's. Whatever links are on the way, the path stays inside the machine.",
	Params: []interp.Param{
		{Name: "path", Type: "string", Required: true, Pos: true, Doc: "a path in the machine"},
	},
	Returns: "its content, as a string",
	Errors:  "no such file; one that is no regular file or has more than 1 GiB",
	Example: `m = machine_rfork(resources=[root("/")])
m.run("ln -s /etc/hostname /tmp/link && echo inside >/etc/hostname")
print(m.read_file("/tmp/link"))`,
	Output: "inside\n\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var path Text
	if err := c.Unpack(&path); err != nil {
		return nil, err
	}
	if v.planned() {
		return v.would("read %s", path)
	}
	b, err := v.m.ReadFile(c.Context(), string(path))
	if err != nil {
		return nil, err
	}
	return starlark.String(b), nil
})

var writeFileWord = method(&interp.Word{
	Name: "write_file",
	Doc:  "Writes a file of the machine's, owned by its root. It is put in place whole: who reads it meanwhile sees the old one or the new one.",
	Params: []interp.Param{
		{Name: "path", Type: "string", Required: true, Pos: true, Doc: "a path in the machine; its directory must be there"},
		{Name: "data", Type: "string or bytes", Required: true, Pos: true, Doc: "the content"},
		{Name: "mode", Type: "int", Default: "0o644", Pos: true, Doc: "the permissions, 0 to 0o7777"},
	},
	Errors: "no such directory; a directory or device of that name",
	Example: `m = machine_rfork(resources=[root("/")])
m.write_file("/usr/local/bin/hi", "#!/bin/sh\necho hi\n", mode=0o755)
print(m.run(["hi"]).stdout)`,
	Output: "hi\n\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var path Text
	var data Data
	mode := Whole(0o644)
	if err := c.Unpack(&path, &data, &mode); err != nil {
		return nil, err
	}
	if mode < 0 || mode > 0o7777 {
		return nil, fmt.Errorf("write_file: mode: got %#o, want 0 to 0o7777", int64(mode))
	}
	if v.planned() {
		return v.would("write %d bytes to %s", len(data), path)
	}
	return nil, v.m.WriteFile(c.Context(), string(path), data, fileMode(mode))
})

// fileMode turns permission bits of chmod(2) into Go's.
func fileMode(bits Whole) os.FileMode {
	mode := os.FileMode(bits & 0o777)
	for _, b := range []struct {
		bit  Whole
		mode os.FileMode
	}{{0o4000, os.ModeSetuid}, {0o2000, os.ModeSetgid}, {0o1000, os.ModeSticky}} {
		if bits&b.bit != 0 {
			mode |= b.mode
		}
	}
	return mode
}

var copyParams = []interp.Param{
	{Name: "src", Type: "string", Required: true, Pos: true, Doc: "a file, a link, or a directory with all below it"},
	{Name: "dst", Type: "string", Required: true, Pos: true, Doc: "where to; a directory that is there takes src under its own name"},
}

var copyInWord = method(&interp.Word{
	Name:   "copy_in",
	Doc:    "Copies from the host into the machine, where it belongs to the machine's root. Links are copied as links and never followed.",
	Params: copyParams,
	Errors: "no such path; something that is neither file, link nor directory; a directory into itself",
	Example: `m = machine_rfork(resources=[root("/"), uidspace()])
m.copy_in("/etc/passwd", "/srv/users")
print(m.run(["stat", "-c", "%U", "/srv/users"]).stdout)`,
	Output: "root\n\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var src, dst Text
	if err := c.Unpack(&src, &dst); err != nil {
		return nil, err
	}
	if v.planned() {
		return v.would("copy %s of the host to %s", src, dst)
	}
	return nil, v.m.CopyIn(c.Context(), string(src), string(dst))
})

var copyOutWord = method(&interp.Word{
	Name:   "copy_out",
	Doc:    "Copies from the machine to the host, where it belongs to the caller. Links are copied as links and never followed.",
	Params: copyParams,
	Errors: "no such path; something that is neither file, link nor directory; a directory into itself",
	Example: `m = machine_rfork(resources=[root("/"), mount("tmpfs", "/data", type="tmpfs")])
dir = host.run(["mktemp", "-d"]).stdout.strip()
defer(lambda: host.run(["rm", "-r", dir]))
m.run("echo result >/data/out")
m.copy_out("/data/out", dir)
print(host.read_file(dir + "/out"))`,
	Output: "result\n\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var src, dst Text
	if err := c.Unpack(&src, &dst); err != nil {
		return nil, err
	}
	if v.planned() {
		return v.would("copy %s to %s of the host", src, dst)
	}
	return nil, v.m.CopyOut(c.Context(), string(src), string(dst))
})
