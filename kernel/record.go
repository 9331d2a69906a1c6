package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
)

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

// Dir is where msh keeps what it knows of the machine.
func (m *Machine) Dir() string { return filepath.Join(m.host.State, m.labID, m.Spec().Name) }

func (m *Machine) ledgerFile() string { return filepath.Join(m.Dir(), "ledger") }

// save writes the record into the ledger, where the last one counts. The caller
// has m to itself or holds m.mu.
func (m *Machine) save() error {
	e, err := m.recordEntry()
	if err != nil {
		return err
	}
	return m.saveEntry(e)
}

// recordEntry lays out the record as it is now.
func (m *Machine) recordEntry() (ledger.Entry, error) {
	r := record{Spec: m.Spec(), Pid: m.pid, Start: m.start, Boot: bootID(), Self: m.self, Group: m.group}
	if !m.parent.isHost() {
		r.Parent = m.parent.Name()
	}
	return ledger.NewEntry(recordOp, r)
}

func (m *Machine) saveEntry(e ledger.Entry) error {
	if err := m.append(e); err != nil {
		return err
	}
	return unix.Stat(m.ledgerFile(), &m.saved)
}

// write writes into the ledger.
func (m *Machine) write(op string, arg any) error {
	e, err := ledger.NewEntry(op, arg)
	if err != nil {
		return err
	}
	return m.append(e)
}

// append writes into the ledger, which a handle loaded by name opens only now.
func (m *Machine) append(e ledger.Entry) error {
	if m.ledger == nil {
		l, err := ledger.Open(m.ledgerFile())
		if err != nil {
			return err
		}
		m.ledger = l
	}
	return m.ledger.Append(e)
}

// recordOp is the entry of a ledger that undoes nothing, but says that the
// machine was brought up whole.
const recordOp = "machine"

// load makes a handle for a machine that another msh has made.
func (h *Host) load(lab, name string) (*Machine, error) {
	m := with(&Spec{Name: name}, &Machine{host: h, labID: lab, pidfd: -1})
	var r record
	if err := m.readRecord(&r); err != nil {
		return nil, err
	}
	m.given.Store(r.Spec)
	m.self, m.group, m.pid, m.start = r.Self, r.Group, r.Pid, r.Start
	m.parent = with(&Spec{Name: "host"}, &Machine{host: h, pidfd: -1})
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

// FindAll makes handles for the machines that a name means: one machine, as in Find,
// or those of the whole lab that is called so, the inner ones last.
func (h *Host) FindAll(name string) (all []*Machine, whole bool, err error) {
	m, err := h.Find(name)
	if err == nil {
		return []*Machine{m}, false, nil
	}
	if CheckName("", "", name) != nil {
		return nil, false, err
	}
	names, e := h.dirs(filepath.Join(h.State, name))
	if e != nil || len(names) == 0 {
		return nil, false, err
	}
	innerFirst(filepath.Join(h.State, name), names)
	slices.Reverse(names)
	for _, n := range names {
		m, err := h.load(name, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			for _, m := range all {
				m.close()
			}
			return nil, false, err
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		return nil, false, err
	}
	return all, true, nil
}
