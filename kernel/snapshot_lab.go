package kernel

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"msh/kernel/checkpoint"
)

// A snapshot of a lab is one of all its machines, at one instant: connections between
// them are cut nowhere. It has all the lab's networks, and the cables between them.

// savedNet is a network, with the cables that lead from it to other switches.
type savedNet struct {
	*VNetSpec
	Trunks []savedTrunk `json:",omitempty"`
}

type savedTrunk struct {
	To    string
	Cable Cable `json:",omitzero"`
	Down  bool  `json:",omitempty"`
}

// Snapshot saves the lab in a file: all its machines and networks.
func (l *Lab) Snapshot(ctx context.Context, path string, o SnapshotOptions) (*SnapshotReport, error) {
	all := l.Machines()
	if len(all) == 0 {
		return nil, bad("snapshot", "lab", l.Name(), "a lab with a machine in it")
	}
	o.whole = l
	return SnapshotFile(ctx, path, all, o)
}

// allNets are the networks that the manifest tells of: those that machines are on, and
// of a whole lab the others as well.
func (s *snapshot) allNets(used []*VNetSpec) []*savedNet {
	var all []*savedNet
	for _, n := range used {
		all = append(all, &savedNet{VNetSpec: n})
	}
	if s.o.whole == nil {
		return all
	}
	for _, v := range s.o.whole.VNets() {
		if !slices.ContainsFunc(all, func(o *savedNet) bool { return o.Name == v.Name() }) {
			all = append(all, &savedNet{VNetSpec: v.spec})
		}
	}
	for _, k := range s.o.whole.Links() {
		ends := k.Ends()
		if ends[0].VNet == nil || ends[1].VNet == nil {
			continue // an interface of a machine's
		}
		for _, n := range all {
			if n.Name == ends[0].VNet.Name() {
				n.Trunks = append(n.Trunks, savedTrunk{To: ends[1].VNet.Name(), Cable: k.Cable(), Down: !k.Up()})
			}
		}
	}
	return all
}

// savedNets reads the networks of a manifest.
func savedNets(m *checkpoint.Manifest) (all []*savedNet, err error) {
	if m.Networks == nil {
		return nil, nil
	}
	if err := json.Unmarshal(m.Networks, &all); err != nil {
		return nil, fmt.Errorf("networks: %v: %w", err, checkpoint.ErrHostile)
	}
	for _, n := range all {
		if n == nil || n.VNetSpec == nil {
			return nil, fmt.Errorf("networks: an empty one: %w", checkpoint.ErrHostile)
		}
		for _, t := range n.Trunks {
			if !slices.ContainsFunc(all, func(o *savedNet) bool { return o != nil && o.VNetSpec != nil && o.Name == t.To }) {
				return nil, fmt.Errorf("networks: a cable from %s to %q: %w", n.Name, Short(t.To), checkpoint.ErrHostile)
			}
		}
	}
	return all, nil
}

// makeTrunks makes the cables between networks that waking has made. They go with
// those.
func (wk *wake) makeTrunks() error {
	nets, err := savedNets(wk.manifest)
	if err != nil {
		return err
	}
	for _, n := range nets {
		from := wk.made(n.Name)
		for _, t := range n.Trunks {
			to := wk.made(t.To)
			if from == nil || to == nil {
				continue // the lab has one of its own in its place
			}
			k, err := wk.lab.Link(wk.ctx, LinkEnd{VNet: from}, LinkEnd{VNet: to}, t.Cable)
			if err == nil && t.Down {
				err = k.SetUp(wk.ctx, false)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (wk *wake) made(name string) *VNet {
	if i := slices.IndexFunc(wk.nets, func(v *VNet) bool { return v.Name() == name }); i >= 0 {
		return wk.nets[i]
	}
	return nil
}
