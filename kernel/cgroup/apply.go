package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
)

// ownerMark is the extended attribute that says whose a group is: the ledger
// knows a path before it is made, and somebody else may have it. A user cannot
// set the trusted ones.
const (
	ownerMark = "trusted.msh.owner"
	userMark  = "user.msh.owner"
)

func (g *Group) mark() string {
	if g.Base != "" {
		return userMark
	}
	return ownerMark
}

// mine tells whether the group's first directory, with which all begin and end,
// is there and this machine's.
func (g *Group) mine() (bool, error) {
	if err := g.ready(); err != nil {
		return false, err
	}
	dir := g.Dirs()[0]
	var mark [512]byte
	n, err := unix.Getxattr(dir, g.mark(), mark[:])
	switch {
	case err == unix.ENOENT:
		return false, nil
	case err == unix.ENODATA:
		// Its maker died before it could mark it, and so before anything was in
		// it; else it is not msh's, and in use.
		unix.Rmdir(dir)
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the mark of %s: %w", dir, err)
	}
	return string(mark[:n]) == g.Owner, nil
}

// Make makes the group's directories and sets its limits. Each directory must be
// new: one that is there belongs to somebody else.
func (g *Group) Make() error {
	if err := g.ready(); err != nil {
		return err
	}
	for i, d := range g.Dirs() {
		if err := unix.Mkdir(d, 0o755); err != nil {
			if errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("cgroup %s is there already and not this machine's: it is another msh's (MSH_STATE) or a leftover of none; choose another name (--lab)", g.Names()[i])
			}
			return fmt.Errorf("mkdir %s: %w", d, err)
		}
		if i == 0 {
			if err := unix.Setxattr(d, g.mark(), []byte(g.Owner), unix.XATTR_CREATE); err != nil {
				return fmt.Errorf("mark %s: %w", d, err)
			}
		}
	}
	return g.apply(g.Limits)
}

// Update changes the limits of a group that may have processes. What l does not
// name stays as it is. Hierarchies of v1 that the group was not in so far must
// have been made by Grow.
func (g *Group) Update(l Limits) error {
	if err := g.apply(l); err != nil {
		return err
	}
	g.Limits = g.Limits.With(l)
	return nil
}

// With returns the limits with what l names changed.
func (l Limits) With(n Limits) Limits {
	if n.CPUQuota != 0 {
		l.CPUQuota = n.CPUQuota
	}
	if n.CPUWeight != 0 {
		l.CPUWeight = n.CPUWeight
	}
	if n.CPUs != "" {
		l.CPUs = n.CPUs
	}
	if n.Exclusive {
		l.Exclusive = true
	}
	for _, p := range []struct{ to, from **int64 }{{&l.MemoryMax, &n.MemoryMax}, {&l.MemoryHigh, &n.MemoryHigh}, {&l.MemoryReserve, &n.MemoryReserve}, {&l.Swap, &n.Swap}} {
		if *p.from != nil {
			*p.to = *p.from
		}
	}
	if n.Pids != 0 {
		l.Pids = n.Pids
	}
	l.IO = slices.Clone(l.IO)
	for _, io := range n.IO {
		same := func(o IO) bool { return o.Major == io.Major && o.Minor == io.Minor }
		if i := slices.IndexFunc(l.IO, same); i >= 0 {
			l.IO[i] = io
		} else {
			l.IO = append(l.IO, io)
		}
	}
	return l
}

// Missing lists the v1 directories that the group lacks for those limits; Grow
// makes them and moves the processes over.
func (g *Group) Missing(l Limits) (controllers, dirs []string) {
	if g.Unified {
		return nil, nil
	}
	for _, c := range l.controllers() {
		if !slices.Contains(g.V1, c) {
			controllers = append(controllers, c)
			dirs = append(dirs, g.v1dir(c))
		}
	}
	return controllers, dirs
}

