package builtins

import (
	"context"
	"errors"
	"fmt"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var rforkParams = []interp.Param{
	{Name: "resources", Type: "list", Default: "[]", Pos: true, Doc: "what the machine gets; what the list does not name is shared with the parent"},
	{Name: "name", Type: "string", Default: "None", Doc: "a-z, 0-9 and -, unique in its lab; m1, m2, … when left out"},
	{Name: "init", Type: "list or function", Default: "None", Doc: "None: msh's own minimal init; a list: the program that is the machine's init; a function def init(m), called once the machine is minimally up, to bring it up all the way"},
	{Name: "keep", Type: "bool", Default: "False", Doc: "whether the machine outlives the script"},
}

// rforkWord is machine_rfork, and the method of the same meaning.
func (s *Session) rforkWord(name string) *interp.Word {
	w := &interp.Word{
		Name: name,
		Doc: "Forks a machine: a set of kernel resources given to a tree of processes with an init of its own. " +
			"What the list does not name is shared with the parent. When it fails, nothing is left behind; an init function that fails destroys the machine, and the error carries the function's own backtrace.",
		Params:       rforkParams,
		Returns:      "the Machine",
		Errors:       "a resource that cannot be had, a name that is taken, an init that cannot be executed",
		Needs:        "root",
		TakesUnknown: true,
		Fn:           s.rfork,
	}
	if name == "machine_rfork" {
		w.Example = `def init(m):
    m.write_file("/etc/motd", "hello from " + m.name)

m = machine_rfork(name="box", resources=[root("/"), pidspace(), cpu(quota=50)], init=init)
print(m.run("cat /etc/motd; echo; echo $PPID").stdout)`
		w.Output = "hello from box\n0\n\n"
	} else {
		w.Doc = "Forks a machine inside this one: its control group, ids and namespaces lie within this one's. " + w.Doc
		w.Errors += ", more machines than children(max) allows"
		w.Example = `m = machine_rfork(name="outer", resources=[pidspace(), children(2)])
inner = m.rfork(name="inner", resources=[pidspace(), cpu(quota=10)])
print(inner.run("echo $PPID").stdout.strip(), inner.parent.name)`
		w.Output = "0 outer\n"
	}
	return w
}

func (s *Session) rfork(c *interp.Call) (starlark.Value, error) {
	var resources starlark.Value = starlark.Tuple{}
	var name starlark.String
	var init starlark.Value
	var keep bool
	for _, a := range append(append(starlark.Tuple{}, c.Args...), kwargValues(c)...) {
		if interp.IsUnknown(a) && c.Dry() {
			fmt.Fprintf(s.out, "machine: what it gets depends on what only running can tell\n")
			return interp.Unknown, nil
		}
	}
	if err := c.Unpack(&resources, &name, &init, &keep); err != nil {
		return nil, err
	}
	list, ok := resources.(starlark.Iterable)
	if !ok {
		return nil, interp.WithHint(fmt.Errorf("%s: resources: got %s, want a list of resources", c.Word.Name, resources.Type()), fmt.Sprintf("[%s]", resources))
	}
	parent := s.host
	if p, ok := c.Recv.(*Machine); ok {
		parent = p
	}
	spec := &kernel.Spec{Name: string(name), Keep: keep || s.up, Pos: c.Pos().String()}
	if named(c, "name") && name == "" {
		return nil, kernel.CheckName(c.Word.Name, "name", "")
	}
	var given []starlark.Value
	for e := range starlark.Elements(list) {
		r, ok := e.(*Resource)
		if !ok {
			return nil, interp.WithHint(fmt.Errorf("%s: resources: got %s at place %d, want resources such as cpu(quota=50)", c.Word.Name, e.Type(), len(given)+1), hintFor(e))
		}
		given = append(given, r)
		spec.Resources = append(spec.Resources, r.res)
	}
	var fn starlark.Callable
	switch v := init.(type) {
	case nil:
	case starlark.Callable:
		fn = v
	case starlark.String:
		return nil, interp.WithHint(fmt.Errorf("%s: init: got a string, want a list of a program and its arguments, or a function", c.Word.Name), fmt.Sprintf(`init=["/bin/sh", "-c", %s]`, v))
	default:
		var argv Texts
		if err := argv.Unpack(v); err != nil {
			return nil, fmt.Errorf("%s: init: %w, or a function", c.Word.Name, err)
		}
		spec.Init = argv
	}
	if err := mayInit(c, fn); err != nil {
		return nil, err
	}
	if s.dry {
		return s.plan(c, parent, spec, given, fn)
	}
	m, err := s.lab.Fork(c.Context(), parent.m, spec)
	if err != nil {
		return nil, err
	}
	v := s.value(m)
	v.given = given
	if fn != nil {
		if err := callInit(c, fn, v); err != nil {
			if e := m.Destroy(c.Context()); e != nil {
				err = errors.Join(err, e)
			}
			return nil, err
		}
	}
	return v, nil
}

// plan prints what would be done, an init function's part included.
func (s *Session) plan(c *interp.Call, parent *Machine, spec *kernel.Spec, given []starlark.Value, fn starlark.Callable) (starlark.Value, error) {
	p, err := s.lab.Plan(parent.m, spec)
	if err != nil {
		return nil, err
	}
	if err := p.Print(s.out); err != nil {
		return nil, err
	}
	v := s.value(s.lab.Planned(parent.m, p))
	v.given = given
	if fn != nil {
		if err := callInit(c, fn, v); err != nil {
			s.lab.PlanEnd(v.m, true)
			return nil, err
		}
	}
	return v, nil
}

// initRun is an init function under way. It is in the context that the function
// runs with, so that what it calls knows of it, on other threads too.
type initRun struct {
	fn    starlark.Callable
	m     *Machine
	outer *initRun // the one that called machine_rfork
	depth int
}

type initKey struct{}

// maxInits is how deep init functions may fork machines with init functions.
const maxInits = 32

// mayInit refuses an init function that would bring up machines without end: each
// runs on a thread of its own, where Starlark does not see that it recurses.
func mayInit(c *interp.Call, fn starlark.Callable) error {
	if fn == nil {
		return nil
	}
	run, _ := c.Context().Value(initKey{}).(*initRun)
	if run != nil && run.depth >= maxInits {
		return fmt.Errorf("%s: init: got init functions %d deep, want at most %d", c.Word.Name, run.depth+1, maxInits)
	}
	for ; run != nil; run = run.outer {
		if run.fn == fn {
			return fmt.Errorf("%s: init function %s is already bringing up %s: with it as their init, machines would be forked without end", c.Word.Name, fn.Name(), run.m.Name())
		}
	}
	return nil
}

// callInit has an init function bring the machine up.
func callInit(c *interp.Call, fn starlark.Callable, v *Machine) error {
	run := &initRun{fn: fn, m: v, depth: 1}
	run.outer, _ = c.Context().Value(initKey{}).(*initRun)
	if run.outer != nil {
		run.depth += run.outer.depth
	}
	if _, err := c.Interp().CallFn(context.WithValue(c.Context(), initKey{}, run), fn, v); err != nil {
		return fmt.Errorf("machine %s: init: %w", v.Name(), err)
	}
	return nil
}

func kwargValues(c *interp.Call) starlark.Tuple {
	var vs starlark.Tuple
	for _, kv := range c.Kwargs {
		vs = append(vs, kv[1])
	}
	return vs
}

// named tells whether a parameter was named in the call.
func named(c *interp.Call, name string) bool {
	for _, kv := range c.Kwargs {
		if n, _ := starlark.AsString(kv[0]); n == name {
			return kv[1] != starlark.None
		}
	}
	return false
}

// hintFor guesses what was meant by something that is no resource.
func hintFor(v starlark.Value) string {
	if b, ok := v.(*interp.Builtin); ok {
		return "call it: " + b.Name() + "(…)"
	}
	if s, ok := v.(starlark.String); ok {
		return fmt.Sprintf("a resource is a call, as cpu(quota=50), not the text %s", s)
	}
	return ""
}
