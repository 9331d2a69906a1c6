package kernel

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"msh/kernel/checkpoint"
	"msh/kernel/criu"
)

// PlanWake plans what waking would make, from the manifest alone: networks that the
// lab lacks, and machines. Both stand in the plan from then on.
func (l *Lab) PlanWake(m *checkpoint.Manifest, o WakeOptions) (nets []*VNet, machines []*Machine, plans []*Plan, err error) {
	wk := &wake{lab: l, o: o, manifest: m}
	if err := wk.read(); err != nil {
		return nil, nil, nil, err
	}
	err = wk.eachMissingNet(func(s *VNetSpec) error {
		v, err := l.PlanVNet(l.Host(), s)
		nets = append(nets, v)
		return err
	})
	wk.nets = nets
	if err == nil {
		err = wk.makeTrunks(l.PlanLink)
	}
	planned := map[*waking]*Machine{}
	for _, w := range wk.all {
		if err != nil {
			return nil, nil, nil, err
		}
		if w.plan, err = l.Plan(l.Host(), w.spec); err == nil {
			planned[w] = l.Planned(l.Host(), w.plan)
			plans, machines = append(plans, w.plan), append(machines, planned[w])
		}
	}
	if err != nil {
		return nil, nil, nil, err
	}
	for _, c := range wk.cables {
		if !c.trunk() {
			wk.lay(c)
		}
	}
	return nets, machines, plans, wk.handOut(func(w *waking) *Machine { return planned[w] })
}

// PlannedSnapshot is the manifest of a snapshot that stands in a plan only.
func PlannedSnapshot(machines []*Machine) (*checkpoint.Manifest, error) {
	s := &snapshot{o: SnapshotOptions{FilesOnly: true}}
	for _, m := range machines {
		s.all = append(s.all, &saving{snapshot: s, m: m})
	}
	return s.manifest()
}

// CanWake tells what is known of a snapshot's manifest alone to be in the way.
func (l *Lab) CanWake(ctx context.Context, m *checkpoint.Manifest, o WakeOptions) error {
	wk := &wake{ctx: ctx, lab: l, o: o, manifest: m}
	defer wk.close()
	if err := wk.read(); err != nil {
		return err
	}
	return wk.check()
}

// read makes specs of the manifest.
func (wk *wake) read() error {
	m := wk.manifest
	if len(m.Machines) > 1 && (wk.o.Name != "" || wk.o.Addresses != nil) {
		return bad("wake", "name", wk.o.Name, fmt.Sprintf("a snapshot of one machine; this one has %d", len(m.Machines)))
	}
	for i := range m.Machines {
		s := &m.Machines[i]
		w := &waking{wake: wk, saved: s, layers: -1, work: -1, spec: &Spec{}}
		wk.all = append(wk.all, w)
		if err := json.Unmarshal(s.Spec, w.spec); err != nil {
			return fmt.Errorf("machine %s: %v: %w", s.Name, err, checkpoint.ErrHostile)
		}
		if err := w.change(); err != nil {
			return fmt.Errorf("machine %s: %w", s.Name, err)
		}
	}
	return wk.readCables()
}

// check finds out from the manifest alone what stands in the way.
func (wk *wake) check() error {
	if err := checkHost(&wk.manifest.Host); err != nil {
		return err
	}
	memory := false
	for _, w := range wk.all {
		memory = memory || w.saved.Mode == checkpoint.MemoryAndFiles
		for _, b := range w.saved.Needs.Bases {
			if here, ok := wk.o.Bases[b.Path]; ok {
				b.Path = here
			}
			if err := checkBase(b); err != nil {
				return fmt.Errorf("machine %s: %w", w.saved.Name, err)
			}
		}
	}
	if !memory {
		return nil
	}
	var err error
	if wk.criu, err = criu.Find(wk.ctx); err != nil {
		return err
	}
	wk.lab.host.keepFacts(wk.criu)
	if len(wk.all) > 1 {
		// Its first look at the kernel makes things that two of them would make at once.
		_, err = wk.criu.Features(wk.ctx)
	}
	return err
}

