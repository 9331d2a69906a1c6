package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// hostsFile is the /etc/hosts of all machines that are on the same networks: a
// file of msh's that each has mounted, so that a name more is one line more, and
// not one for each machine.
type hostsFile struct {
	path string
	nets []string // the names of the vnets, sorted
}

const (
	hostsDir           = ".hosts"
	hostsFD  stage0.FD = "hosts" // the mount, not attached yet
	hostsTop           = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
)

// namesNets are the vnets whose machines a machine knows by name.
func namesNets(netifs []*Netif) []string {
	var nets []string
	for _, n := range netifs {
		if n.VNet != "" && !slices.Contains(nets, n.VNet) {
			nets = append(nets, n.VNet)
		}
	}
	slices.Sort(nets)
	return nets
}

// hosts finds or makes the file for machines on those networks. The caller holds
// l.naming.
func (l *Lab) hosts(nets []string) (*hostsFile, error) {
	for _, f := range l.hostsFiles {
		if slices.Equal(f.nets, nets) {
			return f, nil
		}
	}
	dir := filepath.Join(l.dir(), hostsDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f := &hostsFile{path: filepath.Join(dir, fmt.Sprint(len(l.hostsFiles)+1)), nets: nets}
	if err := os.WriteFile(f.path, []byte(l.hostsText(nets)), 0o644); err != nil {
		return nil, err
	}
	if err := os.Chmod(f.path, 0o644); err != nil { // whatever msh's umask
		return nil, err
	}
	l.hostsFiles = append(l.hostsFiles, f)
	return f, nil
}

// hostsText is what a machine on those networks is to know.
func (l *Lab) hostsText(nets []string) string {
	var b strings.Builder
	b.WriteString(hostsTop)
	for _, v := range l.segment(nets) {
		v.mu.Lock()
		for _, p := range v.ports {
			b.WriteString(p.hostsLines())
		}
		v.mu.Unlock()
	}
	return b.String()
}

func (p *port) hostsLines() string {
	if p.machine == "" {
		return ""
	}
	var b strings.Builder
	for _, a := range p.netif.Addresses {
		fmt.Fprintf(&b, "%s\t%s\n", a.Addr(), p.machine)
	}
	return b.String()
}

// segment is the networks of those names, and all that cables join them with.
func (l *Lab) segment(nets []string) []*VNet {
	var all []*VNet
	for _, name := range nets {
		if v := l.findVNet(name); v != nil {
			all = append(all, v)
		}
	}
	links := l.Links()
	for i := 0; i < len(all); i++ {
		for _, k := range links {
			for j := range k.ends {
				if o := k.ends[1-j].VNet; k.ends[j].VNet == all[i] && o != nil && !slices.Contains(all, o) {
					all = append(all, o)
				}
			}
		}
	}
	return all
}

// tell has the machines on v's segment know of a port that has been added; with
// nil what they know is written anew.
func (l *Lab) tell(v *VNet, added *port) error {
	if l.ending() {
		return nil
	}
	l.naming.Lock()
	defer l.naming.Unlock()
	for _, f := range l.hostsFiles {
		if !slices.Contains(l.segment(f.nets), v) {
			continue
		}
		if err := f.write(l, added); err != nil {
			return fmt.Errorf("tell the machines on %s of a name: %w", v.Name(), err)
		}
	}
	return nil
}

// retell writes what all machines know anew: for a network or a cable that has
// gone, and with it the way from one to another.
func (l *Lab) retell() error {
	if l.ending() {
		return nil
	}
	return l.tellAll()
}

func (l *Lab) tellAll() error {
	l.naming.Lock()
	defer l.naming.Unlock()
	var errs []error
	for _, f := range l.hostsFiles {
		errs = append(errs, f.write(l, nil))
	}
	return errors.Join(errs...)
}

// forgetNames removes the files. Those that kept machines have mounted stay: criu
// cannot save a machine in which a file is mounted that has no name any more.
func (l *Lab) forgetNames() {
	os.RemoveAll(filepath.Join(l.dir(), hostsDir))
}

// write appends the port's lines, or writes the whole file: in place, for it is
// mounted.
func (f *hostsFile) write(l *Lab, added *port) error {
	flags, text := os.O_WRONLY|os.O_APPEND, ""
	if added != nil {
		text = added.hostsLines()
	} else {
		flags, text = os.O_WRONLY|os.O_TRUNC, l.hostsText(f.nets)
	}
	if text == "" {
		return nil
	}
	file, err := os.OpenFile(f.path, flags, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(text) // one write(2): no reader sees half of it appended
	return err
}

// hostsMount opens the file for machines on those networks as a mount.
func (l *Lab) hostsMount(nets []string) (int, error) {
	l.naming.Lock()
	f, err := l.hosts(nets)
	l.naming.Unlock()
	if err != nil {
		return -1, fmt.Errorf("write the names: %w", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, f.path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open %s as a mount: %w", f.path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make the names read-only: %w", err)
	}
	return fd, nil
}

// knowsNames tells whether the machine of a plan gets a hosts file: one with a
// mount table, on a vnet, that does not bring its own.
func (p *Plan) knowsNames() bool {
	return p.Table && len(namesNets(p.Nets)) > 0 && !p.Spec.bringsHosts()
}

// bringsHosts tells whether the machine has a mount of its own on /etc/hosts.
func (s *Spec) bringsHosts() bool {
	return slices.ContainsFunc(s.Resources, func(r Resource) bool {
		m, ok := r.(*Mount)
		return ok && clean(m.Target) == hostsPath
	})
}

const hostsPath = "/etc/hosts"

// mountHosts mounts the names on /etc/hosts, where the root has such a file, or is
// the machine's own to make one.
func (s *Steps) mountHosts() {
	if root, _ := s.Plan.Spec.find("root").(*Root); root != nil && root.Write == "overlay" {
		at := s.find("/etc", stage0.SkipNext, "")
		s.Call("make "+hostsPath, stage0.MayFail, unix.SYS_MKNODAT, at, "hosts", unix.S_IFREG|0o644, 0)
	}
	at := s.find(hostsPath, stage0.SkipNext, "")
	s.moveMountAt("mount the names of its networks on "+hostsPath, hostsFD, at)
}

// learn gives a running machine that has come onto a network, or has left one, the
// names of those that it is on.
func (m *Machine) learn() error {
	if m.lab == nil || m.space()&unix.CLONE_NEWNS == 0 || m.awake() != nil {
		return nil
	}
	spec := m.Spec()
	if !spec.ownsTable() || spec.bringsHosts() {
		return nil
	}
	files := map[stage0.FD]int{}
	if nets := namesNets(m.Netifs()); len(nets) > 0 {
		fd, err := m.lab.hostsMount(nets)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		files[hostsFD] = fd
	}
	return m.performWith(files, func(s *Steps) {
		s.Call("unmount the old names", stage0.MayFail, unix.SYS_UMOUNT2, hostsPath, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if len(files) > 0 {
			s.mountHosts()
		}
	})
}

// ownsTable tells whether the machine has a mount table of its own, and not its
// parent's.
func (s *Spec) ownsTable() bool {
	sec, _ := s.find("security").(*Security)
	names, _ := s.find("uname").(*Uname)
	return s.Has("mountspace") || s.Has("pidspace") || s.Has("root") || s.Has("mount") || names.answers() || sec != nil && sec.Level >= levelMasks
}
