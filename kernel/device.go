package kernel

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
	"msh/kernel/stage0"
)

// Device is a device node of the parent's that a machine may use. With one, or from
// security level 1 on, it may open no devices but those and the ones of every /dev.
type Device struct {
	Path   string
	Access string // "r", "w" or "rw"

	rule netx.DeviceRule // found by Prepare
}

// Kind is "device".
func (*Device) Kind() string { return "device" }

// Mode is shared: the parent keeps it.
func (*Device) Mode() Mode { return Shared }

// Key is the path.
func (d *Device) Key() string { return d.Path }

// Validate checks that it is a name below /dev.
func (d *Device) Validate() error {
	if d.Path != clean(d.Path) || !strings.HasPrefix(d.Path, "/dev/") || strings.ContainsRune(d.Path, 0) {
		return bad("device", "path", d.Path, `a device node below /dev, as "/dev/kvm"`)
	}
	for _, own := range []string{"/dev/pts", "/dev/ptmx", "/dev/shm", "/dev/mqueue", "/dev/fd"} {
		if d.Path == own || strings.HasPrefix(d.Path, own+"/") {
			return bad("device", "path", d.Path, "one that every machine with a root has not already, of its own")
		}
	}
	if d.Access != "r" && d.Access != "w" && d.Access != "rw" {
		return bad("device", "access", d.Access, `"r", "w" or "rw"`)
	}
	return nil
}

func (d *Device) fd() stage0.FD { return stage0.FD("tree:device:" + d.Path) }

// Plan has the node opened where the machine's own /dev is to have it.
func (d *Device) Plan(p *Plan) error {
	if p.Spec.Has("root") {
		p.Trees = append(p.Trees, &Tree{FD: d.fd(), Source: d.Path, Param: "device: path"})
	}
	return nil
}

// Prepare looks at the node in the parent's /dev.
func (d *Device) Prepare(t *Txn) error {
	root, err := t.parent.openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	f, err := openIn(root, d.Path, unix.O_PATH)
	if err != nil {
		return bad("device", "path", d.Path, "a device node that "+t.parent.Name()+" has: "+err.Error())
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("device %s: %w", d.Path, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return bad("device", "path", d.Path, "a device node: it is none")
	}
	d.rule = netx.DeviceRule{Block: kind == unix.S_IFBLK, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		Read: strings.Contains(d.Access, "r"), Write: strings.Contains(d.Access, "w")}
	return nil
}

// Enter mounts the parent's node in the machine's own /dev, where there is none by
// that name: its own nodes stay.
func (d *Device) Enter(s *Steps) error {
	if !s.Plan.Spec.Has("root") {
		return nil // its /dev is the parent's
	}
	for _, dir := range parents(d.Path)[1:] {
		s.makeDir(dir)
	}
	at := s.find(filepath.Dir(d.Path), 0, "")
	s.Call("make "+d.Path, stage0.MayFail, unix.SYS_MKNODAT, at, filepath.Base(d.Path), unix.S_IFREG|0o644, 0)
	s.moveMountAt("mount the parent's "+d.Path, s.Plan.tree(d.fd()), s.find(d.Path, 0, ", to mount it there"))
	return nil
}

// everyDevice are the devices of every /dev: its nodes, and the terminals of a devpts.
func everyDevice() []netx.DeviceRule {
	rules := []netx.DeviceRule{{Major: 5, Minor: 2, Read: true, Write: true}} // ptmx
	for _, n := range deviceNodes {
		rules = append(rules, netx.DeviceRule{Major: n.major, Minor: n.minor, Read: true, Write: true})
	}
	for major := uint32(136); major <= 143; major++ { // UNIX98_PTY_SLAVE_MAJOR, and as many as it has
		rules = append(rules, netx.DeviceRule{Major: major, EveryMinor: true, Read: true, Write: true})
	}
	return rules
}
