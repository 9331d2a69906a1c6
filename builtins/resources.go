package builtins

import (
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
)

// resourcesWord is resources, and the method of the same meaning.
func (s *Session) resourcesWord(name string) *interp.Word {
	w := &interp.Word{
		Name: name,
		Doc: "Lists what can be named in machine_rfork from here: CPUs one by one, memory and how much of it can still be reserved, disks, spaces, interfaces, … " +
			"What cannot be used is listed with the reason and the mend.",
		Params: []interp.Param{
			{Name: "kind", Type: "string", Default: "None", Pos: true, Doc: `only of that kind, as "cpu"`},
		},
		Returns: "a list of struct(kind, name, modes, available, owner, detail); owner is LAB/MACHINE, or \"\" where it is free",
		Errors:  "a kind that there is not",
		Needs:   "root",
	}
	if name == "resources" {
		w.Example = `m = machine_rfork(resources=[memory(reserve="64M")])
print(resources("memory")[0].modes, all([r.available for r in resources("pidspace")]))`
		w.Output = "[\"shared\", \"exclusive\"] True\n"
	} else {
		w.Doc = "Lists what can be named in this machine's rfork. " + w.Doc
		w.Example = `m = machine_rfork(resources=[cpu(set="0"), children(1)])
print([r.name for r in m.resources("cpu")])`
		w.Output = "[\"0\"]\n"
	}
	w.Fn = func(c *interp.Call) (starlark.Value, error) {
		var kind Text
		if err := c.Unpack(&kind); err != nil {
			return nil, err
		}
		from := s.host
		if v, ok := c.Recv.(*Machine); ok {
			from = v
		}
		if s.dry {
			return interp.Unknown, nil
		}
		all, err := from.m.Resources(string(kind))
		if err != nil {
			return nil, err
		}
		return available(all), nil
	}
	return w
}

func available(all []kernel.Available) starlark.Value {
	var list []starlark.Value
	for _, a := range all {
		var modes []starlark.Value
		for _, m := range a.Modes {
			modes = append(modes, starlark.String(m))
		}
		list = append(list, starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
			"kind":      starlark.String(a.Kind),
			"name":      starlark.String(a.Name),
			"modes":     starlark.NewList(modes),
			"available": starlark.Bool(a.Available),
			"owner":     starlark.String(a.Owner),
			"detail":    starlark.String(a.Detail),
		}))
	}
	return starlark.NewList(list)
}
