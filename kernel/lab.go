package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Lab is the machines that one script makes. It has no effect on the host until
// its first machine.
type Lab struct {
	host *Host
	up   bool // its machines are kept: the name is taken as given or refused

	mu       sync.Mutex
	name     string
	lock     *os.File
	machines []*Machine // in the order they were made
	names    map[string]bool
	serial   int
	spawned  []*Process // on the host: no control group ends them
	vnets    []*VNet    // in the order they were made
	links    []*Link
	captures []*Capture // under way
	ports    atomic.Int64
	closing  bool

	naming     sync.Mutex // taken before a vnet's mutex, and l.mu
	hostsFiles []*hostsFile

	guard sync.Once // see keepGuard
	patch *wiring   // where cables between machines run; nil before the first
	root  *Machine
}

// NewLab prepares a lab. With up its name must be free; otherwise a number is
// put behind a name that is taken.
func (h *Host) NewLab(name string, up bool) (*Lab, error) {
	if err := CheckName("lab", "name", name); err != nil {
		return nil, err
	}
	l := &Lab{host: h, name: name, up: up, names: map[string]bool{}}
	l.root = with(&Spec{Name: "host"}, &Machine{host: h, lab: l, pid: os.Getpid(), pidfd: -1, self: h.under()})
	return l, nil
}

// Name is the lab's name; before the first machine, the one asked for.
func (l *Lab) Name() string { l.mu.Lock(); defer l.mu.Unlock(); return l.name }

// Host is the root of the tree of machines, as seen from this lab.
func (l *Lab) Host() *Machine { return l.root }

// Machines lists the lab's live handles in the order they were made.
func (l *Lab) Machines() []*Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.machines)
}

func (l *Lab) dir() string { return filepath.Join(l.host.State, l.name) }

// claim makes the lab's directory and locks it. The caller holds l.mu.
func (l *Lab) claim(ctx context.Context) error {
	if l.lock != nil {
		return nil
	}
	asked := l.name
	for n := 2; ; n++ {
		lock, err := lockOwner(l.dir(), true)
		switch {
		case errors.Is(err, errOwned) && !l.up:
		case errors.Is(err, errOwned):
			return withHint(fmt.Errorf("lab %s: another msh is working on it", l.name), "choose another name with --lab")
		case err != nil:
			return explainState(err)
		default:
			kept, err := l.leftovers(ctx)
			if err == nil && kept == "" {
				l.lock = lock
				_, err = fmt.Fprintf(lock, "%d %d %s\n", os.Getpid(), startTime(os.Getpid()), bootID())
				return err
			}
			lock.Close()
			if err != nil {
				return err
			}
			if l.up {
				return withHint(fmt.Errorf("lab %s is up already, with machine %s", l.name, kept), "`msh down "+l.name+"` ends it; --lab gives this one another name")
			}
		}
		l.name = numbered(asked, n)
	}
}

// numbered puts a number behind a lab's name, whose end makes way where the two
// would be too long for a name.
func numbered(name string, n int) string {
	number := fmt.Sprintf("-%d", n)
	if most := maxName - len(number); len(name) > most {
		name = strings.TrimRight(name[:most], "-")
	}
	return name + number
}

// leftovers undoes what a dead owner left in the lab's directory, and names a
// kept machine if there is one.
func (l *Lab) leftovers(ctx context.Context) (kept string, err error) {
	names, err := l.host.dirs(l.dir())
	if err != nil {
		return "", err
	}
	innerFirst(l.dir(), names)
	for _, name := range names {
		m, err := l.host.load(l.name, name)
		if err == nil {
			m.close()
			if m.Spec().Keep {
				return name, nil
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s/%s, left by an earlier run: %w", l.name, name, err)
		}
		err = l.host.undoNetsIn(ctx, l.name, l.name+"/"+name)
		if err == nil {
			err = l.host.undoMachine(ctx, filepath.Join(l.dir(), name))
		}
		if err != nil {
			return "", fmt.Errorf("clean up %s/%s, left by an earlier run: %w", l.name, name, err)
		}
	}
	if err := l.host.clearNets(ctx, l.name, true); err != nil {
		return "", fmt.Errorf("clean up networks of an earlier run: %w", err)
	}
	if err := l.host.dropGuard(ctx, l.name); err != nil {
		return "", fmt.Errorf("clean up a control group of an earlier run: %w", err)
	}
	return "", nil
}

func explainState(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return withHint(err, "msh makes namespaces and control groups: as root, or in directories that are yours")
	}
	return err
}

// reserveName settles a machine's name. The caller holds l.mu.
func (l *Lab) reserveName(name string) (string, error) {
	if name == "host" {
		return "", bad("machine_rfork", "name", name, "another name: host is the machine msh runs on")
	}
	if name != "" {
		if l.names[name] {
			return "", &ParamError{Kind: "machine_rfork", Param: "name", Got: fmt.Sprintf("%q", name), Want: "a name that is free in lab " + l.name + ": a machine has it"}
		}
		l.names[name] = true
		return name, nil
	}
	for {
		l.serial++
		name = fmt.Sprintf("m%d", l.serial)
		if !l.names[name] {
			l.names[name] = true
			return name, nil
		}
	}
}

// validateIn checks the spec of a machine of parent's.
func (s *Spec) validateIn(parent *Machine) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if s.Keep && !parent.isHost() && !parent.Spec().Keep {
		return &ParamError{Kind: "machine_rfork", Param: "keep", Got: "True", Want: "a parent that is kept: the machine ends with " + parent.Name()}
	}
	return nil
}

