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

// Enter mounts it, in the machine's own root.
func (m *Mount) Enter(s *Steps) error {
	target := clean(m.Target)
	root, _ := s.Plan.Spec.find("root").(*Root)
	own := root != nil && root.Write == "overlay"
	if own {
		s.mountPoint(root, parents(target)...)
	}
	if m.Type != "bind" {
		s.mountPoint(root, target)
		var flags uint64
		var data []string
		for _, o := range m.Options {
			if f := flagNamed(o); f != nil {
				flags |= f.flag
			} else {
				data = append(data, o)
			}
		}
		source := m.Source
		if source == "" {
			source = m.Type
		}
		s.Call(fmt.Sprintf("mount %s on %s", m.Type, target), 0, unix.SYS_MOUNT, source, target, m.Type, flags, strings.Join(data, ","))
		return nil
	}
	tree := s.Plan.tree(m.fd())
	if own {
		// A directory is mounted on a directory, a file on a file: only now it
		// shows which this is.
		s.Call("is "+m.Source+" a directory?", stage0.SkipNext, unix.SYS_OPENAT, tree, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		s.Call("then make "+target, stage0.MayFail, unix.SYS_MKDIRAT, stage0.AtCwd, target, 0o755)
		s.Call("else make the file "+target, stage0.MayFail, unix.SYS_MKNODAT, stage0.AtCwd, target, unix.S_IFREG|0o644, 0)
	}
	var attr uint64
	for _, f := range mountFlags {
		if slices.Contains(m.Options, f.name) {
			attr |= f.attr
		}
	}
	s.moveMount("mount "+m.Source+" on "+target, tree, target)
	if attr != 0 {
		s.setAttr("with "+strings.Join(m.Options, ", "), tree, attr, slices.Contains(m.Options, "rbind"))
	}
	return nil
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
