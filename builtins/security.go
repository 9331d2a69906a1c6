package builtins

import (
	"fmt"

	"go.starlark.net/lib/json"
	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var securityWord = &interp.Word{
	Name: "security",
	Doc: `Confines all that runs in a machine: its init and whatever comes in by run, spawn, shell, exec or a file operation. Each level is confined as the one below it, and more:

    0  what the parent may
    1  no devices but those of every /dev, no kernel modules, raw I/O or clock, no new privileges
    2  capabilities, system calls, /proc and /sys as container engines leave them
    3  pure computing: no new spaces, no mounts, no tracing; only its own files, sockets and processes

A machine in a machine is confined no less than that, whatever it names. docs/security.md has the levels in full.`,
	Params: []interp.Param{
		{Name: "level", Type: "int", Default: "0", Pos: true, Doc: "0 to 3"},
		{Name: "caps", Type: "list of strings", Default: "None", Doc: `capabilities(7) to keep instead of the level's: names, as "net_raw"; or changes to them, as "+net_admin" and "-net_raw". What level 1 takes stays taken`},
		{Name: "seccomp", Type: "string or dict", Default: "None", Doc: "a seccomp profile beside the level's: a file of the host's with the JSON that container engines and the OCI runtime specification have, or its content as a dict"},
		{Name: "landlock", Type: "dict", Default: "None", Doc: `the files of the machine that can be used at all: paths, and of "rwx" what is allowed beneath each, as {"/": "rx", "/srv": "rw"}`},
		{Name: "no_new_privs", Type: "bool", Default: "None", Doc: "whether set-user-ID programs and file capabilities give nothing: always from level 1 on, and with seccomp or landlock"},
	},
	Returns: "a resource of kind security, mode shared",
	Errors:  "a level below the parent's; a capability that the parent has not, or that the level takes; a profile that is none, or under which no program could start; what this kernel lacks",
	Example: `m = machine_rfork(resources=[root("/"), pidspace(), security(level=2)])
print(m.run("mount -t tmpfs none /mnt 2>/dev/null || echo no mount").stdout.strip())
print(m.run("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status").stdout.split())`,
	Output: "no mount\n[\"NoNewPrivs:\", \"1\", \"Seccomp:\", \"2\"]\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var level Whole
		var caps Texts
		var profile profile
		var paths access
		var nnp yesNo
		if err := c.Unpack(&level, &caps, &profile, &paths, &nnp); err != nil {
			return nil, err
		}
		if level < 0 || level > 3 {
			return nil, fmt.Errorf("security: level: got %d, want 0 to 3", level)
		}
		return newResource(c, &kernel.Security{Level: int(level), Caps: caps, Seccomp: profile.text, Landlock: paths, NoNewPrivs: nnp.set})
	},
}

// profile is a seccomp profile: the path of a file, or a dict.
type profile struct{ text []byte }

// Unpack implements starlark.Unpacker.
func (p *profile) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.String:
		var path Text
		err := path.Unpack(v)
		if err == nil {
			p.text, err = kernel.ReadProfile(string(path))
		}
		return err
	case *starlark.Dict:
		encoded, err := starlark.Call(&starlark.Thread{}, json.Module.Members["encode"], starlark.Tuple{v}, nil)
		if err != nil {
			return fmt.Errorf("got a dict that JSON cannot hold: %w", err)
		}
		p.text = []byte(encoded.(starlark.String))
		return nil
	}
	return fmt.Errorf("got %s, want the path of a file with a seccomp profile, or a dict", v.Type())
}

// access is a dict of paths and what is allowed beneath them.
type access map[string]string

// Unpack implements starlark.Unpacker.
func (a *access) Unpack(v starlark.Value) error {
	d, ok := v.(*starlark.Dict)
	if !ok {
		return fmt.Errorf(`got %s, want a dict of paths, as {"/": "rx", "/srv": "rw"}`, v.Type())
	}
	paths := access{}
	for k, v := range starlark.Entries(d) {
		path, ok1 := starlark.AsString(k)
		letters, ok2 := starlark.AsString(v)
		if !ok1 || !ok2 {
			return fmt.Errorf(`got %s: %s, want a path and some of the letters "rwx"`, kernel.Short(k.String()), kernel.Short(v.String()))
		}
		paths[path] = letters
	}
	*a = paths
	return nil
}

// yesNo is a bool that may be left out.
type yesNo struct{ set *bool }

// Unpack implements starlark.Unpacker.
func (y *yesNo) Unpack(v starlark.Value) error {
	b, ok := v.(starlark.Bool)
	if !ok {
		return fmt.Errorf("got %s, want True or False", v.Type())
	}
	set := bool(b)
	y.set = &set
	return nil
}
