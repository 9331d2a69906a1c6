package kernel

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// Mount is a mount in a machine's own mount table.
type Mount struct {
	Source  string
	Target  string
	Type    string   // "bind", or a file system
	Options []string `json:",omitempty"`
}

// Kind is "mount".
func (*Mount) Kind() string { return "mount" }

// Mode is shared for what the parent has as well.
func (m *Mount) Mode() Mode {
	if m.Type == "bind" {
		return Shared
	}
	return New
}

// Key is the target.
func (m *Mount) Key() string { return clean(m.Target) }

// mountFlag is an option that is a flag.
type mountFlag struct {
	name string
	attr uint64 // for bind mounts: mount_setattr(2)
	flag uint64 // for file systems: mount(2)
}

var mountFlags = []mountFlag{
	{"ro", unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY},
	{"nosuid", unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
	{"nodev", unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
	{"noexec", unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
	{"noatime", unix.MOUNT_ATTR_NOATIME, unix.MS_NOATIME},
	{"nosymfollow", unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOSYMFOLLOW},
	{"rw", 0, 0},
}

func flagNamed(name string) *mountFlag {
	for i := range mountFlags {
		if mountFlags[i].name == name {
			return &mountFlags[i]
		}
	}
	return nil
}

// Validate checks the paths, and the options of a bind mount; those of a file
// system only the kernel knows.
func (m *Mount) Validate() error {
	switch {
	case m.Target == "" || clean(m.Target) == "/":
		return bad("mount", "target", m.Target, "a path below / in the machine; for / itself there is root(…)")
	case m.Source == "" && m.Type == "bind":
		return bad("mount", "source", m.Source, "a file or directory of the parent's")
	case m.Type == "":
		return bad("mount", "type", m.Type, `"bind" or a file system, as "tmpfs"`)
	}
	for _, o := range m.Options {
		if m.Type == "bind" && flagNamed(o) == nil && o != "rbind" && o != "idmap" {
			return bad("mount", "options", o, "for a bind mount one of ro rw nosuid nodev noexec noatime nosymfollow rbind idmap")
		}
		if strings.ContainsAny(o, "\x00\n") {
			return bad("mount", "options", o, "text of one line")
		}
	}
	if slices.Contains(m.Options, "rbind") && slices.Contains(m.Options, "idmap") {
		return bad("mount", "options", "rbind and idmap", "one of them: owners are shifted for one mount, not for those below")
	}
	return nil
}

func (m *Mount) fd() stage0.FD { return stage0.FD("tree:" + m.Key()) }

// Plan asks for a mount table, and for a bind mount the tree.
func (m *Mount) Plan(p *Plan) error {
	p.Table = true
	if m.Type != "bind" {
		return nil
	}
	t := &Tree{FD: m.fd(), Source: m.Source, Param: "mount: source", Below: slices.Contains(m.Options, "rbind")}
	if slices.Contains(m.Options, "idmap") {
		if p.Flags&unix.CLONE_NEWUSER == 0 {
			return &ParamError{Kind: "mount", Param: "options", Got: "idmap", Want: "a uidspace() beside it, into which to shift the owners"}
		}
		p.addTree(t)
		return nil
	}
	p.Trees = append(p.Trees, t)
	return nil
}

// Enter mounts it, in the machine's own root. Where that is the machine's own to
// change, a target that is missing is made; nothing is made in others' trees.
func (m *Mount) Enter(s *Steps) error {
	target := clean(m.Target)
	root, _ := s.Plan.Spec.find("root").(*Root)
	own := root != nil && root.Write == "overlay"
	if own {
		for _, d := range parents(target) {
			s.makeDir(d)
		}
	}
	if m.Type != "bind" {
		if own {
			s.makeDir(target)
		}
		m.enterType(s, target)
		return nil
	}
	tree := s.Plan.tree(m.fd())
	if own {
		// A directory is mounted on a directory, a file on a file: only now it
		// shows which this is.
		at := s.find(filepath.Dir(target), stage0.MayFail, "")
		base := filepath.Base(target)
		s.Call("is "+m.Source+" a directory?", stage0.SkipNext, unix.SYS_OPENAT, tree, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		s.Call("then make "+target, stage0.MayFail, unix.SYS_MKDIRAT, at, base, 0o755)
		s.Call("else make the file "+target, stage0.MayFail, unix.SYS_MKNODAT, at, base, unix.S_IFREG|0o644, 0)
	}
	attr := m.attr()
	s.moveMountAt("mount "+m.Source+" on "+target, tree, s.find(target, 0, ", to mount "+m.Source+" on it"))
	words := "with " + strings.Join(m.Options, ", ")
	if s.Plan.Confined.level() >= levelNodes && attr&unix.MOUNT_ATTR_NODEV == 0 {
		attr |= unix.MOUNT_ATTR_NODEV
		words = strings.TrimSuffix(words+", nodev", ", ")
	}
	if attr != 0 {
		s.setAttr(words, tree, attr, slices.Contains(m.Options, "rbind"))
	}
	return nil
}

// attr are its options as mount_setattr(2) takes them.
func (m *Mount) attr() (attr uint64) {
	for _, f := range mountFlags {
		if slices.Contains(m.Options, f.name) {
			attr |= f.attr
		}
	}
	return attr
}

// restrict gives a clone of the tree its options.
func (m *Mount) restrict(fd int) error {
	if m.attr() == 0 {
		return nil
	}
	at := uint(unix.AT_EMPTY_PATH)
	if slices.Contains(m.Options, "rbind") {
		at |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(fd, "", at, &unix.MountAttr{Attr_set: m.attr()}); err != nil {
		return fmt.Errorf("mount %s with %s: %w", m.Source, strings.Join(m.Options, ", "), err)
	}
	return nil
}

// enterType mounts a file system. mount(2) takes a path; the one that cannot
// lead elsewhere is the working directory's.
func (m *Mount) enterType(s *Steps, target string) {
	var flags uint64
	var data []string
	for _, o := range m.Options {
		if f := flagNamed(o); f != nil {
			flags |= f.flag
		} else {
			data = append(data, o)
		}
	}
	if s.Plan.Confined.level() >= levelNodes {
		flags |= unix.MS_NODEV
	}
	source := m.Source
	if source == "" {
		source = m.Type
	}
	s.Call("go to "+target, 0, unix.SYS_FCHDIR, s.find(target, 0, ", to mount "+m.Type+" on it"))
	s.Call(fmt.Sprintf("mount %s on %s", m.Type, target), 0, unix.SYS_MOUNT, source, ".", m.Type, flags, strings.Join(data, ","))
	s.Call("go back to /", 0, unix.SYS_CHDIR, "/")
}

// find opens a path of the machine's as a place. Links in it are followed, but
// not the kernel's own in /proc, which lead anywhere (proc_pid_root(5)).
func (s *Steps) find(path string, flags stage0.Flags, why string) stage0.Ref {
	return s.Call("find "+path+why, flags, unix.SYS_OPENAT2, stage0.AtCwd, path, howToOpen(unix.O_PATH|unix.O_CLOEXEC, unix.RESOLVE_NO_MAGICLINKS), howSize)
}

// makeDir makes a directory, if it is not there yet.
func (s *Steps) makeDir(path string) {
	at := s.find(filepath.Dir(path), stage0.MayFail, "")
	s.Call("make "+path, stage0.MayFail, unix.SYS_MKDIRAT, at, filepath.Base(path), 0o755)
}

// parents lists the directories above a path, outermost first.
func parents(path string) []string {
	var dirs []string
	for d := filepath.Dir(path); d != "/"; d = filepath.Dir(d) {
		dirs = append(dirs, d)
	}
	slices.Reverse(dirs)
	return dirs
}
