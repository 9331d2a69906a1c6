package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
)

// Pids limits how many tasks a machine may have.
type Pids struct{ Max int64 }

// Kind is "pids".
func (*Pids) Kind() string { return "pids" }

// Mode is shared: the tasks come out of the parent's.
func (*Pids) Mode() Mode { return Shared }

// Validate checks the number.
func (p *Pids) Validate() error {
	if p.Max < 1 || p.Max > 4<<20 {
		return bad("pids", "max", p.Max, "1 to 4194304, the kernel's own limit")
	}
	return nil
}

// Plan puts the limit into the control group.
func (p *Pids) Plan(plan *Plan) error { plan.Limits.Pids = p.Max; return nil }

func (p *Pids) set(m *Machine) error { return m.limit(cgroup.Limits{Pids: p.Max}) }

// IO limits a machine's use of one block device; rates per second.
type IO struct {
	Device    string // a path, or MAJOR:MINOR
	ReadBPS   uint64 `json:",omitempty"` // bytes
	WriteBPS  uint64 `json:",omitempty"`
	ReadIOPS  uint64 `json:",omitempty"` // operations
	WriteIOPS uint64 `json:",omitempty"`
	Weight    int    `json:",omitempty"` // 1 to 10000
}

// Kind is "io".
func (*IO) Kind() string { return "io" }

// Mode is shared.
func (*IO) Mode() Mode { return Shared }

// Key is the device: each may be limited once.
func (i *IO) Key() string { return i.Device }

// Validate checks that a limit is given, and its range.
func (i *IO) Validate() error {
	switch {
	case i.Device == "":
		return bad("io", "device", "", `a block device as "/dev/sda" or "8:0"`)
	case i.ReadBPS|i.WriteBPS|i.ReadIOPS|i.WriteIOPS == 0 && i.Weight == 0:
		return bad("io", "", nil, "want at least one of read_bps, write_bps, read_iops, write_iops and weight")
	case i.Weight < 0 || i.Weight > 10000:
		return bad("io", "weight", i.Weight, "1 to 10000")
	}
	return nil
}

// Plan puts the limit into the control group. The device's number is looked up
// when the limit is set.
func (i *IO) Plan(p *Plan) error {
	p.Limits.IO = append(p.Limits.IO, i.limit())
	return nil
}

func (i *IO) limit() cgroup.IO {
	return cgroup.IO{Device: i.Device, ReadBPS: i.ReadBPS, WriteBPS: i.WriteBPS, ReadIOPS: i.ReadIOPS, WriteIOPS: i.WriteIOPS, Weight: uint64(i.Weight)}
}

// Prepare finds the device.
func (i *IO) Prepare(t *Txn) error {
	major, minor, err := blockDevice(i.Device)
	if err != nil {
		return err
	}
	for n := range t.plan.Group.Limits.IO {
		if l := &t.plan.Group.Limits.IO[n]; l.Device == i.Device {
			l.Major, l.Minor = major, minor
		}
	}
	return nil
}

func (i *IO) set(m *Machine) error {
	l := i.limit()
	var err error
	if l.Major, l.Minor, err = blockDevice(i.Device); err != nil {
		return err
	}
	return m.limit(cgroup.Limits{IO: []cgroup.IO{l}})
}

