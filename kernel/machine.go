package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
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
	spec   *Spec
	self   Under // what it is to machines of its own
	ledger *ledger.Ledger

	pid   int // of its init, seen from the host
	pidfd int // -1 when it has ended
	start uint64
	mine  bool // whether init is this process's child

	setting sync.Mutex // one Set at a time
	ending  sync.Mutex // one Destroy at a time

	mu       sync.Mutex
	group    *cgroup.Group // nil for the host
	saved    unix.Stat_t   // the ledger as last read
	state    string        // "planned" or "destroyed"; else the kernel is asked
	children []string
}

// record is what another process needs for a handle.
type record struct {
	Spec   *Spec
	Parent string // a machine of the lab, "" for the host
	Pid    int
	Start  uint64
	Boot   string
	Self   Under
	Group  *cgroup.Group
}

func newMachine(l *Lab, parent *Machine, p *Plan) *Machine {
	self := p.Under
	self.Name, self.Path, self.Space = p.Spec.Name, p.Group.Path, p.Space()
	self.Root = self.Root || p.Spec.Has("root")
	if p.IDs != nil {
		self.IDs = p.IDs.absolute(p.Under.IDs)
	}
	if p.Clocks != nil {
		self.Clock = *p.Clocks
	}
	self.Limit = slices.Clone(self.Limit)
	for _, r := range p.Spec.Resources {
		if r, ok := r.(*Rlimit); ok {
			self.Limit = append(self.Limit, r)
		}
	}
	return &Machine{host: l.host, lab: l, labID: l.name, parent: parent, spec: p.Spec, self: self, group: p.Group, pidfd: -1}
}

// Name is the machine's name in its lab; "host" for the root of the tree.
func (m *Machine) Name() string { return m.spec.Name }

// ID is LAB/NAME; "host" for the host.
func (m *Machine) ID() string {
	if m.isHost() {
		return "host"
	}
	return m.labID + "/" + m.spec.Name
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

// Spec is what the machine was asked to be. It must not be changed.
func (m *Machine) Spec() *Spec { return m.spec }

// Parent is the machine it was forked from; nil for the host.
func (m *Machine) Parent() *Machine { return m.parent }

// Pid is its init's process number, seen from the host.
func (m *Machine) Pid() int { return m.pid }

// Space are the namespaces that are not the host's (CLONE_NEW*).
func (m *Machine) space() uintptr { return m.self.Space }

// IDs are its ids as the host sees them; nil where they are the host's.
func (m *Machine) IDs() []IDMap { return m.self.IDs }

// Groups are the directories of its control group.
func (m *Machine) Groups() []string {
	if m.group == nil {
		return nil
	}
	return m.group.Dirs()
}

func (m *Machine) isHost() bool { return m.parent == nil && m.spec.Name == "host" }

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
	return u
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
	case m.state != "" || m.pidfd < 0 || ended(m.pidfd):
		return "dead"
	case m.group.Frozen():
		return "frozen"
	}
	return "running"
}

// alive is nil while the machine can be used.
func (m *Machine) alive() error {
	if !m.isHost() && m.State() == "dead" {
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
		return withHint(fmt.Errorf("machine %s is frozen: what is started in it would not run", m.Name()), "thaw it first")
	}
	return nil
}