// Plan plans a machine without making it, as `msh -n` does.
func (l *Lab) Plan(parent *Machine, spec *Spec) (*Plan, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := l.host.bound(parent, spec)
	if err != nil {
		return nil, err
	}
	if err := s.validateIn(parent); err != nil {
		return nil, err
	}
	name, err := l.reserveName(s.Name)
	if err != nil {
		return nil, err
	}
	s.Name = name
	if err := parent.adopt(name); err != nil {
		delete(l.names, name)
		return nil, err
	}
	l.mu.Unlock()
	err = l.settle(parent, &s, name)
	l.mu.Lock()
	var p *Plan
	if err == nil {
		p, err = NewPlan(&s, parent.under(), l.host.Cgroup, filepath.Join(l.dir(), name))
	}
	if err != nil {
		parent.disown(name)
		delete(l.names, name)
	}
	return p, err
}

// Planned is a machine that only a plan stands for: the parent of further plans.
func (l *Lab) Planned(parent *Machine, p *Plan) *Machine {
	m := newMachine(l, parent, p)
	m.state = "planned"
	l.mu.Lock()
	l.machines = append(l.machines, m)
	l.mu.Unlock()
	for _, n := range p.Nets {
		if v := l.findVNet(n.VNet); v != nil {
			v.planPort(n, m.Name())
		}
	}
	return m
}

// PlanEnd is what the end of a planned machine does to the plan: it is dead then,
// and so are those inside it. With destroyed, names and places are free again.
func (l *Lab) PlanEnd(m *Machine, destroyed bool) {
	for _, c := range l.Machines() {
		if c.parent == m {
			l.PlanEnd(c, destroyed)
		}
	}
	m.mu.Lock()
	m.state = "destroyed"
	m.mu.Unlock()
	if destroyed && slices.Contains(l.Machines(), m) {
		l.unplug(m)
		l.forget(m)
		m.parent.disown(m.Name())
	}
}

// Fork makes a machine: a transaction over its resources. When it fails, nothing
// is left.
func (l *Lab) Fork(ctx context.Context, parent *Machine, spec *Spec) (*Machine, error) {
	return l.fork(ctx, parent, spec, nil)
}

// fork makes a machine, anew or of what was saved.
func (l *Lab) fork(ctx context.Context, parent *Machine, spec *Spec, w *waking) (*Machine, error) {
	s, err := l.host.bound(parent, spec)
	if err != nil {
		return nil, err
	}
	if err := s.validateIn(parent); err != nil {
		return nil, err
	}
	var network *startedNet
	if s.netAhead(parent.self) && !w.restores() {
		network = startNetwork()
		defer network.drop()
	}
	l.mu.Lock()
	if err := l.claim(ctx); err != nil {
		l.mu.Unlock()
		return nil, err
	}
	name, err := l.reserveName(s.Name)
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.Name = name
	release := func() { l.mu.Lock(); delete(l.names, name); l.mu.Unlock() }
	err = parent.adopt(name)
	if err == nil {
		if err = parent.room(); err != nil {
			parent.disown(name)
		}
	}
	if err != nil {
		release()
		return nil, err
	}
	err = l.settle(parent, &s, name)
	if err != nil {
		parent.disown(name)
		release()
		return nil, err
	}
	var m *Machine
	plan, err := NewPlan(&s, parent.under(), l.host.Cgroup, filepath.Join(l.dir(), name))
	if err == nil {
		t := newTxn(ctx, l, parent, plan)
		t.network = network
		if t.wake = w; w != nil {
			w.plan = plan
		}
		m, err = t.run()
	}
	if err != nil {
		l.abandon(&s)
		parent.disown(name)
		release()
		return nil, err
	}
	l.mu.Lock()
	l.machines = append(l.machines, m)
	l.mu.Unlock()
	return m, nil
}

// forget drops a machine that has been destroyed.
func (l *Lab) forget(m *Machine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.machines = slices.DeleteFunc(l.machines, func(o *Machine) bool { return o == m })
	delete(l.names, m.Name())
}

// Close ends the lab: every machine that is not kept is destroyed, the last one
// first. It goes on past errors and joins them.
func (l *Lab) Close(ctx context.Context) error {
	var errs []error
	l.mu.Lock()
	spawned := l.spawned
	l.spawned = nil
	l.mu.Unlock()
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	for _, p := range slices.Backward(spawned) {
		errs = append(errs, p.finish(ctx))
	}
	for l.capturing() != nil {
		if _, err := l.capturing().Stop(); err != nil {
			errs = append(errs, err)
		}
	}
	// All at once: while one is taken apart the others' processes end.
	for _, m := range slices.Backward(l.Machines()) {
		if !m.Spec().Keep && m.state == "" && m.pidfd >= 0 {
			m.group.Kill() // Destroy meets what goes wrong again
		}
	}
	for _, m := range slices.Backward(l.Machines()) {
		if m.Spec().Keep || m.state == "planned" {
			m.close()
			continue
		}
		if err := m.destroy(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, l.closeNets(ctx))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock != nil {
		errs = append(errs, l.host.dropGuard(ctx, l.name))
		if !slices.ContainsFunc(l.machines, func(m *Machine) bool { return m.Spec().Keep }) {
			l.forgetNames()
		}
		releaseLab(l.dir())
		l.lock.Close()
		l.lock = nil
		l.host.tidy()
	}
	return errors.Join(errs...)
}