func blockDevice(name string) (major, minor int64, err error) {
	var a, b int64
	if n, _ := fmt.Sscanf(name, "%d:%d", &a, &b); n == 2 && name == fmt.Sprintf("%d:%d", a, b) {
		if _, err := os.Stat(fmt.Sprintf("/sys/dev/block/%d:%d", a, b)); err != nil {
			return 0, 0, bad("io", "device", name, "a block device of this host (see /sys/dev/block)")
		}
		return a, b, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return 0, 0, bad("io", "device", name, "a block device of this host: "+err.Error())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, bad("io", "device", name, "a block device: this is none")
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// Children is how many machines a machine may rfork.
type Children struct{ Max int }

// Kind is "children".
func (*Children) Kind() string { return "children" }

// Mode is shared.
func (*Children) Mode() Mode { return Shared }

// Validate checks the number.
func (c *Children) Validate() error {
	if c.Max < 0 || c.Max > 4096 {
		return bad("children", "max", c.Max, "0 to 4096")
	}
	return nil
}

func (c *Children) set(m *Machine) error {
	if had, _ := m.Spec().find("children").(*Children); m.group.Unified && (had == nil || had.Max == 0) {
		return bad("children", "max", nil, "on cgroup v2 a machine that is to have machines must be made with children(max), since its own processes then live one group further down")
	}
	return nil
}

// offspring lists the machines that m has. A handle loaded by name counts them in
// the lab's directory, for no lab of this process knows them.
func (m *Machine) offspring() ([]string, error) {
	list := m.Children()
	if m.isHost() || m.lab != nil {
		return list, nil
	}
	names, err := m.host.dirs(filepath.Dir(m.Dir()))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if slices.Contains(list, name) {
			continue // made by this handle
		}
		c := with(&Spec{Name: name}, &Machine{host: m.host, labID: m.labID, pidfd: -1})
		var r record
		if err := c.readRecord(&r); errors.Is(err, fs.ErrNotExist) {
			continue // half made, or half gone
		} else if err != nil {
			return nil, err
		}
		if r.Parent == m.Name() {
			list = append(list, name)
		}
	}
	return list, nil
}

// room refuses a machine, adopted already, for which there is no place
// beside those that a parent loaded by name has.
func (m *Machine) room() error {
	if m.isHost() || m.lab != nil {
		return nil
	}
	list, err := m.offspring()
	if err != nil {
		return err
	}
	limit := 0
	if c, ok := m.Spec().find("children").(*Children); ok {
		limit = c.Max
	}
	if len(list) > limit {
		return &ParamError{Kind: "rfork", Got: fmt.Sprintf("machine %d of %s", len(list), m.Name()), Want: fmt.Sprintf("at most %d", limit),
			Mend: fmt.Sprintf("make %s with children(%d)", m.Name(), len(list))}
	}
	return nil
}

// limit changes limits of the machine's control group. On v1 that may mean
// another hierarchy to be in: written ahead like all that is made.
func (m *Machine) limit(l cgroup.Limits) error {
	if m.group == nil {
		return bad("set", "", nil, "the host has no limits of msh's to set")
	}
	if err := m.host.checkLimits(l); err != nil {
		return err
	}
	if missing, _ := m.group.Missing(l); len(missing) > 0 {
		if err := m.parent.shelter(missing); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if missing, _ := m.group.Missing(l); len(missing) > 0 {
		if err := m.grow(missing, l); err != nil {
			return err
		}
	}
	return m.group.Update(l)
}

// grow puts the machine into v1 hierarchies that it is not in. The caller has m
// to itself or holds m.mu, and saves it.
func (m *Machine) grow(controllers []string, l cgroup.Limits) error {
	grown := *m.group
	grown.V1 = slices.Concat(grown.V1, controllers)
	if err := m.write("cgroup", grown); err != nil {
		return err
	}
	return m.group.Grow(controllers, l)
}

// shelter puts the machine and those it is in into the v1 hierarchies that a
// machine inside it is going to use: its group stands below theirs.
func (m *Machine) shelter(controllers []string) error {
	if m.isHost() || m.group.Unified {
		return nil
	}
	if err := m.parent.shelter(controllers); err != nil {
		return err
	}
	if err := m.refresh(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	missing := slices.DeleteFunc(slices.Clone(controllers), func(c string) bool { return slices.Contains(m.group.V1, c) })
	if len(missing) == 0 {
		return nil
	}
	if err := m.grow(missing, cgroup.Limits{}); err != nil {
		return fmt.Errorf("put %s into cgroup v1's %s: %w", m.Name(), strings.Join(missing, ", "), err)
	}
	return m.save()
}

// checkLimits says clearly which controller is missing, and the mend.
func (h *Host) checkLimits(l cgroup.Limits) error {
	err := h.Cgroup.Check(l)
	var lack *cgroup.NotDelegated
	if errors.As(err, &lack) {
		return unsupported(delegate, "%s: %v", kindOfController(lack.Controller), err)
	}
	if errors.Is(err, cgroup.ErrMissing) {
		return unsupported("`msh doctor` tells which controllers this host has", "%v", err)
	}
	return err
}

// delegate is how a user comes by a control group with controllers.
const delegate = "systemd-run --user --scope -p Delegate=yes msh … has systemd give this user a control group (cgroup v2); without limits msh needs none"

// kindOfController is the kind of resource whose limits a controller keeps.
func kindOfController(name string) string {
	switch name {
	case "blkio":
		return "io"
	case "cpuset":
		return "cpu: set"
	}
	return name
}