// Grow puts the group into more v1 hierarchies, with its processes. The groups
// above it must be in them. Of l the CPUs are needed at once.
func (g *Group) Grow(controllers []string, l Limits) error {
	for _, c := range controllers {
		d := g.v1dir(c)
		// It may be there: whoever was growing the group before may have died of it.
		if err := unix.Mkdir(d, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("mkdir %s: %w", d, err)
		}
		g.V1 = append(g.V1, c)
		if c == "cpuset" { // must have CPUs and memory nodes before it takes tasks
			if err := g.cpusetV1(l.CPUs); err != nil {
				return err
			}
		}
	}
	slices.Sort(g.V1)
	// A process that forks meanwhile leaves its child behind: until none is left.
	for {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		moved := false
		for _, c := range controllers {
			there, err := pidsIn(g.v1dir(c))
			if err != nil {
				return err
			}
			for _, pid := range pids {
				if slices.Contains(there, pid) {
					continue
				}
				moved = true
				err := os.WriteFile(filepath.Join(g.v1dir(c), "cgroup.procs"), fmt.Append(nil, pid), 0)
				if err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("move %d into %s: %w", pid, g.v1dir(c), err)
				}
			}
		}
		if !moved {
			return nil
		}
	}
}

func (g *Group) apply(l Limits) error {
	if g.Unified {
		return g.applyV2(l)
	}
	return g.applyV1(l)
}

func (g *Group) applyV1(l Limits) error {
	r := l.v1(g.Limits)
	for _, c := range l.controllers() {
		var err error
		switch c {
		case "cpu":
			err = cgroup1.NewCpu(Root).Update(g.Path, r)
		case "cpuset":
			err = g.cpusetV1(l.CPUs)
			if err == nil && l.Exclusive {
				err = rawfile.Write(filepath.Join(g.v1dir(c), "cpuset.cpu_exclusive"), "1")
			}
		case "memory":
			if err = g.raiseSwapV1(r.Memory); err == nil {
				err = cgroup1.NewMemory(Root, cgroup1.OptionalSwap()).Update(g.Path, r)
			}
		case "pids":
			err = cgroup1.NewPids(Root).Update(g.Path, r)
		case "blkio":
			if err = cgroup1.NewBlkio(Root).Update(g.Path, r); err == nil {
				err = g.weigh(g.v1dir(c), l.IO, "blkio.bfq.weight_device")
			}
		}
		if err != nil {
			return explain(c, l, err)
		}
	}
	return nil
}

// cpusetV1 gives the group its CPUs, "" for its parent's, before containerd/cgroups
// fills in what is empty: it would copy the parent's CPUs first, and those the
// kernel refuses where a sister has one of them exclusively.
func (g *Group) cpusetV1(cpus string) error {
	if cpus != "" {
		if err := rawfile.Write(filepath.Join(g.v1dir("cpuset"), "cpuset.cpus"), cpus); err != nil {
			return err
		}
	}
	return cgroup1.NewCpuset(Root).Create(g.Path, &specs.LinuxResources{})
}

// CPUs are those that the group's v1 cpuset has now, whatever its limits say.
func (g *Group) CPUs() ([]int, error) {
	b, err := rawfile.Read(filepath.Join(g.v1dir("cpuset"), "cpuset.cpus"))
	if err != nil {
		return nil, err
	}
	return ParseCPUs(string(b))
}

// raiseSwapV1 raises the sum of memory and swap ahead of the limit on memory,
// which may never be above it. containerd/cgroups means to, but has the two in
// another order since it knows a soft limit.
func (g *Group) raiseSwapV1(m *specs.LinuxMemory) error {
	if m == nil || m.Swap == nil {
		return nil
	}
	b, err := rawfile.Read(filepath.Join(g.v1dir("memory"), "memory.memsw.limit_in_bytes"))
	if err != nil {
		return err
	}
	if now, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil || now >= *m.Swap {
		return err
	}
	return rawfile.Write(filepath.Join(g.v1dir("memory"), "memory.memsw.limit_in_bytes"), strconv.FormatInt(*m.Swap, 10))
}

