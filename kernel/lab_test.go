package kernel

import (
	"strings"
	"testing"
)

// A lab whose name is taken gets a number; it must still be a name.
func TestLabNumbered(t *testing.T) {
	long := strings.Repeat("x", maxName)
	for _, c := range []struct {
		name string
		n    int
		want string
	}{
		{"web", 2, "web-2"}, {long, 2, long[:61] + "-2"}, {long, 100, long[:59] + "-100"},
		{long[:60] + "-yy", 2, long[:60] + "-2"}, {long[:62], 10, long[:60] + "-10"}, {long[:60], 10, long[:60] + "-10"},
	} {
		got := numbered(c.name, c.n)
		want(t, c.name, c.want, got)
		if err := CheckName("lab", "name", got); err != nil {
			t.Error(err)
		}
	}
}

// Two labs of one long name: the second can be named.
func TestLabLongName(t *testing.T) {
	h := newHost(t)
	name := labPrefix() + strings.Repeat("x", maxName)
	var labs []*Lab
	for range 2 {
		l, err := h.NewLab(name[:maxName], false)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close(t.Context())
		m := fork(t, l)
		found, err := h.Find(m.ID())
		if err != nil {
			t.Fatal(err)
		}
		found.Close()
		if err := CheckName("lab", "name", l.Name()); err != nil {
			t.Error(err)
		}
		labs = append(labs, l)
	}
	want(t, "the second", name[:maxName-2]+"-2", labs[1].Name())
}

// What a planned machine's end does to the plan.
func TestPlanEnd(t *testing.T) {
	l := newLab(t)
	plan := func(parent *Machine, name string) *Machine {
		t.Helper()
		p, err := l.Plan(parent, &Spec{Name: name, Resources: []Resource{&Children{Max: 1}}})
		if err != nil {
			t.Fatal(err)
		}
		return l.Planned(parent, p)
	}
	refused := func(parent *Machine, name, text string) {
		t.Helper()
		if _, err := l.Plan(parent, &Spec{Name: name}); err == nil {
			t.Errorf("%s in %s: planned", name, parent.Name())
		} else {
			contains(t, err.Error(), text)
		}
	}
	a := plan(l.Host(), "a")
	b := plan(a, "b")
	refused(a, "c", "machine 2 of a, want at most 1")
	refused(l.Host(), "b", "a machine has it")
	l.PlanEnd(b, true)
	b = plan(a, "b")
	l.PlanEnd(a, false)
	want(t, "a", "dead", a.State())
	want(t, "b", "dead", b.State())
	refused(a, "c", "machine is dead")
	refused(l.Host(), "a", "a machine has it")
	l.PlanEnd(a, true)
	l.PlanEnd(a, true)
	want(t, "machines", 0, len(l.Machines()))
	plan(plan(l.Host(), "a"), "b")
}
