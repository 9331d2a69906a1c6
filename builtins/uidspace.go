package builtins

import (
	"fmt"
	"math"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var uidspaceWord = &interp.Word{
	Name: "uidspace",
	Doc: "Gives a machine a user and group ID space of its own: its root is nobody outside. " +
		"Without base it gets a range that no other machine on the host has. The files of its root and of mounts with the option idmap show their owners shifted; nothing is changed on disk.",
	Params: []interp.Param{
		{Name: "base", Type: "int", Default: "None", Doc: "where the range begins among the parent's ids"},
		{Name: "size", Type: "int", Default: "65536", Doc: "how many ids"},
		{Name: "map", Type: "list", Default: "None", Doc: "instead of both: tuples (inside, outside, size), outside being the parent's ids"},
	},
	Returns: "a resource of kind uidspace; mode exclusive, or new with map",
	Errors:  "a range that another machine has (named), that overlaps, or that the parent does not have",
	Example: `m = machine_rfork(resources=[uidspace(), root("/"), pidspace()])
print(m.run("id -u; stat -c %u /etc/passwd").stdout.split())
print(host.run(["stat", "-c", "%u", "/proc/%d" % m.pid]).stdout.strip() != "0")`,
	Output: "[\"0\", \"0\"]\nTrue\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		base, size := id{none: true}, id{none: true}
		var idmap starlark.Iterable
		if err := c.Unpack(&base, &size, &idmap); err != nil {
			return nil, err
		}
		r := &kernel.Uidspace{}
		if !base.none {
			r.Base = &base.n
		}
		if !size.none {
			if size.n == 0 {
				return nil, fmt.Errorf("uidspace: size: got 0, want at least 1")
			}
			r.Size = size.n
		}
		if idmap != nil {
			r.Map = []kernel.IDMap{}
			for e := range starlark.Elements(idmap) {
				t, ok := e.(starlark.Indexable)
				if !ok || t.Len() != 3 {
					return nil, fmt.Errorf("uidspace: map: got %s, want tuples (inside, outside, size)", e)
				}
				var ids [3]id
				for i := range ids {
					if err := ids[i].Unpack(t.Index(i)); err != nil {
						return nil, fmt.Errorf("uidspace: map: %w", err)
					}
				}
				r.Map = append(r.Map, kernel.IDMap{Inside: ids[0].n, Outside: ids[1].n, Size: ids[2].n})
			}
		}
		return newResource(c, r)
	},
}

// id is a user or group number.
type id struct {
	n    uint32
	none bool
}

// Unpack implements starlark.Unpacker.
func (d *id) Unpack(v starlark.Value) error {
	i, ok := v.(starlark.Int)
	if !ok {
		return fmt.Errorf("got %s, want a number of ids", v.Type())
	}
	n, ok := i.Uint64()
	if !ok || n >= math.MaxUint32 {
		return fmt.Errorf("got %s, want 0 to %d", i, uint32(math.MaxUint32-1))
	}
	d.n, d.none = uint32(n), false
	return nil
}
