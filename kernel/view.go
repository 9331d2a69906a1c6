package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/stage0"
)

// ProcView has files of /proc and /sys tell a machine's own limits rather than the
// host's: those of its CPUs are msh's own, laid out when the machine is made and again
// by Set; the rest is lxcfs's, where that is mounted, and kept by it. Without lxcfs what
// does not change by itself is msh's own as well.
//
// lxcfs 5.0 tells of CPUs only what cpuset allows, numbered from 0; with --enable-cfs it
// counts a quota, too, but looks for it in the group that v1's cpuset has the machine in,
// and /proc/stat never follows. A machine's cpu(quota=) would not be seen.
type ProcView struct{}

// Kind is "view".
func (*ProcView) Kind() string { return "view" }

// Mode is new.
func (*ProcView) Mode() Mode { return New }

// Validate has nothing to check.
func (*ProcView) Validate() error { return nil }

// lxcfsDir is where lxcfs(1) is mounted in every distribution.
const lxcfsDir = "/var/lib/lxcfs"

// viewFile is one of the files. Text lays out msh's own, of a machine's parent and spec;
// it is nil where only lxcfs has it.
type viewFile struct {
	Path string // in the machine
	Own  bool   // whether it is msh's even where lxcfs is
	Text func(*Machine, *Spec) ([]byte, error)
}

var viewFiles = []viewFile{
	{"/proc/cpuinfo", true, viewCPUInfo},
	{"/proc/meminfo", false, viewMemInfo},
	{"/proc/stat", false, nil},
	{"/proc/uptime", false, nil},
	{"/proc/loadavg", false, nil},
	{"/proc/swaps", false, nil},
	{"/sys/devices/system/cpu/online", true, viewOnline},
}

func (f viewFile) name() string  { return "view." + filepath.Base(f.Path) }
func (f viewFile) fd() stage0.FD { return stage0.FD(f.name()) }
func (f viewFile) lxcfs() string { return lxcfsDir + f.Path }

// lxcfs tells whether it is running: its directory is a mount of FUSE then, and answers.
// One that has died leaves a mount that does not (ENOTCONN). One that is stopped would
// hold whoever asks, and no signal but KILL ends that: so a thread of its own asks.
func lxcfs(ctx context.Context) (bool, error) {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		err := unix.Statfs(lxcfsDir, &st)
		if err == nil && st.Type != unix.FUSE_SUPER_MAGIC {
			err = unix.ENOENT
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		if err == unix.ENOTCONN {
			return false, errLxcfsDead
		}
		return err == nil, nil
	case <-ctx.Done():
		return false, ctx.Err()
	case <-time.After(lxcfsPatience):
		return false, withHint(fmt.Errorf("view: lxcfs, which is mounted on %s, has not answered for %v", lxcfsDir, lxcfsPatience), "start lxcfs again; once it has ended, view() shows files of msh's own")
	}
}

var errLxcfsDead = fmt.Errorf("lxcfs has died: unmount %s and start it again", lxcfsDir)

// lxcfsPatience is how long lxcfs may take to say that it is there.
var lxcfsPatience = 5 * time.Second

// lxcfs tells the transaction whether it is running; a dead one is not.
func (t *Txn) lxcfs() (bool, error) {
	l, err := lxcfs(t.ctx)
	if err == errLxcfsDead {
		err = nil
	}
	return l, err
}

// Plan wants a /proc of the machine's own to put the files into.
func (v *ProcView) Plan(p *Plan) error {
	if !p.Spec.Has("pidspace") {
		return &ParamError{Kind: "view", Got: "no pidspace", Want: "a /proc of the machine's own to show it in", Mend: "add pidspace() to resources"}
	}
	p.Table = true
	return nil
}

// Enter mounts the files. One that this kernel has not is left out, and one that only
// lxcfs has where there is no lxcfs as the machine is made.
func (v *ProcView) Enter(s *Steps) error {
	for _, f := range viewFiles {
		words, flags := "show the machine's own "+f.Path, stage0.Flags(0)
		if f.Text == nil {
			words, flags = words+", where lxcfs has it", stage0.MayFail
		}
		at := s.find(f.Path, stage0.SkipNext, "")
		s.Call(words, flags, unix.SYS_MOVE_MOUNT, f.fd(), "", at, "", moveFromHandle|unix.MOVE_MOUNT_T_EMPTY_PATH)
	}
	return nil
}

