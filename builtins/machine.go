package builtins

import (
	"fmt"
	"slices"
	"strings"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

// Machine is a machine as a Starlark value.
type Machine struct {
	s     *Session
	m     *kernel.Machine
	given []starlark.Value // the resources as the script gave them; nil for the host
}

var _ starlark.HasAttrs = (*Machine)(nil)

// Name is the machine's name.
func (v *Machine) Name() string { return v.m.Name() }

func (v *Machine) String() string {
	if v == v.s.host {
		return "<machine host>"
	}
	return fmt.Sprintf("<machine %s>", v.m.Name())
}

// Type implements starlark.Value.
func (v *Machine) Type() string { return "machine" }

// Freeze implements starlark.Value. A machine is no data of the script's.
func (v *Machine) Freeze() {}

// Truth implements starlark.Value.
func (v *Machine) Truth() starlark.Bool { return true }

// Hash implements starlark.Value.
func (v *Machine) Hash() (uint32, error) { return starlark.String(v.m.Name()).Hash() }

// machineAttrs are the attributes, each a function of the machine; what they are is in types.
var machineAttrs = map[string]func(*Machine) starlark.Value{
	"name":   func(v *Machine) starlark.Value { return starlark.String(v.m.Name()) },
	"parent": (*Machine).parent,
	"children": func(v *Machine) starlark.Value {
		var list []starlark.Value
		for _, m := range v.s.lab.Machines() {
			if m.Parent() == v.m {
				list = append(list, v.s.value(m))
			}
		}
		return starlark.NewList(list)
	},
	"lab": func(v *Machine) starlark.Value { return v.s.self },
	"pid": func(v *Machine) starlark.Value {
		if v.planned() {
			return interp.Unknown
		}
		return starlark.MakeInt(v.m.Pid())
	},
	"state": func(v *Machine) starlark.Value {
		if v.planned() {
			return interp.Unknown
		}
		return starlark.String(v.m.State())
	},
	"root": func(v *Machine) starlark.Value {
		for _, r := range v.m.Spec().Resources {
			if r, ok := r.(*kernel.Root); ok {
				return starlark.String(r.Source)
			}
		}
		return starlark.String("/")
	},
	"netifs": func(v *Machine) starlark.Value {
		var list []starlark.Value
		for _, n := range v.m.Netifs() {
			list = append(list, &Netif{v, n.Name})
		}
		return starlark.NewList(list)
	},
	"address": func(v *Machine) starlark.Value {
		if a := v.m.Address(); a != "" {
			return starlark.String(a)
		}
		return starlark.None
	},
	"given": func(v *Machine) starlark.Value {
		return starlark.NewList(slices.Clone(v.given))
	},
}

func (v *Machine) parent() starlark.Value {
	if v.m.Parent() == nil {
		return starlark.None
	}
	return v.s.value(v.m.Parent())
}

// planned tells whether the machine stands in a plan only.
func (v *Machine) planned() bool { return v.s.dry }

// Attr implements starlark.HasAttrs.
func (v *Machine) Attr(name string) (starlark.Value, error) {
	if f, ok := machineAttrs[name]; ok {
		return f(v), nil
	}
	if w := v.s.method("Machine." + name); w != nil {
		return w.Bind(v), nil
	}
	return noAttr(v, name)
}

// AttrNames implements starlark.HasAttrs.
func (v *Machine) AttrNames() []string {
	return v.s.attrNames("Machine")
}

// methodWords lists the words that are methods of values.
func (s *Session) methodWords() []*interp.Word {
	return []*interp.Word{
		s.rforkWord("Machine.rfork"), s.resourcesWord("Machine.resources"),
		runWord, spawnWord, shellWord,
		readFileWord, writeFileWord, copyInWord, copyOutWord,
		migrateWord, labSnapshotWord, labHibernateWord,
		freezeWord, thawWord, stopWord, killWord, destroyWord, setWord, statsWord,
		waitWord, waitPortWord, waitRunWord, waitFileWord,
		machineSnapshotWord, hibernateWord, cloneWord,
		s.vnetWord("Machine.vnet"), machineNetifWord,
		vnetAttachWord, vnetDetachWord, vnetPartitionWord, vnetHealWord, vnetCaptureWord, vnetStatsWord, vnetDestroyWord,
		linkUpWord, linkDownWord, linkSetWord, linkStatsWord, linkDestroyWord,
		netifUpWord, netifDownWord, netifSetWord, netifStatsWord, netifCaptureWord,
		captureWaitWord, captureStopWord,
		processWaitWord, processKillWord, processLogWord,
	}
}

func (s *Session) method(name string) *interp.Word {
	for _, w := range s.methods() {
		if w.Name == name {
			return w
		}
	}
	return nil
}

func (s *Session) methodNames(prefix string) []string {
	var names []string
	for _, w := range s.methods() {
		if n, ok := strings.CutPrefix(w.Name, prefix); ok {
			names = append(names, n)
		}
	}
	return names
}

// method makes a word that is a method of a machine. In a dry run fn must do
// nothing: see planned and would.
func method(w *interp.Word, fn func(c *interp.Call, v *Machine) (starlark.Value, error)) *interp.Word {
	ends := w.Name == "stop" || w.Name == "kill" || w.Name == "destroy" || w.Name == "wait" // once more, which is no error
	w.Name = "Machine." + w.Name
	w.Needs = "root"
	w.Fn = func(c *interp.Call) (starlark.Value, error) {
		v := c.Recv.(*Machine)
		if v.planned() && !ends && v.m.State() == "dead" {
			return nil, fmt.Errorf("machine %s: %w", v.m.Name(), kernel.ErrDead)
		}
		return fn(c, v)
	}
	return w
}

// would prints a step of a dry run.
func (v *Machine) would(format string, args ...any) (starlark.Value, error) {
	fmt.Fprintf(v.s.out, "%s: %s\n", v.m.Name(), fmt.Sprintf(format, args...))
	return interp.Unknown, nil
}

// Lab is the lab that the script makes, as a Starlark value. A session has one,
// so that it is equal to itself.
type Lab struct{ s *Session }

var _ starlark.HasAttrs = (*Lab)(nil)

func (l *Lab) String() string { return fmt.Sprintf("<lab %s>", l.s.lab.Name()) }

// Type implements starlark.Value.
func (l *Lab) Type() string { return "lab" }

// Freeze implements starlark.Value.
func (l *Lab) Freeze() {}

// Truth implements starlark.Value.
func (l *Lab) Truth() starlark.Bool { return true }

// Hash implements starlark.Value. Its name is no part of it: that is settled only
// with the first machine.
func (l *Lab) Hash() (uint32, error) { return starlark.String(l.Type()).Hash() }

// Attr implements starlark.HasAttrs.
func (l *Lab) Attr(name string) (starlark.Value, error) {
	switch name {
	case "name":
		return starlark.String(l.s.lab.Name()), nil
	case "machines":
		var list []starlark.Value
		for _, m := range l.s.lab.Machines() {
			list = append(list, l.s.value(m))
		}
		return starlark.NewList(list), nil
	case "vnets":
		var list []starlark.Value
		for _, v := range l.s.lab.VNets() {
			list = append(list, l.s.vnet(v))
		}
		return starlark.NewList(list), nil
	case "links":
		var list []starlark.Value
		for _, k := range l.s.lab.Links() {
			list = append(list, l.s.link(k))
		}
		return starlark.NewList(list), nil
	}
	if w := l.s.method("Lab." + name); w != nil {
		return w.Bind(l), nil
	}
	return noAttr(l, name)
}

// AttrNames implements starlark.HasAttrs.
func (l *Lab) AttrNames() []string { return l.s.attrNames("Lab") }
