package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"msh/kernel/handover"
)

// settle finds out what has become of an earlier move of these machines that was left
// in doubt: nil for none, or where they run here; else where they are.
func (g *giving) settle(me handover.Hello) (*handover.Running, error) {
	var n *standstill
	for _, m := range g.all {
		o, err := m.still()
		if err != nil {
			return nil, err
		}
		if n == nil && o != nil && o.inDoubt() {
			n = o
		}
	}
	if n == nil {
		return nil, nil
	}
	names := machineNames(g.all)
	for _, name := range n.Machines {
		if !slices.Contains(names, name) {
			return nil, withHint(fmt.Errorf("it may run on %s already, together with %s: a move of theirs broke off where nobody could know", n.To, name),
				fmt.Sprintf("`msh migrate %s %s` finds out", n.subject(), n.To))
		}
	}
	if n.To != nil && n.To.String() != g.to.String() {
		return nil, withHint(fmt.Errorf("it may run on %s already: an earlier move broke off where nobody could know", n.To), "migrate it there once more, which finds out")
	}
	release, err := g.all[0].host.takeStill(g.all[0].labID, n, "migrate")
	if err != nil {
		return nil, err
	}
	defer release()
	s, thank, err := handover.Ask(g.ctx, g.o.dial, me, n.Token, g.o.Patience)
	if err != nil {
		return nil, &handover.Doubt{Cause: err, Token: n.Token}
	}
	if s.Runs {
		n.End = true
		if err := n.save(); err != nil {
			return nil, err
		}
		for _, m := range g.all {
			if slices.Contains(n.Machines, m.Name()) {
				if err := m.destroy(g.ctx); err != nil {
					return nil, err
				}
			}
		}
		thank()
		return &s.Running, errors.Join(n.drop(), g.all[0].host.tidyLab(g.ctx, g.all[0].labID))
	}
	if err := g.all[0].host.takeBack(g.ctx, g.all[0].labID, n); err != nil {
		return nil, err
	}
	thank()
	return nil, nil
}

// TakeBack lets a machine go on here, with those that moved together with it, that may
// run on another host: whoever says so knows that it does not. It returns their names.
func (m *Machine) TakeBack(ctx context.Context) ([]string, error) {
	n, err := m.still()
	if err != nil {
		return nil, err
	}
	if n == nil || !n.inDoubt() {
		return nil, bad("migrate", "take_back", m.Name(), "a machine of which it is not known whether it has moved")
	}
	release, err := m.host.takeStill(m.labID, n, "take back")
	if err != nil {
		return nil, err
	}
	defer release()
	return n.Machines, m.host.takeBack(ctx, m.labID, n)
}

// takeStill has this msh be the one that finds out about a move in doubt, until the
// returned function is called.
func (h *Host) takeStill(lab string, n *standstill, what string) (release func(), err error) {
	unlock, err := h.lockStills(lab)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := h.stills(lab)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(o *standstill) bool { return o.file == n.file && o.Token == n.Token })
	if i < 0 {
		return nil, fmt.Errorf("%s %s: meanwhile it was found out where it runs", what, strings.Join(n.Machines, ", "))
	}
	if all[i].alive() {
		return nil, all[i].inTheWay(what, strings.Join(n.Machines, ", "))
	}
	n.sign()
	return func() {
		if n.inDoubt() {
			n.leave()
		}
	}, n.save()
}

// takeBack lets them go on here.
func (h *Host) takeBack(ctx context.Context, lab string, n *standstill) error {
	n.Token, n.To = "", nil
	if err := n.save(); err != nil {
		return err
	}
	if err := h.mendStill(ctx, lab, n); err != nil {
		return err
	}
	return n.drop()
}
