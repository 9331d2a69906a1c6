package kernel

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
	"msh/kernel/netx"
)

// For the first group that is kept from devices, and at the end of the last, the kernel
// rewrites itself, for which it interrupts every CPU of the host and waits for it. So a
// lab that has such machines has a group besides that is kept from devices, with no
// process in it, until it ends: its machines may come and go then.

// guardDir is where that has its ledger, in the lab's directory.
const guardDir = ".guard"

// keepGuard makes it. Without it all works, if more slowly.
func (l *Lab) keepGuard() {
	l.guard.Do(func() {
		dir := filepath.Join(l.dir(), guardDir)
		if os.Mkdir(dir, 0o755) != nil {
			return
		}
		if l.makeGuard(dir) != nil {
			l.host.dropGuard(context.Background(), l.name)
		}
	})
}

func (l *Lab) makeGuard(dir string) error {
	g := l.host.Cgroup.Group(labGroup(l.host.Cgroup, l.name, guardDir), cgroup.Limits{}, false)
	g.Owner = l.host.State + ":" + l.name + "/" + guardDir
	made, err := ledger.Create(filepath.Join(dir, "ledger"))
	if err != nil {
		return err
	}
	defer made.Close()
	if err := made.Write("cgroup", g); err != nil {
		return err
	}
	if err := g.Make(); err != nil {
		return err
	}
	return guard(g.Dirs()[0], &Spec{})
}

// dropGuard undoes it, where it was made.
func (h *Host) dropGuard(ctx context.Context, lab string) error {
	return h.undoMachine(ctx, filepath.Join(h.State, lab, guardDir))
}

// guardsDevices tells whether the machine is to be kept from other devices: where it
// is given some, and where level 1 begins; below that its parent's guard holds. A
// machine of an ordinary user's can open what that user can, and make no nodes.
func (p *Plan) guardsDevices() bool {
	return !p.Under.User && (p.Spec.Has("device") || p.Confined.level() >= levelNodes && p.Under.Confined.level() < levelNodes)
}

// guardDevices comes before the first process is in the group.
func (t *Txn) guardDevices() error {
	if !t.plan.guardsDevices() {
		return nil
	}
	if err := t.step("keep it from other devices"); err != nil {
		return err
	}
	t.lab.keepGuard()
	return explainPrograms("device", guard(t.plan.Group.Dirs()[0], t.plan.Spec))
}

// levelGuard is for every machine that is given no device: it stays loaded.
var levelGuard = sync.OnceValues(func() (*netx.DeviceGuard, error) { return netx.NewDeviceGuard(everyDevice()) })

// guard keeps a control group from all devices but those that every machine has and
// those that the spec names.
func guard(group string, s *Spec) error {
	if !s.Has("device") {
		g, err := levelGuard()
		if err != nil {
			return err
		}
		return g.Guard(group)
	}
	rules := everyDevice()
	for _, r := range s.Resources {
		if d, ok := r.(*Device); ok {
			rules = append(rules, d.rule)
		}
	}
	g, err := netx.NewDeviceGuard(rules)
	if err != nil {
		return err
	}
	defer g.Close()
	return g.Guard(group)
}