// openView opens the files as mounts that are in no table yet. What stands for one that
// is not had is no mount.
func (t *Txn) openView(b *birth) error {
	l, err := t.lxcfs()
	if err != nil {
		return err
	}
	for _, f := range viewFiles {
		if f.Text == nil && !l {
			b.files[f.fd()], err = nothing()
		} else {
			b.files[f.fd()], err = t.viewTree(f, l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// viewTree opens one of them.
func (t *Txn) viewTree(f viewFile, l bool) (int, error) {
	path := f.lxcfs()
	if _, err := os.Stat(path); !l || f.Own || err != nil {
		if f.Text == nil {
			path = "/proc/" + filepath.Base(f.Path) // what the machine would see anyway
		} else if path, err = writeView(t.dir, f, t.parent, t.plan.Spec); err != nil {
			return -1, err
		}
	}
	fd, err := t.own(readOnlyTree(path))
	if err != nil {
		return -1, fmt.Errorf("view: %w", err)
	}
	return fd, nil
}

// writeView lays a file out in a machine's directory.
func writeView(dir string, f viewFile, parent *Machine, s *Spec) (path string, err error) {
	text, err := f.Text(parent, s)
	if err != nil {
		return "", fmt.Errorf("view: lay out %s: %w", f.Path, err)
	}
	path = filepath.Join(dir, f.name())
	if err := os.WriteFile(path, text, 0o444); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o444) // whatever msh's umask
}

// review lays out anew what a change of the machine's limits changes, for it and for
// those inside it.
func (m *Machine) review() error {
	if m.lab == nil || !slices.ContainsFunc(m.lab.Machines(), func(c *Machine) bool { return c.Spec().Has("view") }) {
		return nil // a handle by name is never set
	}
	// One writer at a time. A lock on the file could be held by its readers, too.
	unlock, err := m.host.book.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, c := range m.lab.Machines() {
		if c.within(m.ID()) {
			errs = append(errs, c.relay())
		}
	}
	return errors.Join(errs...)
}

// relay lays out anew the files of a machine that are msh's, whoever has begun or ended
// to run lxcfs since it was made: in place, for they are mounted, and so that a reader
// sees no empty one. The caller holds the book's lock.
func (m *Machine) relay() error {
	if !m.Spec().Has("view") {
		return nil
	}
	for _, f := range viewFiles {
		file, err := os.OpenFile(filepath.Join(m.Dir(), f.name()), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is lxcfs's, or the machine is being destroyed
		}
		if err != nil {
			return fmt.Errorf("view: %w", err)
		}
		err = f.rewrite(file, m)
		file.Close()
		if err != nil {
			return fmt.Errorf("view: lay out %s: %w", f.Path, err)
		}
	}
	return nil
}

func (f viewFile) rewrite(file *os.File, m *Machine) error {
	text, err := f.Text(m.parent, m.Spec())
	if err != nil {
		return err
	}
	if _, err := file.WriteAt(text, 0); err != nil {
		return err
	}
	return file.Truncate(int64(len(text)))
}

// viewCPUs are the CPUs that a machine sees: those it may run on, and of these no more
// than its quota fills, or that of a machine around it.
func viewCPUs(parent *Machine, s *Spec) ([]int, error) {
	c, _ := s.find("cpu").(*CPU)
	var cpus []int
	var err error
	if c != nil && c.Set != nil {
		cpus = slices.Clone(c.Set)
	} else if cpus, err = parent.freeCPUs(); err != nil {
		return nil, err
	}
	for m := parent; ; m = m.parent {
		if c != nil && c.Quota != 0 {
			cpus = cpus[:min(len(cpus), max(1, int(math.Ceil(c.Quota/100))))]
		}
		if m.isHost() {
			return cpus, nil
		}
		c, _ = m.Spec().find("cpu").(*CPU)
	}
}

func viewOnline(parent *Machine, s *Spec) ([]byte, error) {
	cpus, err := viewCPUs(parent, s)
	return []byte(cgroup.FormatCPUs(cpus) + "\n"), err
}

// viewCPUInfo is the host's /proc/cpuinfo with the paragraphs of those CPUs alone.
func viewCPUInfo(parent *Machine, s *Spec) ([]byte, error) {
	cpus, err := viewCPUs(parent, s)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, paragraph := range bytes.SplitAfter(b, []byte("\n\n")) {
		number := -1
		if key, rest, ok := strings.Cut(string(paragraph), ":"); ok && strings.TrimSpace(key) == "processor" {
			line, _, _ := strings.Cut(rest, "\n")
			number, _ = strconv.Atoi(strings.TrimSpace(line))
		}
		if number < 0 || slices.Contains(cpus, number) {
			out.Write(paragraph)
		}
	}
	return out.Bytes(), nil
}

// viewMemInfo is the host's /proc/meminfo with no more memory than the machine may
// have, and of what is free no more than that. What the kernel counts of itself stays.
func viewMemInfo(parent *Machine, s *Spec) ([]byte, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	most, swap := int64(math.MaxInt64), int64(math.MaxInt64)
	for m := parent; ; m = m.parent {
		if l, ok := s.find("memory").(*Memory); ok {
			if l.Max != nil {
				most = min(most, *l.Max)
			}
			if l.Swap != nil {
				swap = min(swap, *l.Swap)
			}
		}
		if m == nil || m.isHost() {
			break
		}
		s = m.Spec()
	}
	var out bytes.Buffer
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		bound := most
		if strings.HasPrefix(name, "Swap") {
			bound = swap
		}
		if err != nil || n <= bound>>10 || !strings.HasSuffix(strings.TrimSpace(rest), "kB") || strings.HasPrefix(name, "Vmalloc") || strings.HasPrefix(name, "DirectMap") {
			out.WriteString(line)
			continue
		}
		fmt.Fprintf(&out, "%-15s %8d kB\n", name+":", bound>>10)
	}
	return out.Bytes(), nil
}

func listView(*View) ([]Available, error) {
	a := Available{Name: "view", Available: true, Detail: "cpuinfo, meminfo, cpu/online: as they are when the machine is made or set; for stat, uptime and loadavg install lxcfs"}
	switch l, err := lxcfs(context.Background()); {
	case l:
		a.Detail = "cpuinfo, cpu/online: as they are when the machine is made or set; meminfo, stat, uptime, loadavg, swaps, by lxcfs"
	case err == errLxcfsDead:
		a.Detail = "cpuinfo, meminfo, cpu/online: as they are when the machine is made or set; stat, uptime and loadavg are the host's: " + err.Error()
	case err != nil:
		a.Detail = "cpuinfo, cpu/online, meminfo"
		a.refuse(err)
	}
	return []Available{a}, nil
}
