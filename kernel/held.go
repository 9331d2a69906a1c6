package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"msh/kernel/handover"
	"msh/kernel/ledger"
)

// held is the entry of a ledger that undoes nothing, but tells why a machine stands
// still. The last one counts; without a token it is for none of these reasons.
type held struct {
	// Token and To: the machine may run on another host, which has to be asked under
	// that token.
	Token string  `json:",omitempty"`
	To    *Remote `json:",omitempty"`
}

const heldOp = "held"

// isHeld reads the last entry.
func (m *Machine) isHeld() (h held, err error) {
	entries, err := ledger.Read(m.ledgerFile())
	if err != nil {
		return h, err
	}
	for _, e := range slices.Backward(entries) {
		if e.Op == heldOp {
			err = json.Unmarshal(e.Arg, &h)
			return h, err
		}
	}
	return h, nil
}

// settle finds out what has become of an earlier move of these machines that was left
// in doubt: nil for none, or where they run here; else where they are.
func (g *giving) settle(me handover.Hello) (*handover.Running, error) {
	var was held
	for i, m := range g.all {
		h, err := m.isHeld()
		if err != nil {
			return nil, err
		}
		if i > 0 && h.Token != was.Token {
			return nil, withHint(fmt.Errorf("%s is in doubt of another move than %s", m.Name(), g.all[0].Name()), "migrate them one by one, as they were")
		}
		was = h
	}
	if was.Token == "" {
		return nil, nil
	}
	if was.To != nil && was.To.String() != g.to.String() {
		return nil, withHint(fmt.Errorf("it may run on %s already: an earlier move broke off where nobody could know", was.To), "migrate it there once more, which finds out")
	}
	s, thank, err := handover.Ask(g.ctx, g.o.dial, me, was.Token, g.o.Patience)
	if err != nil {
		return nil, &handover.Doubt{Cause: err, Token: was.Token}
	}
	if s.Runs {
		for _, m := range g.all {
			if err := m.Destroy(g.ctx); err != nil {
				return nil, err
			}
		}
		thank()
		return &s.Running, nil
	}
	for _, m := range g.all {
		if err := m.TakeBack(g.ctx); err != nil {
			return nil, err
		}
	}
	thank()
	return nil, nil
}

// TakeBack lets a machine go on here that may run on another host: whoever says so
// knows that it does not.
func (m *Machine) TakeBack(ctx context.Context) error {
	h, err := m.isHeld()
	if err != nil {
		return err
	}
	if h.Token == "" {
		return bad("migrate", "take_back", m.Name(), "a machine of which it is not known whether it has moved")
	}
	if err := m.write(heldOp, held{}); err != nil {
		return err
	}
	return m.resume(ctx)
}

// resume lets a machine go on whose ports were closed and which was frozen, perhaps by
// an msh that has died meanwhile.
func (m *Machine) resume(ctx context.Context) error {
	var errs []error
	for _, n := range m.Netifs() {
		p, err := m.heldPort(n)
		if err == nil {
			err = p.release(true)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, m.group.Thaw(ctx))...)
}