// checkHost tells whether processes of another computer can go on here.
func checkHost(was *checkpoint.Host) error {
	now := hostFacts()
	if was.Arch != "" && was.Arch != now.Arch {
		return fmt.Errorf("it was saved on %s, and this is %s (%s)", was.Arch, now.Arch, runtime.GOARCH)
	}
	var missing []string
	for _, f := range was.CPUFlags {
		if !slices.Contains(now.CPUFlags, f) {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		return withHint(fmt.Errorf("the processor here (%s) lacks what that there (%s) had: %s", now.CPU, was.CPU, strings.Join(missing, " ")),
			"programs may be using it: wake it on a host with the same kind of processor or a newer one")
	}
	return nil
}

// change makes of the spec that was saved the one that is to be.
func (w *waking) change() error {
	s, o := w.spec, w.o
	s.Keep, s.Pos = o.Keep, o.Pos
	s.Name = w.saved.Name
	if o.Name != "" {
		s.Name = o.Name
	}
	if err := CheckName("wake", "name", s.Name); err != nil {
		return err
	}
	if (o.Fresh || o.Addresses != nil) && o.TCP != criu.TCPClose && w.saved.Mode == checkpoint.MemoryAndFiles && len(netifsOf(s)) > 0 {
		return &ParamError{Kind: "wake", Param: "tcp", Got: `"established" under other addresses`, Want: "the addresses that its connections have", Mend: `tcp="close" closes them`}
	}
	for i, r := range s.Resources {
		if r, ok := r.(*Root); ok && o.Bases[r.Source] != "" {
			c := *r
			c.Source = o.Bases[r.Source]
			s.Resources[i] = &c
		}
	}
	i := 0
	for _, n := range netifsOf(s) {
		if (n.VNet == "") != (n.Link != "") {
			return fmt.Errorf("its interface %s is on no vnet, and no cable's: %w", n.Name, checkpoint.ErrHostile)
		}
		if other, ok := o.Nets[n.VNet]; ok {
			n.VNet = other
		}
		n.MAC, n.Gateway, n.Port = n.HardwareAddr, n.Gateways, 0
		if o.Fresh && n.VNet != "" { // a cable is another one anyway
			n.MAC, n.Addresses, n.Gateway = "", nil, nil
		}
		if i < len(o.Addresses) {
			n.Addresses, n.Gateway = o.Addresses[i], nil
			n.MAC = ""
		}
		n.Bare = n.Bare || !o.Fresh && len(n.Addresses) == 0 // it had none
		n.Gateways = nil
		i++
	}
	if i < len(o.Addresses) {
		return bad("wake", "address", fmt.Sprint(len(o.Addresses)), fmt.Sprintf("one for each of its %d interfaces", i))
	}
	return s.Validate()
}

// pinIDs has the machine get the ids it had: they are in its memory and files.
func (w *waking) pinIDs() error {
	for i, r := range w.spec.Resources {
		u, ok := r.(*Uidspace)
		if !ok || u.Map != nil || len(w.state.IDs) != 1 {
			continue
		}
		base := w.state.IDs[0].Outside
		w.spec.Resources[i] = &Uidspace{Base: &base, Size: w.state.IDs[0].Size}
	}
	return w.spec.Validate()
}

// checkConfined tells whether whoever enters the machine can be confined as it was.
func (w *waking) checkConfined() error {
	c := w.state.Confined
	if c == nil {
		return nil
	}
	if c.Level < 0 || c.Level > topLevel || len(c.Fences) > 0 {
		return fmt.Errorf("machine %s: it is confined as no machine that is saved can be: %w", w.saved.Name, checkpoint.ErrHostile)
	}
	_, err := c.filters()
	return err
}
