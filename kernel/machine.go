package kernel

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
)

// Machine is a live handle: the pidfd of the machine's init, its control group,
// its ledger. The host is one too, without any of them.
type Machine struct {
	host   *Host
	lab    *Lab // nil for a handle loaded by name
	labID  string
	parent *Machine // nil for the host
	self   Under    // what it is to machines of its own
	ledger *ledger.Ledger

	pid    int // of its init, seen from the host
	pidfd  int // -1 when it has ended
	layers int // the memory of its overlay; 0 where it has none, or another msh has it
	start  uint64

	// takeInit takes it upon the caller to reap an init that is about to end; nil
	// where it is not this process's child.
	takeInit func() (reapInit func())
	answers  *answerer // of uname, where it is this process that does; nil for none
	exit     status    // of its init, once that is reaped

	setting  sync.Mutex   // one Set at a time
	starting sync.RWMutex // see hold
	ending   sync.Mutex   // one Destroy at a time

	given    atomic.Pointer[Spec] // replaced whole when it changes, by who holds mu
	mu       sync.Mutex
	group    *cgroup.Group // nil for the host
	saved    unix.Stat_t   // the ledger as last read
	state    string        // "planned" or "destroyed"; else the kernel is asked
	children []string
}

func newMachine(l *Lab, parent *Machine, p *Plan) *Machine {
	self := p.Under
	self.Name, self.Path, self.Space = p.Spec.Name, p.Group.Path, p.Space()
	if p.Spec.ownsNetwork() {
		self.Net = p.Under.Lab + "/" + p.Spec.Name
	}
	self.Root = self.Root || p.Spec.Has("root")
	if p.IDs != nil {
		self.IDs = p.IDs.absolute(p.Under.IDs)
	}
	if p.Clocks != nil {
		self.Clock = *p.Clocks
	}
	self.Confined, self.Uname = p.Confined, p.Uname
	self.Limit = slices.Clone(self.Limit)
	for _, r := range p.Spec.Resources {
		if r, ok := r.(*Rlimit); ok {
			self.Limit = append(self.Limit, r)
		}
	}
	return with(p.Spec, &Machine{host: l.host, lab: l, labID: l.name, parent: parent, self: self, group: p.Group, pidfd: -1})
}

// Name is the machine's name in its lab; "host" for the root of the tree.
func (m *Machine) Name() string { return m.Spec().Name }

// ID is LAB/NAME; "host" for the host.
func (m *Machine) ID() string {
	if m.isHost() {
		return "host"
	}
	return m.labID + "/" + m.Spec().Name
}

// claimant is how the book names the machine as the one something is taken from.
func (m *Machine) claimant() string {
	if m.isHost() {
		return ""
	}
	return m.ID()
}

// LabName is the name of the machine's lab.
func (m *Machine) LabName() string { return m.labID }

// Lab is the lab of the machine; nil for a handle that was loaded by name.
func (m *Machine) Lab() *Lab { return m.lab }

// Spec is what the machine was asked to be, and has since been set to. It must
// not be changed.
func (m *Machine) Spec() *Spec { return m.given.Load() }

// with gives a handle that is being made its spec.
func with(s *Spec, m *Machine) *Machine {
	m.given.Store(s)
	return m
}

// Parent is the machine it was forked from; nil for the host.
func (m *Machine) Parent() *Machine { return m.parent }

// Pid is its init's process number, seen from the host.
func (m *Machine) Pid() int { return m.pid }

// Space are the namespaces that are not the host's (CLONE_NEW*).
func (m *Machine) space() uintptr { return m.self.Space }

// IDs are its ids as the host sees them; nil where they are the host's.
func (m *Machine) IDs() []IDMap { return m.self.IDs }

// Groups are the directories of its control group, by paths that hold as long as this process.
func (m *Machine) Groups() []string {
	if m.group == nil {
		return nil
	}
	return m.group.Dirs()
}

// GroupNames are they in words that mean the same to everybody.
func (m *Machine) GroupNames() []string {
	if m.group == nil {
		return nil
	}
	return m.group.Names()
}

func (m *Machine) isHost() bool { return m.parent == nil && m.Spec().Name == "host" }

// within tells whether the machine is, or is inside, the one of that ID.
func (m *Machine) within(id string) bool {
	for ; m != nil; m = m.parent {
		if m.ID() == id {
			return true
		}
	}
	return false
}

// holds tells whether the machine of that ID is one inside m.
func (m *Machine) holds(id string) bool {
	if m.lab == nil {
		return false
	}
	for _, o := range m.lab.Machines() {
		if o.ID() == id {
			return o != m && o.within(m.ID())
		}
	}
	return false
}

// under is what a plan needs to know of m as a parent.
func (m *Machine) under() Under {
	u := m.self
	u.Lab = m.labID
	if m.isHost() {
		u.Lab = m.lab.name
	}
	u.Places, _ = m.places() // a machine that is going away is met by whoever enters it
	return u
}

