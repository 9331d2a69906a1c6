package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
	"msh/kernel/criu"
	"msh/kernel/netx"
)

// savedState is what of a machine is neither in its Spec, nor in its files, nor in
// its processes: the section "state".
type savedState struct {
	Processes int               // how many there were
	Frozen    bool              `json:",omitempty"` // by freeze()
	Files     []savedFile       `json:",omitempty"` // that processes have open, and that are the host's
	Mounts    []savedMount      `json:",omitempty"` // that are the host's
	Used      []usedFile        `json:",omitempty"` // files of the lower layer
	IDs       []IDMap           `json:",omitempty"` // of the uidspace
	Confined  *Confinement      `json:",omitempty"` // all that security() has been set to, one after the other
	Nets      []*netx.NIC       `json:",omitempty"` // its interfaces, as they are now
	Sysctls   map[string]string `json:",omitempty"` // of its network
	InNet     bool              `json:",omitempty"` // criu stood in its network when it saved it
}

// savedFile is a file of the host's that a process has open: /dev/null, or a log.
type savedFile struct {
	Key   string // criu's
	Log   string `json:",omitempty"` // the name of the log in the machine's directory; "" is /dev/null
	Flags int    // it was opened with, open(2)
	Mode  uint32 `json:",omitempty"` // of the log: criu compares it
}

// savedMount is a place where something of the host's, or of msh's, is mounted.
type savedMount struct {
	Label string // "hosts", "tree.NAME", "dev.NAME", "view.NAME", "uname.NAME", or "mount.N", "device.N" for the Nth resource of the Spec
	Path  string // in the machine
	// Options of a tmpfs, names and values.
	Options []string `json:",omitempty"`
}

// The sections of a machine beside those of package checkpoint.
const (
	sectionState = "state"
	sectionLogs  = "logs"
	// sectionPassed has nothing in it: memory comes in another way, and what else is
	// written tells nothing more.
	sectionPassed = "passed"
)

// maxState bounds what is read of the two, in bytes.
const maxState = 64 << 20

func (v *saving) writeState() error {
	if v.network != nil {
		if err := <-v.network; err != nil {
			return err
		}
	}
	v.state.Processes = len(v.pids)
	b, err := json.Marshal(&v.state)
	if err != nil {
		return err
	}
	return v.writeSection(sectionState, b)
}

