package builtins

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"msh/interp"
	"msh/kernel"
)

// Resource is one thing a machine is given, as a Starlark value. It cannot be
// changed, and prints as it was written.
type Resource struct {
	word  *interp.Word
	res   kernel.Resource
	names []string // the parameters given, in order
	given starlark.StringDict
}

var (
	_ starlark.HasAttrs   = (*Resource)(nil)
	_ starlark.Comparable = (*Resource)(nil)
)

// newResource checks what a constructor has read and makes it a value.
func newResource(c *interp.Call, res kernel.Resource) (starlark.Value, error) {
	if err := res.Validate(); err != nil {
		return nil, err
	}
	r := &Resource{word: c.Word, res: res, given: starlark.StringDict{}}
	add := func(name string, v starlark.Value) {
		r.names = append(r.names, name)
		r.given[name] = frozen(v)
	}
	for i, v := range c.Args {
		p := c.Word.Params[i]
		if p.Rest {
			add(p.Name, c.Args[i:])
			break
		}
		add(p.Name, v)
	}
	for _, kv := range c.Kwargs {
		name, _ := starlark.AsString(kv[0])
		add(name, kv[1])
	}
	return r, nil
}

// frozen is a value that nobody can change: of a list, dict or set a copy, since
// the caller may go on filling its own.
func frozen(v starlark.Value) starlark.Value {
	switch v := v.(type) {
	case starlark.Tuple:
		return starlark.Tuple(frozenElements(v))
	case *starlark.List:
		l := starlark.NewList(frozenElements(v))
		l.Freeze()
		return l
	case *starlark.Set:
		s := starlark.NewSet(v.Len())
		for e := range starlark.Elements(v) {
			s.Insert(e) // hashed before: it cannot fail, nor can the element change
		}
		s.Freeze()
		return s
	case *starlark.Dict:
		d := starlark.NewDict(v.Len())
		for k, e := range starlark.Entries(v) {
			d.SetKey(k, frozen(e))
		}
		d.Freeze()
		return d
	}
	return v
}

func frozenElements(v starlark.Iterable) []starlark.Value {
	var list []starlark.Value
	for e := range starlark.Elements(v) {
		list = append(list, frozen(e))
	}
	return list
}

func (r *Resource) String() string {
	var args []string
	for _, n := range r.names {
		i := slices.IndexFunc(r.word.Params, func(p interp.Param) bool { return p.Name == n })
		if r.word.Params[i].Rest {
			for e := range starlark.Elements(r.given[n].(starlark.Tuple)) {
				args = append(args, e.String())
			}
		} else if r.word.Params[i].Pos && i == len(args) {
			args = append(args, r.given[n].String())
		} else {
			args = append(args, n+"="+r.given[n].String())
		}
	}
	return r.word.Name + "(" + strings.Join(args, ", ") + ")"
}

// Type implements starlark.Value.
func (r *Resource) Type() string { return "resource" }

// Freeze implements starlark.Value.
func (r *Resource) Freeze() {}

// Truth implements starlark.Value.
func (r *Resource) Truth() starlark.Bool { return true }

// Hash implements starlark.Value.
func (r *Resource) Hash() (uint32, error) { return starlark.String(r.String()).Hash() }

// CompareSameType makes resources that were written alike equal.
func (r *Resource) CompareSameType(op syntax.Token, y starlark.Value, depth int) (bool, error) {
	same := r.String() == y.String()
	switch op {
	case syntax.EQL:
		return same, nil
	case syntax.NEQ:
		return !same, nil
	}
	return false, fmt.Errorf("resources have no order")
}

// Attr gives kind, mode and the parameters.
func (r *Resource) Attr(name string) (starlark.Value, error) {
	switch name {
	case "kind":
		return starlark.String(r.res.Kind()), nil
	case "mode":
		return starlark.String(r.res.Mode()), nil
	}
	if v, ok := r.given[name]; ok {
		return v, nil
	}
	for _, p := range r.word.Params {
		if p.Name == name {
			return defaultValue(p.Default), nil
		}
	}
	return nil, nil
}

// AttrNames implements starlark.HasAttrs.
func (r *Resource) AttrNames() []string {
	names := []string{"kind", "mode"}
	for _, p := range r.word.Params {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}

// defaultValue reads a default as it is written in a signature.
func defaultValue(text string) starlark.Value {
	switch text {
	case "True":
		return starlark.True
	case "False":
		return starlark.False
	case "[]":
		l := starlark.NewList(nil)
		l.Freeze()
		return l
	}
	if s, err := strconv.Unquote(text); err == nil {
		return starlark.String(s)
	}
	if n, err := strconv.Atoi(text); err == nil {
		return starlark.MakeInt(n)
	}
	return starlark.None
}

// resourceWords are the constructors, in the order of the kernel's table of kinds.
func resourceWords() []*interp.Word {
	return []*interp.Word{cpuWord, memoryWord, pidsWord, ioWord, childrenWord, uidspaceWord,
		spaceWord("cgroupspace"), timespaceWord, spaceWord("ipcspace"), spaceWord("netspace"), netifWord, netaddrWord, routesWord, spaceWord("mountspace"),
		rootWord, spaceWord("pidspace"), viewWord, mountWord, unameWord, sysctlWord, rlimitWord, securityWord, deviceWord}
}

// pure returns the words as ones that only make values.
func pure(words []*interp.Word) []*interp.Word {
	all := make([]*interp.Word, len(words))
	for i, w := range words {
		copied := *w
		copied.Pure = true
		all[i] = &copied
	}
	return all
}