// places are where in v1's hierarchies its processes are. A machine around it may
// have been given limits since it was made.
func (m *Machine) places() ([]cgroup.Place, error) {
	if m.group == nil || m.group.Unified { // the host, or where groups are one tree
		return nil, nil
	}
	if err := m.refresh(); err != nil {
		return nil, err
	}
	above, err := m.parent.places()
	return m.group.Places(above), err
}

// State is "running", "frozen" or "dead".
func (m *Machine) State() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.isHost():
		return "running"
	case m.state == "planned":
		return m.state
	case m.dead():
		return "dead"
	case m.group.Frozen():
		return "frozen"
	}
	return "running"
}

// dead tells whether a machine, not the host, has ended. The caller holds m.mu.
func (m *Machine) dead() bool {
	return m.state != "planned" && (m.state != "" || m.pidfd < 0 || ended(m.pidfd))
}

// alive is nil while the machine can be used.
func (m *Machine) alive() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isHost() && m.dead() {
		return fmt.Errorf("machine %s: %w", m.Name(), ErrDead)
	}
	return nil
}

// awake is nil while a program can be started in the machine.
func (m *Machine) awake() error {
	switch m.State() {
	case "dead":
		return fmt.Errorf("machine %s: %w", m.Name(), ErrDead)
	case "frozen":
		if n, err := m.still(); err == nil && n != nil && (n.inDoubt() || n.Pid != os.Getpid()) {
			return n.inTheWay("start a program in", m.Name())
		}
		return withHint(fmt.Errorf("machine %s is frozen: what is started in it would not run", m.Name()), "thaw it first")
	}
	return nil
}

// hold keeps the machine, and those it is in, from being frozen until the
// returned function is called: while a process is being born the thread that
// bears it stands still, and would for good. Another msh may freeze it all the
// same; then this one waits until it is thawed.
func (m *Machine) hold() (release func()) {
	var held []*Machine
	for ; m != nil; m = m.parent {
		held = append(held, m)
	}
	for _, m := range slices.Backward(held) { // outermost first
		m.starting.RLock()
	}
	return func() {
		for _, m := range held {
			m.starting.RUnlock()
		}
	}
}

// watchInit has the machine's init, a child of this process, reaped as soon as it
// ends: as long as it is a zombie, the PID space around it cannot end either.
func (m *Machine) watchInit() error {
	fd, err := m.handle()
	if err != nil {
		return err
	}
	reaped := make(chan struct{})
	reap := func() {
		m.exit = m.reapInit(fd)
		unix.Close(fd)
		close(reaped)
	}
	number, err := watch(fd, reap)
	if err != nil {
		unix.Close(fd)
		return err
	}
	m.takeInit = func() (reapInit func()) {
		mine := unwatch(fd, number)
		return func() {
			if mine {
				mine = false
				reap()
			}
			<-reaped
		}
	}
	return nil
}

// reapInit reaps an init that has ended. One that had a tracer, as criu is one, is the
// tracer's first, and for a moment nobody's: ECHILD, or as if it had not ended.
func (m *Machine) reapInit(fd int) status {
	for end := time.Now().Add(teardown); ; time.Sleep(time.Millisecond) {
		st, ok, err := reapNow(fd)
		if ok || err != nil && err != unix.ECHILD || startTime(m.pid) != m.start || time.Now().After(end) {
			return st
		}
	}
}

// adopt counts a machine that is about to be made as m's, if m may have one.
func (m *Machine) adopt(name string) error {
	if err := m.awake(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isHost() {
		limit := 0
		if c, ok := m.Spec().find("children").(*Children); ok {
			limit = c.Max
		}
		if len(m.children) >= limit {
			return &ParamError{Kind: "rfork", Got: fmt.Sprintf("machine %d of %s", len(m.children)+1, m.Name()), Want: fmt.Sprintf("at most %d", limit),
				Mend: fmt.Sprintf("make %s with children(%d)", m.Name(), len(m.children)+1)}
		}
	}
	m.children = append(m.children, name)
	return nil
}

func (m *Machine) disown(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.children = slices.DeleteFunc(m.children, func(c string) bool { return c == name })
}

// Children lists the names of the machines it has forked and that are there yet.
func (m *Machine) Children() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.children)
}

// handle is a pidfd of the caller's own: m's may be closed, and its number given
// to another file, while it is in use.
func (m *Machine) handle() (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pidfd < 0 {
		return -1, fmt.Errorf("machine %s: %w", m.Name(), ErrDead)
	}
	return unix.FcntlInt(uintptr(m.pidfd), unix.F_DUPFD_CLOEXEC, 0)
}

// close gives the handle up; the machine lives on.
func (m *Machine) close() {
	m.mu.Lock()
	if m.pidfd >= 0 {
		unix.Close(m.pidfd)
		m.pidfd = -1
	}
	if m.layers > 0 {
		unix.Close(m.layers)
		m.layers = 0
	}
	m.mu.Unlock()
	if m.ledger != nil {
		m.ledger.Close()
	}
	if m.lab == nil && m.parent != nil {
		m.parent.close() // loaded with it
	}
}

// Close gives up a handle that Find or Machines returned.
func (m *Machine) Close() { m.close() }