func (v *saving) writeSection(name string, b []byte) error {
	out, err := v.w.Stream(v.ctx, v.m.Name(), name)
	if err != nil {
		return err
	}
	if _, err := out.Write(b); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// writeLogs saves what init and spawned programs have written, by the file's name.
func (v *saving) writeLogs() error {
	logs, err := v.m.Logs()
	if err != nil || len(logs) == 0 {
		return err
	}
	b, err := json.Marshal(logs)
	if err != nil {
		return err
	}
	return v.writeSection(sectionLogs, b)
}

// readSection decodes a section that one of those two wrote.
func readSection(r io.Reader, into any) error {
	b, err := io.ReadAll(io.LimitReader(r, maxState+1))
	if err != nil {
		return err
	}
	if len(b) > maxState {
		return fmt.Errorf("it has more than %d bytes: %w", maxState, checkpoint.ErrHostile)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%v: %w", err, checkpoint.ErrHostile)
	}
	return nil
}

// manifest lays out what the snapshot says of itself.
func (s *snapshot) manifest() (*checkpoint.Manifest, error) {
	first := s.all[0].m
	m := &checkpoint.Manifest{Msh: Version(), Created: time.Now().UTC().Truncate(time.Second), Lab: first.labID, Host: hostFacts()}
	m.Host.Cgroup = 1
	if first.host.Cgroup.Unified {
		m.Host.Cgroup = 2
	}
	for _, v := range s.all {
		spec, err := json.Marshal(v.m.Spec())
		if err != nil {
			return nil, err
		}
		c := checkpoint.Machine{Name: v.m.Name(), Mode: checkpoint.MemoryAndFiles, Spec: spec}
		if s.o.FilesOnly {
			c.Mode, c.Why = checkpoint.FilesOnly, "files_only was asked for"
		} else {
			c.Needs.CRIU = s.criu.Version.String()
		}
		if c.Needs.Bases, err = v.bases(); err != nil {
			return nil, err
		}
		m.Machines = append(m.Machines, c)
	}
	m.WholeLab = s.o.Whole
	nets, err := s.networks()
	if err == nil && len(nets) > 0 {
		m.Networks, err = json.Marshal(nets)
	}
	if err != nil {
		return nil, err
	}
	cables, err := s.cables()
	if err == nil && len(cables) > 0 {
		m.Cables, err = json.Marshal(cables)
	}
	return m, err
}

// vnetSpec is what the network of an interface was asked to be.
func (m *Machine) vnetSpec(n *Netif) (*VNetSpec, error) {
	if m.lab != nil {
		if v := m.lab.findVNet(n.VNet); v != nil {
			return v.spec, nil
		}
	}
	r, err := readNet(m.netDir(n.VNet))
	if err == nil && (r == nil || r.Spec == nil) {
		err = errNoNet
	}
	if err != nil {
		return nil, fmt.Errorf("vnet %s: %w", n.VNet, err)
	}
	return r.Spec, nil
}

// netDir is where a network of the machine's lab has its ledger.
func (m *Machine) netDir(name string) string {
	return filepath.Join(m.host.State, m.labID, netsDir, name)
}

// look looks through the machine's processes and mounts.
func (v *saving) look() error {
	m := v.m
	var err error
	if v.upper, err = m.openUpper(); err != nil {
		return err
	}
	v.state.Frozen = m.State() == "frozen"
	if m.self.IDs != nil {
		v.state.IDs = m.self.IDs
	}
	if v.o.FilesOnly {
		return nil
	}
	v.state.Confined = m.confinement()
	if v.state.Mounts, err = m.savedMounts(); err != nil {
		return err
	}
	all, err := m.group.Pids()
	if err != nil {
		return err
	}
	v.pids = append([]int{m.pid}, slices.DeleteFunc(all, func(p int) bool { return p == m.pid })...)
	strange := strangers(v.pids)
	v.pids = slices.DeleteFunc(v.pids, isShepherd) // who will be gone
	bounds := criu.Bounds{}
	for _, s := range v.state.Mounts {
		bounds.Mounts = append(bounds.Mounts, s.Path)
	}
	v.state.Files = nil
	for _, f := range criu.FilesOutside(v.pids) {
		saved := savedFile{Key: f.Key, Flags: f.Flags}
		switch base, isLog := strings.CutPrefix(f.Path, filepath.Join(m.Dir(), logsDir)+"/"); {
		case f.Path == "/dev/null":
		case isLog && strings.HasSuffix(base, ".log") && !strings.Contains(base, "/"):
			saved.Log = base
			var st unix.Stat_t
			if err := unix.Stat(f.Path, &st); err != nil {
				return fmt.Errorf("look at the log %s: %w", f.Path, err)
			}
			saved.Mode = st.Mode & 0o7777
		default:
			continue // Check names it
		}
		v.state.Files = append(v.state.Files, saved)
		bounds.Files = append(bounds.Files, f.Key)
	}
	problems := append(strange, criu.Check(v.pids, bounds)...)
	if len(problems) > 0 {
		return &SnapshotError{m.Name(), problems}
	}
	return nil
}

// savedMounts are the places where something of the host's is mounted.
func (m *Machine) savedMounts() ([]savedMount, error) {
	lines, err := m.mounts()
	if err != nil {
		return nil, err
	}
	at := map[string]bool{}
	for _, l := range lines {
		at[l.path] = true
	}
	all := m.savedTmpfs(lines)
	add := func(label, path string) {
		if at[path] && !slices.ContainsFunc(all, func(s savedMount) bool { return s.Path == path }) {
			all = append(all, savedMount{Label: label, Path: path})
		}
	}
	for i, r := range m.Spec().Resources {
		var target string
		switch r := r.(type) {
		case *Mount:
			if r.Type != "bind" {
				continue
			}
			target = r.Target
		case *Device:
			target = r.Path
		default:
			continue
		}
		path, err := m.resolve(target)
		if err != nil {
			return nil, fmt.Errorf("find what is mounted on %s: %w", target, err)
		}
		add(fmt.Sprintf("%s.%d", r.Kind(), i), path)
	}
	for _, i := range unameFilesHere() {
		if m.self.Uname != nil {
			add(unameFileName(i), unameFiles[i].path)
		}
	}
	if m.Spec().Has("view") {
		for _, f := range viewFiles {
			add(f.name(), f.Path)
		}
	}
	if path, err := m.resolve(hostsPath); err == nil && !m.Spec().bringsHosts() {
		add("hosts", path)
	}
	if m.space()&unix.CLONE_NEWUSER != 0 {
		for _, n := range deviceNodes {
			add("dev."+n.name, "/dev/"+n.name)
		}
	}
	return all, nil
}

// mounts is its mount table.
func (m *Machine) mounts() ([]mountLine, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", m.pid))
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.Name(), ErrDead)
	}
	return mountLines(string(b)), nil
}

// resolve follows the links in a path of the machine's.
func (m *Machine) resolve(path string) (string, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", m.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("machine %s: %w", m.Name(), ErrDead)
	}
	defer unix.Close(root)
	at, err := openIn(root, path, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer at.Close()
	// In another mount table's root the kernel shows the path from there.
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
}

// bases are the lower layers that the snapshot does not hold.
func (v *saving) bases() ([]checkpoint.Base, error) {
	root, _ := v.m.Spec().find("root").(*Root)
	if root == nil {
		return nil, errors.New("no root")
	}
	base := checkpoint.Base{Path: root.Source}
	if !v.o.FilesOnly {
		var err error
		if v.state.Used, err = usedFiles(root.Source, v.pids, v.upper); err != nil {
			return nil, err
		}
		base.Identity = identity(v.state.Used)
	}
	return []checkpoint.Base{base}, nil
}

// hostFacts describe this computer.
func hostFacts() checkpoint.Host {
	var u unix.Utsname
	unix.Uname(&u)
	h := checkpoint.Host{Arch: unix.ByteSliceToString(u.Machine[:]), Kernel: unix.ByteSliceToString(u.Release[:])}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		k, val, _ := strings.Cut(line, ":")
		switch k = strings.TrimSpace(k); {
		case k == "model name" && h.CPU == "":
			h.CPU = strings.TrimSpace(val)
		case (k == "flags" || k == "Features") && h.CPUFlags == nil:
			h.CPUFlags = strings.Fields(val)
		}
	}
	return h
}
