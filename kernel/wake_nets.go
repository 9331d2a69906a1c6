package kernel

import (
	"context"
	"errors"
	"slices"
)

// makeNets makes those networks that the lab does not have.
func (wk *wake) makeNets() error {
	err := wk.eachMissingNet(func(s *VNetSpec) error {
		v, err := wk.lab.VNet(wk.ctx, wk.lab.Host(), s)
		if err == nil {
			wk.nets = append(wk.nets, v)
		}
		return err
	})
	if err != nil {
		return err
	}
	return wk.makeTrunks(func(a, b LinkEnd, c Cable) (*Link, error) { return wk.lab.Link(wk.ctx, a, b, c) })
}

// eachMissingNet calls f with what the networks were that the lab does not have; f
// makes them.
func (wk *wake) eachMissingNet(f func(*VNetSpec) error) error {
	specs, err := savedNets(wk.manifest)
	if err != nil {
		return err
	}
	var missing []*VNetSpec
	for _, w := range wk.all {
		for _, n := range netifsOf(w.spec) {
			if n.VNet == "" || wk.lab.findVNet(n.VNet) != nil || slices.ContainsFunc(missing, func(s *VNetSpec) bool { return s.Name == n.VNet }) {
				continue
			}
			i := slices.IndexFunc(specs, func(s *VNetSpec) bool { return s.Name == n.VNet })
			if i < 0 || slices.Contains(values(wk.o.Nets), n.VNet) {
				return bad("wake", "nets", n.VNet, "a vnet of this lab")
			}
			missing = append(missing, specs[i])
		}
	}
	for _, s := range specs {
		if wk.manifest.WholeLab && wk.o.Nets[s.Name] == "" && wk.lab.findVNet(s.Name) == nil && !slices.Contains(missing, s) {
			missing = append(missing, s)
		}
	}
	for _, n := range missing {
		s := *n
		s.Keep, s.Pos = wk.o.Keep, wk.o.Pos
		if wk.o.Net != nil {
			if err := wk.o.Net(&s); err != nil {
				return err
			}
		}
		if err := f(&s); err != nil {
			return err
		}
	}
	return nil
}

func values[T any](m map[string]T) (all []T) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

func (wk *wake) undoNets() error {
	var errs []error
	for _, v := range slices.Backward(wk.nets) {
		errs = append(errs, v.Destroy(context.WithoutCancel(wk.ctx)))
	}
	return errors.Join(errs...)
}
