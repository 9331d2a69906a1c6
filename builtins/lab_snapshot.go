package builtins

import (
	"errors"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

// ofLab makes a word that is a method of the lab.
func ofLab(w *interp.Word, fn func(c *interp.Call, l *Lab) (starlark.Value, error)) *interp.Word {
	w.Name = "Lab." + w.Name
	w.Needs = "root"
	w.Fn = func(c *interp.Call) (starlark.Value, error) { return fn(c, c.Recv.(*Lab)) }
	return w
}

const savedLabDoc = "Saves the lab in one file: all its machines at one instant, so that connections between them go on when they are woken, and all its networks with the cables between them. "

var labSnapshotWord = ofLab(&interp.Word{
	Name:    "snapshot",
	Doc:     savedLabDoc + "All stand still until the last one's memory is written, and run on.",
	Params:  snapshotParams,
	Returns: savedReturns,
	Errors:  savedErrors + "; a machine inside another",
	Example: `lan = vnet("lan", subnet="10.0.0.0/24")
for name in ["a", "b"]:
    machine_rfork(name=name, resources=[root("/"), pidspace(), netif(lan)])
lab.snapshot("/tmp/msh-example.msh")
lab.hibernate("/tmp/msh-example.msh")
print(lab.machines)
a, b = wake("/tmp/msh-example.msh")
print(a.run("ping -c1 -W2 b", check=False).ok, b.address)
host.run("rm /tmp/msh-example.msh")`,
	Output: "[]\nTrue 10.0.0.2\n",
}, func(c *interp.Call, l *Lab) (starlark.Value, error) { return l.save(c, false) })

var labHibernateWord = ofLab(&interp.Word{
	Name:    "hibernate",
	Doc:     savedLabDoc + "Then its machines are gone, until they are woken. Its networks stay, for others.",
	Params:  snapshotParams,
	Returns: savedReturns,
	Errors:  savedErrors + "; a machine inside another",
	Example: `lan = vnet("lan", subnet="10.0.0.0/24")
machine_rfork(name="a", resources=[root("/"), pidspace(), netif(lan)])
machine_rfork(name="b", resources=[root("/"), pidspace(), netif(lan)])
lab.hibernate("/tmp/msh-example.msh")
print(lab.machines)
print([m.name for m in wake("/tmp/msh-example.msh")])
host.run("rm /tmp/msh-example.msh")`,
	Output: "[]\n[\"a\", \"b\"]\n",
}, func(c *interp.Call, l *Lab) (starlark.Value, error) { return l.save(c, true) })

func (l *Lab) save(c *interp.Call, hibernate bool) (starlark.Value, error) {
	var path Text
	var filesOnly bool
	if err := c.Unpack(&path, &filesOnly); err != nil {
		return nil, err
	}
	all := l.s.lab.Machines()
	if len(all) == 0 {
		return nil, errors.New("the lab has no machine")
	}
	o := kernel.SnapshotOptions{FilesOnly: filesOnly, Hibernate: hibernate}
	if !l.s.dry {
		r, err := l.s.lab.Snapshot(c.Context(), string(path), o)
		if err != nil {
			return nil, err
		}
		return saved(r), nil
	}
	m, err := kernel.PlannedSnapshot(all)
	if err != nil {
		return nil, err
	}
	l.s.mu.Lock()
	l.s.planned[string(path)] = m
	l.s.mu.Unlock()
	for _, m := range all {
		v := l.s.value(m)
		if hibernate {
			v.would("hibernate to %s", path)
			l.s.lab.PlanEnd(m, true)
		} else {
			v.would("snapshot to %s", path)
		}
	}
	return interp.Unknown, nil
}
