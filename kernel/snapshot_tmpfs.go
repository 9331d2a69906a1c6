package kernel

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
)

// criu has tar and gzip save and restore what is in a tmpfs, and with the four starts
// of a program that takes twice as long as all the rest of a small machine. So those
// that msh has given a machine it saves itself: for criu they are somebody else's.

type tmpfsMount struct {
	label string // also its section's name
	path  string
	flags uint64
	shown string // the same in mountinfo
}

// ownTmpfs are these file systems. One that programs inside have mounted anew, over it
// or a second time is left to criu.
var ownTmpfs = []tmpfsMount{
	{checkpoint.SectionTree + "dev", "/dev", unix.MOUNT_ATTR_NOSUID, "rw,nosuid,relatime"},
	{checkpoint.SectionTree + "shm", "/dev/shm", unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, "rw,nosuid,nodev,relatime"},
}

// looksInto are file systems whose contents criu looks at where they are its to save.
var looksInto = []string{"tmpfs", "devtmpfs", "mqueue", "fusectl", "pstore"}

// binds tells whether criu binds one of the machine's mounts to a new directory in its
// /tmp for a moment, or in its root: in that way it sees what lies below what is mounted
// in it. saved are not criu's.
func binds(mounts []mountLine, saved []savedMount) bool {
	return slices.ContainsFunc(mounts, func(l mountLine) bool {
		return slices.Contains(looksInto, l.fstype) &&
			!slices.ContainsFunc(saved, func(s savedMount) bool { return s.Path == l.path }) &&
			slices.ContainsFunc(mounts, func(in mountLine) bool { return strings.HasPrefix(in.path, l.path+"/") })
	})
}

// tmpfsOptions are those that a tmpfs is made with again. The others of which a line
// of mountinfo tells are the kernel's own.
var tmpfsOptions = []string{"size", "nr_inodes", "mode", "uid", "gid", "source"}

// mountLine is what a line of mountinfo says, see proc_pid_mountinfo(5).
type mountLine struct{ device, root, path, flags, fstype, source, options string }

func mountLines(text string) (all []mountLine) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i > 5 && i+3 < len(f) {
			all = append(all, mountLine{f[2], unescapeMount(f[3]), unescapeMount(f[4]), f[5], f[i+1], unescapeMount(f[i+2]), f[i+3]})
		}
	}
	return all
}

// savedTmpfs are those of the machine's mounts that msh saves itself. In a user
// namespace of its own they belong to that, which is criu's to make.
func (m *Machine) savedTmpfs(mounts []mountLine) (all []savedMount) {
	if m.space()&unix.CLONE_NEWUSER != 0 {
		return nil
	}
	for _, own := range ownTmpfs {
		i := slices.IndexFunc(mounts, func(l mountLine) bool { return l.path == own.path })
		if i < 0 || mounts[i].fstype != "tmpfs" || mounts[i].root != "/" || mounts[i].flags != own.shown {
			continue
		}
		again := slices.IndexFunc(mounts[i+1:], func(l mountLine) bool { return l.path == own.path || l.device == mounts[i].device })
		before := slices.IndexFunc(mounts[:i], func(l mountLine) bool { return l.device == mounts[i].device })
		options, ok := optionsOfTmpfs(mounts[i].options)
		if again < 0 && before < 0 && ok {
			all = append(all, savedMount{Label: own.label, Path: own.path, Options: append(options, "source", mounts[i].source)})
		}
	}
	return all
}

// optionsOfTmpfs takes a mount's options apart, into names and values.
func optionsOfTmpfs(text string) (options []string, ok bool) {
	for o := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(o, "=")
		switch {
		case name == "rw" || name == "inode64":
		case slices.Contains(tmpfsOptions, name) && value != "":
			options = append(options, name, value)
		default:
			return nil, false
		}
	}
	return options, true
}

// writeTmpfs saves what is in them.
func (v *saving) writeTmpfs() error {
	for _, m := range v.state.Mounts {
		if !strings.HasPrefix(m.Label, checkpoint.SectionTree) {
			continue
		}
		root, err := v.m.openRoot()
		if err != nil {
			return err
		}
		dir, err := openIn(root, m.Path, unix.O_RDONLY|unix.O_DIRECTORY)
		unix.Close(root)
		if err != nil {
			return err
		}
		err = v.w.Tree(v.ctx, v.m.Name(), m.Label, int(dir.Fd()))
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// unpackTmpfs makes such a file system, with what was in it.
func (w *waking) unpackTmpfs(r *checkpoint.Reader, label string) error {
	i := slices.IndexFunc(w.state.Mounts, func(m savedMount) bool { return m.Label == label })
	own := slices.IndexFunc(ownTmpfs, func(o tmpfsMount) bool { return o.label == label })
	if i < 0 || own < 0 || w.spec.Has("uidspace") {
		return fmt.Errorf("it has no such file system: %w", checkpoint.ErrHostile)
	}
	options := w.state.Mounts[i].Options
	for i := 0; i < len(options); i += 2 {
		if i+1 == len(options) || !slices.Contains(tmpfsOptions, options[i]) {
			return fmt.Errorf("its options are %q: %w", options, checkpoint.ErrHostile)
		}
	}
	fd, err := newTmpfs(0, options...)
	if err != nil {
		return err
	}
	if w.tmpfs == nil {
		w.tmpfs = map[string]int{}
	}
	w.tmpfs[label] = fd
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: ownTmpfs[own].flags}); err != nil {
		return fmt.Errorf("set the flags of %s: %w", ownTmpfs[own].path, err)
	}
	return r.UnpackUpper(w.ctx, fd, checkpoint.UnpackOptions{Devices: true})
}