// adopt counts a machine that is about to be made as m's, if m may have one.
func (m *Machine) adopt(name string) error {
	if err := m.alive(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isHost() {
		limit := 0
		if c, ok := m.spec.find("children").(*Children); ok {
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

// Dir is where msh keeps what it knows of the machine.
func (m *Machine) Dir() string { return filepath.Join(m.host.State, m.labID, m.spec.Name) }

func (m *Machine) ledgerFile() string { return filepath.Join(m.Dir(), "ledger") }

// save writes the record into the ledger, where the last one counts. The caller
// has m to itself or holds m.mu.
func (m *Machine) save() error {
	r := record{Spec: m.spec, Pid: m.pid, Start: m.start, Boot: bootID(), Self: m.self, Group: m.group}
	if !m.parent.isHost() {
		r.Parent = m.parent.Name()
	}
	if err := m.write(recordOp, r); err != nil {
		return err
	}
	return unix.Stat(m.ledgerFile(), &m.saved)
}

// write writes into the ledger, which a handle loaded by name opens only now.
func (m *Machine) write(op string, arg any) error {
	if m.ledger == nil {
		l, err := ledger.Open(m.ledgerFile())
		if err != nil {
			return err
		}
		m.ledger = l
	}
	return m.ledger.Write(op, arg)
}

// recordOp is the entry of a ledger that undoes nothing, but says that the
// machine was brought up whole.
const recordOp = "machine"

// load makes a handle for a machine that another msh has made.
func (h *Host) load(lab, name string) (*Machine, error) {
	m := &Machine{host: h, labID: lab, pidfd: -1, spec: &Spec{Name: name}}
	var r record
	if err := m.readRecord(&r); err != nil {
		return nil, err
	}
	m.spec, m.self, m.group, m.pid, m.start = r.Spec, r.Self, r.Group, r.Pid, r.Start
	m.parent = &Machine{host: h, spec: &Spec{Name: "host"}, pidfd: -1}
	var err error
	if r.Parent != "" {
		var p *Machine
		if p, err = h.load(lab, r.Parent); err == nil {
			m.parent = p
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if r.Boot == bootID() {
		// Gone is dead; another error (too many descriptors) is not, or it would be swept.
		m.pidfd, err = openProcess(r.Pid, r.Start)
		if err != nil && err != unix.ESRCH {
			m.close()
			return nil, fmt.Errorf("open the init of %s: %w", m.ID(), err)
		}
	}
	return m, nil
}

// readRecord reads the last record; a machine without one is half made, or half
// gone, which is fs.ErrNotExist as when it is not there at all.
func (m *Machine) readRecord(r *record) error {
	unix.Stat(m.ledgerFile(), &m.saved)
	entries, err := ledger.Read(m.ledgerFile())
	if err != nil {
		return err
	}
	for _, e := range slices.Backward(entries) {
		if e.Op == recordOp {
			if err := json.Unmarshal(e.Arg, r); err != nil {
				return fmt.Errorf("%s: %w", m.ledgerFile(), err)
			}
			return nil
		}
	}
	return fmt.Errorf("%s: no machine: %w", m.ledgerFile(), fs.ErrNotExist)
}

// refresh reads the control group anew where another msh may have moved the
// machine into one hierarchy more: to keep it off a CPU given away (cgroup v1).
func (m *Machine) refresh() error {
	if m.group == nil || m.group.Unified {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Stat(m.ledgerFile(), &st); err != nil || st.Size == m.saved.Size && st.Mtim == m.saved.Mtim {
		return nil // gone: the machine is being destroyed
	}
	var r record
	if err := m.readRecord(&r); err != nil {
		return err
	}
	m.group = r.Group
	return nil
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

// Find makes a handle for a machine named NAME or LAB/NAME.
func (h *Host) Find(name string) (*Machine, error) {
	all, err := h.Machines()
	if err != nil {
		return nil, err
	}
	var found []*Machine
	var ids []string
	for _, m := range all {
		if m.ID() == name || m.Name() == name {
			found = append(found, m)
			ids = append(ids, m.ID())
		} else {
			m.close()
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, withHint(fmt.Errorf("no machine %q", name), "`msh ls` lists them")
	}
	for _, m := range found {
		m.close()
	}
	return nil, withHint(fmt.Errorf("%q names %d machines", name, len(found)), fmt.Sprintf("write LAB/MACHINE, one of %v", ids))
}

// Machines lists a handle for every machine on the host that was brought up,
// by lab and name. The caller closes them.
func (h *Host) Machines() ([]*Machine, error) {
	labs, err := h.Labs()
	if err != nil {
		return nil, err
	}
	var all []*Machine
	for _, lab := range labs {
		names, err := h.dirs(filepath.Join(h.State, lab))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			m, err := h.load(lab, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // half made, or half gone
			}
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
	}
	return all, nil
}

// end kills the machine's processes and waits for its init. The ledger would do
// so too, but has only the control group to look at, again and again; the pidfd
// wakes at once. What goes wrong here, the ledger meets again and reports.
func (m *Machine) end() {
	if m.pidfd < 0 || m.group.Kill() != nil {
		return
	}
	never := &canceller{fd: -1}
	never.await(context.Background(), time.Now().Add(teardown), m.pidfd)
	if m.mine {
		reapNow(m.pidfd)
	}
}

// destroyInside destroys the machines inside one that was loaded by name, which
// no lab of this process knows.
func (m *Machine) destroyInside(ctx context.Context) error {
	names, err := m.host.dirs(filepath.Dir(m.Dir()))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		c, err := m.host.load(m.labID, name)
		if err != nil {
			continue // half made: a sweep's
		}
		if c.parent.ID() == m.ID() {
			errs = append(errs, c.Destroy(ctx))
		}
		c.close()
	}
	return errors.Join(errs...)
}

// Destroy ends the machine and those inside it and takes back all it was given.
// Destroying twice is no error.
func (m *Machine) Destroy(ctx context.Context) error {
	if m.isHost() {
		return bad("destroy", "", nil, "the host is not msh's to destroy")
	}
	var errs []error
	if m.lab != nil {
		for _, c := range slices.Backward(m.lab.Machines()) {
			if c.parent == m {
				errs = append(errs, c.Destroy(ctx))
			}
		}
	}
	m.ending.Lock()
	defer m.ending.Unlock()
	m.mu.Lock()
	if m.state != "" {
		m.mu.Unlock()
		return errors.Join(errs...)
	}
	m.mu.Unlock()
	if m.lab == nil {
		errs = append(errs, m.destroyInside(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.end()
	if err := m.host.undoMachine(ctx, m.Dir()); err != nil {
		return fmt.Errorf("destroy %s: %w", m.Name(), err)
	}
	m.mu.Lock()
	m.state = "destroyed"
	m.mu.Unlock()
	m.close()
	if m.lab != nil {
		m.lab.forget(m)
	}
	m.parent.disown(m.Name())
	return nil
}