// weigh writes the devices' weights to the first of these files whose scheduler
// the device has: iocost takes 1 to 10000, BFQ 1 to 1000.
func (g *Group) weigh(dir string, list []IO, files ...string) error {
	for _, io := range list {
		if io.Weight == 0 {
			continue
		}
		err := error(unix.ENOENT)
		for _, file := range files {
			w := io.Weight
			if strings.Contains(file, "bfq") {
				w = min(w, 1000)
			}
			err = rawfile.Write(filepath.Join(dir, file), fmt.Sprintf("%d:%d %d", io.Major, io.Minor, w))
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EOPNOTSUPP) {
				break
			}
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("io: weight: %w: %s has a scheduler without weights: choose bfq in /sys/block/*/queue/scheduler", ErrMissing, io.Device)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l Limits) v1(had Limits) *specs.LinuxResources {
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{}}
	if l.CPUQuota != 0 {
		q, p := l.quota()
		r.CPU.Quota, r.CPU.Period = &q, &p
	}
	if l.CPUWeight != 0 {
		// The kernel's own scale: weight 100 is 1024 shares.
		shares := max(2, l.CPUWeight*1024/100)
		r.CPU.Shares = &shares
	}
	if l.MemoryMax != nil || l.Swap != nil {
		r.Memory = &specs.LinuxMemory{Limit: l.MemoryMax}
		// v1 counts memory and swap together.
		all := had.With(l)
		if all.Swap != nil && all.MemoryMax != nil {
			sum := *all.MemoryMax + *all.Swap
			r.Memory.Swap = &sum
			r.Memory.Limit = all.MemoryMax
		}
	}
	if l.Pids != 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.Pids}
	}
	if len(l.IO) > 0 {
		r.BlockIO = &specs.LinuxBlockIO{}
		for _, io := range l.IO {
			add := func(to *[]specs.LinuxThrottleDevice, rate uint64) {
				if rate != 0 {
					d := specs.LinuxThrottleDevice{Rate: rate}
					d.Major, d.Minor = io.Major, io.Minor
					*to = append(*to, d)
				}
			}
			add(&r.BlockIO.ThrottleReadBpsDevice, io.ReadBPS)
			add(&r.BlockIO.ThrottleWriteBpsDevice, io.WriteBPS)
			add(&r.BlockIO.ThrottleReadIOPSDevice, io.ReadIOPS)
			add(&r.BlockIO.ThrottleWriteIOPSDevice, io.WriteIOPS)
		}
	}
	return r
}

func (g *Group) applyV2(l Limits) error {
	m, err := g.v2()
	if err != nil {
		return err
	}
	need := l.controllers()
	for i, c := range need {
		if c == "blkio" {
			need[i] = "io"
		}
	}
	if g.Base != "" {
		return g.applyUser(m, need, l)
	}
	// Counters come with the controllers: those stats() reads are always wanted.
	for _, c := range []string{"cpu", "memory", "pids", "io"} {
		if !slices.Contains(need, c) {
			need = append(need, c)
		}
	}
	if err := g.enable(m, need); err != nil {
		return err
	}
	return g.updateV2(m, l)
}

func (g *Group) updateV2(m *cgroup2.Manager, l Limits) error {
	if err := m.Update(l.v2()); err != nil {
		return explain("", l, err)
	}
	if err := g.weigh(g.dir(g.Tracker), l.IO, "io.weight", "io.bfq.weight"); err != nil {
		return explain("io", l, err)
	}
	if l.Exclusive {
		return g.partition(l.CPUs)
	}
	return nil
}

