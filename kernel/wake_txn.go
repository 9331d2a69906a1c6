package kernel

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/checkpoint"
	"msh/kernel/criu"
)

// restore stands in the place of clone and bringUp where the machine is made anew of
// what was saved: criu makes its processes, and stops where they are in their new
// namespaces, so that the kinds can attach what they have.
func (t *Txn) restore() (*Machine, error) {
	w := t.wake
	if err := t.takeLayers(); err != nil {
		return nil, err
	}
	r := &criu.Restore{Root: filepath.Join(t.dir, "root"), TCP: w.o.TCP, Sibling: true,
		Inherit: map[string]*os.File{}, Place: criu.Place{Mounts: true}}
	if t.plan.Spec.ownsNetwork() {
		r.Place.NewNet = w.state.InNet
		r.NewNet = !w.state.InNet
	}
	defer func() {
		for _, f := range r.Inherit {
			f.Close()
		}
		r.Place.Group.Close() // nil is an error, and none of ours
	}()
	if err := t.inherit(r); err != nil {
		return nil, err
	}
	stage, err := t.stage()
	if err != nil {
		return nil, err
	}
	r.Mounts, r.Place.Setup = stage.mounts, stage.setup
	if err := t.placeGroup(r); err != nil {
		return nil, err
	}
	r.Ready = func() error {
		err := w.readyImages()
		r.Images = w.images
		return err
	}
	r.Hook = t.restoring
	if err := t.step("restore the processes"); err != nil {
		return nil, err
	}
	pid, err := w.criu.Restore(t.ctx, r)
	if err != nil {
		t.reapRestored()
		return nil, err
	}
	c := w.child
	_, _, memory := tight(t.plan.Limits)
	fail := func(err error) (*Machine, error) {
		c.kill()
		unix.Close(c.pidfd)
		return nil, err
	}
	if c == nil || c.pid != pid {
		return nil, fmt.Errorf("criu restored process %d and told of none", pid)
	}
	if err := t.plan.Group.Update(memory); err != nil {
		return fail(err)
	}
	m := newMachine(t.lab, t.parent, t.plan)
	if w.state.Confined != nil {
		m.self.Confined = w.state.Confined
	}
	m.pid, m.pidfd, m.start, m.ledger, m.answers = c.pid, c.pidfd, startTime(c.pid), t.ledger, t.answers
	m.self.Space = spacesOf(c.pid)
	record, err := m.recordEntry()
	if err == nil {
		err = t.settleDown(m, record)
	}
	if err != nil {
		return fail(err)
	}
	m.ledger = nil
	return m, t.ledger.Close()
}

// restores tells whether criu makes the processes.
func (t *Txn) restores() bool { return t.wake.restores() }

func (w *waking) restores() bool { return w != nil && w.saved.Mode == checkpoint.MemoryAndFiles }

// restoring is criu's hook.
func (t *Txn) restoring(e criu.Event) error {
	w := t.wake
	switch e.Name {
	case criu.SetupNamespaces:
		pidfd, err := unix.PidfdOpen(e.Pid, 0)
		if err != nil {
			return fmt.Errorf("open the restored init: %w", err)
		}
		w.child = &Child{process: &process{pid: e.Pid, pidfd: pidfd, blob: -1}, sync: -1}
		if !t.plan.Spec.ownsNetwork() {
			return t.attach(w.child)
		}
		if spacesOf(e.Pid)&unix.CLONE_NEWNET == 0 {
			return fmt.Errorf("its images put it in the host's network: %w", checkpoint.ErrHostile)
		}
		ns, err := t.childNet(w.child)
		if err != nil {
			return err
		}
		if err := t.prepareNet(ns); err != nil {
			return err
		}
		if err := t.attach(w.child); err != nil {
			return err
		}
		return w.restoreNet(ns)
	case criu.PostRestore: // all sockets are there; criu heeds an error here, and at no event after it
		close(w.reached)
		if err := <-w.release; err != nil {
			return err
		}
		_, pids, _ := tight(t.plan.Limits)
		if err := t.plan.Group.Update(pids); err != nil {
			return err
		}
		return t.join()
	}
	return nil
}

// tight takes apart the limits that criu and those who help it have to stay within
// too, in the machine's group as they are: which a machine that was at its limits left
// no room for. They are set when they are no longer needed: pids before anything runs,
// memory when criu has ended.
func tight(l cgroup.Limits) (others, pids, memory cgroup.Limits) {
	pids.Pids = l.Pids
	memory.MemoryMax, memory.MemoryHigh, memory.Swap = l.MemoryMax, l.MemoryHigh, l.Swap
	l.Pids, l.MemoryMax, l.MemoryHigh, l.Swap = 0, nil, nil, nil
	return l, pids, memory
}

// reapRestored reaps what criu has killed: it is this process's child.
func (t *Txn) reapRestored() {
	if c := t.wake.child; c != nil {
		c.kill()
		unix.Close(c.pidfd)
		t.wake.child = nil
	}
}

// placeGroup has criu, and so what it restores, born in the machine's control group.
func (t *Txn) placeGroup(r *criu.Restore) error {
	g := t.plan.Group
	for _, p := range g.Places(t.plan.Under.Places) {
		r.Place.Joins = append(r.Place.Joins, p.Join())
	}
	fd, err := unix.Open(g.Processes(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", g.Processes(), err)
	}
	r.Place.Group = os.NewFile(uintptr(fd), g.Processes())
	return nil
}

// spacesOf are the namespaces that a process does not share with msh: criu gives each
// tree a time namespace, so that its clocks go on.
func spacesOf(pid int) (flags uintptr) {
	for _, n := range namespaces {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, n.name))
		own, err2 := os.Readlink("/proc/self/ns/" + n.name)
		if err == nil && err2 == nil && its != own {
			flags |= n.flag
		}
	}
	return flags
}
