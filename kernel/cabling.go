package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"msh/kernel/checkpoint"
	"msh/kernel/ledger"
)

// What cables a lab has is written down where another process finds it, in the ledger of
// a switch at one of its ends, or of the patch panel; and from there goes into a snapshot.

// savedCable is a cable as it is written down.
type savedCable struct {
	Ends  [2]savedEnd
	Cable Cable `json:",omitzero"` // of one to a switch it is the interface that knows
	Down  bool  `json:",omitempty"`
}

// savedEnd is a network, or a machine with the name of its interface.
type savedEnd struct {
	VNet    string `json:",omitempty"`
	Machine string `json:",omitempty"`
	Netif   string `json:",omitempty"`
	Port    int    `json:",omitempty"` // tells another interface of that name apart
}

func (c savedCable) trunk() bool { return c.Ends[0].VNet != "" && c.Ends[1].VNet != "" }
func (c savedCable) patch() bool { return c.Ends[0].VNet == "" && c.Ends[1].VNet == "" }

// cableOp is the entry of a ledger that undoes nothing, but tells of a cable; the last
// one of a number counts.
const cableOp = "cable"

type cableEntry struct {
	Number int         // in the order in which they are made
	Cable  *savedCable // nil: it was taken away
}

// saved is how the cable is written down. The caller holds k.mu, or has k to itself.
func (k *Link) saved() savedCable {
	c := savedCable{Cable: k.cable, Down: k.down}
	for i, e := range k.ends {
		if e.VNet != nil {
			c.Ends[i] = savedEnd{VNet: e.VNet.Name()}
		} else {
			c.Ends[i] = savedEnd{Machine: e.Machine.Name(), Netif: e.Netif.Name, Port: e.Netif.Port}
		}
	}
	return c
}

// write writes the cable down as it is now; gone, that it is no more. A cable with a
// machine at an end needs no word of its end, which the machine's own record tells.
// The caller holds k.mu, or has k to itself.
func (k *Link) write(gone bool) error {
	var at *wiring
	switch {
	case k.ends[0].VNet != nil:
		at = k.ends[0].VNet.net
	case k.ends[1].VNet != nil:
		at = k.ends[1].VNet.net
	default:
		k.lab.mu.Lock()
		at = k.lab.patch
		k.lab.mu.Unlock()
	}
	if at == nil {
		return nil // of a plan
	}
	if k.number == 0 {
		k.number = k.lab.index()
	}
	e := cableEntry{Number: k.number}
	if !gone {
		c := k.saved()
		e.Cable = &c
	}
	return at.ledger.Write(cableOp, e)
}

// cables reads what cables the lab has between networks and machines that are there, in
// the order in which they were made: those of concern. specs finds a machine's.
func (h *Host) cables(lab string, concerns func(savedCable) bool, specs func(machine string) *Spec) ([]savedCable, error) {
	dir := filepath.Join(h.State, lab, netsDir)
	nets, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var numbers []int
	found := map[int]*savedCable{}
	there := map[string]bool{}
	for _, n := range nets {
		there[n.Name()] = true
		entries, err := ledger.Read(filepath.Join(dir, n.Name(), "ledger"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Op != cableOp {
				continue
			}
			var c cableEntry
			if err := json.Unmarshal(e.Arg, &c); err != nil {
				return nil, fmt.Errorf("the cables of %s: %w", n.Name(), err)
			}
			if _, ok := found[c.Number]; !ok {
				numbers = append(numbers, c.Number)
			}
			found[c.Number] = c.Cable
		}
	}
	slices.Sort(numbers)
	var all []savedCable
	for _, n := range numbers {
		c := found[n]
		if c != nil && concerns(*c) && !slices.ContainsFunc(c.Ends[:], func(e savedEnd) bool { return !e.isThere(there, specs) }) {
			all = append(all, *c)
		}
	}
	return all, nil
}

func (e savedEnd) isThere(nets map[string]bool, specs func(machine string) *Spec) bool {
	if e.VNet != "" {
		return nets[e.VNet]
	}
	s := specs(e.Machine)
	return s != nil && slices.ContainsFunc(netifsOf(s), func(n *Netif) bool { return n.Name == e.Netif && n.Port == e.Port })
}

// cables are those that the snapshot is to hold: all of a whole lab, else those of its
// machines. It is refused where one leads to a machine that the snapshot does not hold.
func (s *snapshot) cables() (held []savedCable, err error) {
	first := s.all[0].m
	saved := func(name string) *Spec {
		if i := slices.IndexFunc(s.all, func(v *saving) bool { return v.m.Name() == name }); i >= 0 {
			return s.all[i].m.Spec()
		}
		return nil
	}
	concerns := func(c savedCable) bool {
		return s.o.Whole || slices.ContainsFunc(c.Ends[:], func(e savedEnd) bool { return e.Machine != "" && saved(e.Machine) != nil })
	}
	var all []savedCable
	if first.state == "planned" {
		for _, k := range first.lab.Links() {
			all = append(all, k.saved())
		}
	} else {
		all, err = first.host.cables(first.labID, concerns, func(name string) *Spec {
			if spec := saved(name); spec != nil {
				return spec
			}
			m, err := first.host.load(first.labID, name)
			if err != nil {
				return nil
			}
			defer m.close()
			if m.alive() != nil {
				return nil
			}
			return m.Spec()
		})
	}
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.trunk() {
			if s.o.Whole {
				held = append(held, c)
			}
			continue
		}
		var in, out []savedEnd
		for _, e := range c.Ends {
			if e.Machine != "" && saved(e.Machine) != nil {
				in = append(in, e)
			} else if e.Machine != "" {
				out = append(out, e)
			}
		}
		if len(in) > 0 && len(out) > 0 {
			return nil, &ParamError{Kind: s.verb(), Got: fmt.Sprintf("%s, whose interface %s is an end of a cable to %s", in[0].Machine, in[0].Netif, out[0].Machine),
				Want: "the machines at both ends", Mend: "save all of the lab (lab.snapshot, lab.hibernate, `msh hibernate LAB`), or take the cable away first"}
		}
		if len(in) > 0 {
			held = append(held, c)
		}
	}
	return held, nil
}

// savedCables reads the cables of a manifest.
func savedCables(m *checkpoint.Manifest) (all []savedCable, err error) {
	if m.Cables == nil {
		return nil, nil
	}
	if err := json.Unmarshal(m.Cables, &all); err != nil {
		return nil, fmt.Errorf("cables: %v: %w", err, checkpoint.ErrHostile)
	}
	return all, nil
}