// enable passes controllers down to the group, asking the kernel only for those
// that are not yet passed down to it.
func (g *Group) enable(m *cgroup2.Manager, need []string) error {
	have, err := m.Controllers()
	if err != nil {
		return err
	}
	root, err := m.RootControllers()
	if err != nil {
		return err
	}
	need = slices.DeleteFunc(need, func(c string) bool { return slices.Contains(have, c) || !slices.Contains(root, c) })
	if len(need) == 0 {
		return nil
	}
	return m.ToggleControllers(need, cgroup2.Enable)
}

func (l Limits) v2() *cgroup2.Resources {
	r := &cgroup2.Resources{}
	if l.CPUQuota != 0 || l.CPUWeight != 0 || l.CPUs != "" {
		r.CPU = &cgroup2.CPU{Cpus: l.CPUs}
		if l.CPUQuota != 0 {
			q, p := l.quota()
			r.CPU.Max = cgroup2.NewCPUMax(&q, &p)
		}
		if l.CPUWeight != 0 {
			r.CPU.Weight = &l.CPUWeight
		}
	}
	if l.MemoryMax != nil || l.MemoryHigh != nil || l.MemoryReserve != nil || l.Swap != nil {
		r.Memory = &cgroup2.Memory{Max: l.MemoryMax, High: l.MemoryHigh, Min: l.MemoryReserve, Swap: l.Swap}
	}
	if l.Pids != 0 {
		r.Pids = &cgroup2.Pids{Max: l.Pids}
	}
	if len(l.IO) > 0 {
		r.IO = &cgroup2.IO{}
		for _, io := range l.IO {
			for _, e := range []struct {
				t cgroup2.IOType
				v uint64
			}{{cgroup2.ReadBPS, io.ReadBPS}, {cgroup2.WriteBPS, io.WriteBPS}, {cgroup2.ReadIOPS, io.ReadIOPS}, {cgroup2.WriteIOPS, io.WriteIOPS}} {
				if e.v != 0 {
					r.IO.Max = append(r.IO.Max, cgroup2.Entry{Type: e.t, Major: io.Major, Minor: io.Minor, Rate: e.v})
				}
			}
		}
	}
	return r
}

// partition makes the group a partition root: the kernel takes its CPUs from
// everybody else. Whether it did is only told when the file is read back.
func (g *Group) partition(cpus string) error {
	d := g.dir(g.Tracker)
	// Since 6.7 a partition need not hang under another one, if its CPUs are
	// declared exclusive all the way down; older kernels lack the file.
	if err := rawfile.Write(filepath.Join(d, "cpuset.cpus.exclusive"), cpus); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("cpu: set: %q: another group has one of those CPUs exclusively: %w", cpus, err)
	}
	file := filepath.Join(d, "cpuset.cpus.partition")
	if err := rawfile.Write(file, "root"); err != nil {
		return fmt.Errorf("make %s a partition: %w", d, err)
	}
	b, err := rawfile.Read(file)
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(b)); got != "root" {
		return fmt.Errorf("cpu: exclusive: the kernel gives CPUs %s to nobody alone: %s", cpus, got)
	}
	return nil
}

// explain turns the kernel's answer to a limit into what the user can act on.
func explain(controller string, l Limits, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY) && controller == "memory":
		return fmt.Errorf("memory: max: less than is in use already: %w", err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("io: device: not a whole disk that the kernel can limit: %w", err)
	case errors.Is(err, unix.EINVAL) && controller == "cpuset" && l.Exclusive:
		return fmt.Errorf("cpu: exclusive: CPUs %s are in another cpuset (see %s/cpuset/*/cpuset.cpus): %w", l.CPUs, Root, err)
	case errors.Is(err, unix.EINVAL) && controller == "cpu" && l.CPUQuota != 0: // on v2 the lesser one counts
		return fmt.Errorf("cpu: quota: %g is more than the machine around it has, or less than one inside it: %w", l.CPUQuota, err)
	case errors.Is(err, unix.EINVAL) && controller == "cpuset":
		return fmt.Errorf("cpu: set: CPUs %s: not there, or another machine has one of them exclusively: %w", l.CPUs, err)
	}
	return err
}
