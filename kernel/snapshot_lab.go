package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"msh/kernel/checkpoint"
)

// A snapshot of a lab is one of all its machines, at one instant: connections between
// them are cut nowhere. It has all the lab's networks, and the cables.

// Snapshot saves the lab in a file: all its machines and networks.
func (l *Lab) Snapshot(ctx context.Context, path string, o SnapshotOptions) (*SnapshotReport, error) {
	all := l.Machines()
	if len(all) == 0 {
		return nil, bad("snapshot", "lab", l.Name(), "a lab with a machine in it")
	}
	o.Whole = true
	return SnapshotFile(ctx, path, all, o)
}

// networks are those that the manifest tells of: those that machines are on, and of a
// whole lab the others as well.
func (s *snapshot) networks() (all []*VNetSpec, err error) {
	seen := map[string]bool{}
	for _, v := range s.all {
		for _, n := range v.m.Netifs() {
			if n.VNet == "" || seen[n.VNet] {
				continue
			}
			seen[n.VNet] = true
			spec, err := v.m.vnetSpec(n)
			if err != nil {
				return nil, err
			}
			all = append(all, spec)
		}
	}
	if !s.o.Whole {
		return all, nil
	}
	m := s.all[0].m
	dir := filepath.Join(m.host.State, m.labID, netsDir)
	nets, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, n := range nets {
		if seen[n.Name()] {
			continue
		}
		r, err := readNet(filepath.Join(dir, n.Name()))
		if err != nil {
			return nil, err
		}
		if r != nil && r.Spec != nil {
			all = append(all, r.Spec)
		}
	}
	return all, nil
}

// savedNets reads the networks of a manifest.
func savedNets(m *checkpoint.Manifest) (all []*VNetSpec, err error) {
	if m.Networks == nil {
		return nil, nil
	}
	if err := json.Unmarshal(m.Networks, &all); err != nil {
		return nil, fmt.Errorf("networks: %v: %w", err, checkpoint.ErrHostile)
	}
	for _, n := range all {
		if n == nil || n.Name == "" {
			return nil, fmt.Errorf("networks: an empty one: %w", checkpoint.ErrHostile)
		}
	}
	return all, nil
}
