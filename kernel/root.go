package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// Root gives a machine another root directory.
type Root struct {
	Source string
	Write  string // "overlay", "direct" or "none"
	Size   int64  `json:",omitempty"` // of what an overlay in memory may hold, bytes
	Upper  string `json:",omitempty"` // the directory an overlay keeps its changes under
	// Layers are laid out by msh, for a user who is not root.
	Layers *rootLayers `json:",omitempty"`
}

// Kind is "root".
func (*Root) Kind() string { return "root" }

// Mode is new where the changes are the machine's own.
func (r *Root) Mode() Mode {
	if r.Write == "overlay" {
		return New
	}
	return Shared
}

// Validate checks what goes together.
func (r *Root) Validate() error {
	switch {
	case r.Source == "":
		return bad("root", "source", "", "a directory")
	case r.Write != "overlay" && r.Write != "direct" && r.Write != "none":
		return bad("root", "write", r.Write, `"overlay", "direct" or "none"`)
	case r.Write != "overlay" && r.Size != 0:
		return bad("root", "size", r.Size, `write="overlay": nothing else has a size`)
	case r.Write != "overlay" && r.Upper != "":
		return bad("root", "upper", r.Upper, `write="overlay": nothing else has an upper layer`)
	case r.Upper != "" && r.Size != 0:
		return bad("root", "size", r.Size, "no upper: a directory cannot be kept to a size, only memory can")
	case r.Size != 0 && r.Size < 64<<10:
		return bad("root", "size", r.Size, "at least 65536 bytes")
	}
	return nil
}

const (
	rootTree  stage0.FD = "tree:root"
	upperTree stage0.FD = "tree:upper"
)

// Plan asks for a mount table and the trees.
func (r *Root) Plan(p *Plan) error {
	p.Table = true
	if r.Layers != nil && r.Write == "overlay" {
		return r.planUpper(p) // the child mounts the overlays by their paths
	}
	p.addTree(&Tree{FD: rootTree, Source: r.Source, Param: "root: source", Dir: true, Below: r.Layers != nil})
	return r.planUpper(p)
}

func (r *Root) planUpper(p *Plan) error {
	if r.Upper != "" {
		p.addTree(&Tree{FD: upperTree, Source: r.Upper, Param: "root: upper", Dir: true})
	}
	return nil
}

func (p *Plan) addTree(t *Tree) {
	if p.IDs != nil && p.IDs.shifts() && !t.Below {
		t.IDs = true
		p.Parks = true // the owners can only be shifted once the ids are there
	}
	p.Trees = append(p.Trees, t)
}

func (p *Plan) tree(fd stage0.FD) any {
	for _, t := range p.Trees {
		if t.FD == fd {
			return t.Arg(p)
		}
	}
	panic("kernel: no tree " + fd)
}

// Prepare makes the two directories an overlay keeps under upper. They are the
// user's from then on, and stay.
func (r *Root) Prepare(t *Txn) error {
	if r.Upper == "" {
		return nil
	}
	refuse := func(err error) error {
		return bad("root", "upper", r.Upper, "a directory to keep changes under: "+err.Error())
	}
	at := r.Upper
	if t.parent.isHost() {
		var err error
		if at, err = filepath.Abs(at); err != nil {
			return refuse(err)
		}
	}
	root, err := t.parent.openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	// A link in a parent's root must not lead out of it.
	dir, err := openIn(root, at, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return refuse(err)
	}
	defer dir.Close()
	for _, d := range []string{"upper", "work"} {
		if err := unix.Mkdirat(int(dir.Fd()), d, 0o755); err != nil && err != unix.EEXIST {
			return refuse(fmt.Errorf("mkdir %s: %w", d, err))
		}
	}
	return nil
}

// Enter builds the root on top of the old one, sets up what every root has, and
// pivots. The path "/" stays the old root until then, since a process's root
// does not move by something being mounted over it.
func (r *Root) Enter(s *Steps) error {
	p := s.Plan
	nodes := s.openNodes()
	// In a user namespace proc and sysfs can only be mounted while the parent's
	// are in sight (mount_too_revealing): before the old root goes.
	var proc, sys stage0.Ref
	if p.Spec.Has("pidspace") {
		proc = s.detached("proc", pseudoAttr)
	} else {
		proc = s.Call("open /proc", 0, unix.SYS_OPEN_TREE, stage0.AtCwd, "/proc", openTreeFlags(true))
	}
	if p.Flags&unix.CLONE_NEWNET != 0 {
		sys = s.detached("sysfs", pseudoAttr)
	} else {
		sys = s.Call("open /sys", 0, unix.SYS_OPEN_TREE, stage0.AtCwd, "/sys", openTreeFlags(true))
	}

	s.proc, s.sys = proc, sys
	var tree any
	if r.Layers == nil || r.Write != "overlay" {
		tree = p.tree(rootTree)
	}
	if r.Write == "none" && r.Layers != nil {
		// With the mounts in it, and before msh's own are.
		s.setAttr("make the root read-only", tree, unix.MOUNT_ATTR_RDONLY, true)
	}
	if r.Write == "overlay" {
		r.overlay(s, tree)
	} else {
		s.moveMount("mount "+r.Source+" over the old root", tree, "/")
		s.Call("go there", 0, unix.SYS_FCHDIR, tree)
	}
	s.Call("make it the root", 0, unix.SYS_PIVOT_ROOT, ".", ".")
	s.Call("let the old root go", 0, unix.SYS_UMOUNT2, ".", unix.MNT_DETACH)
	s.Call("go to /", 0, unix.SYS_CHDIR, "/")

	// All three before the first is mounted: through a /proc, a link in the root
	// could lead out of it.
	var at [3]stage0.Ref
	for i, dir := range []string{"/proc", "/sys", "/dev"} {
		if r.Write == "overlay" {
			s.Call("make "+dir, stage0.MayFail, unix.SYS_MKDIRAT, stage0.AtCwd, dir, 0o755)
		}
		at[i] = s.Call("find "+dir, 0, unix.SYS_OPENAT2, stage0.AtCwd, dir, howToOpen(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, unix.RESOLVE_NO_SYMLINKS), howSize)
	}
	s.moveMountAt("mount /proc", proc, at[0])
	s.moveMountAt("mount /sys", sys, at[1])
	s.setAttr("make it read-only", sys, unix.MOUNT_ATTR_RDONLY, true)
	s.populateDev(at[2], nodes)
	if p.Confined.level() >= levelNodes {
		// Device nodes in the tree are nobody's to open.
		s.Call("no devices in the root", 0, unix.SYS_MOUNT_SETATTR, stage0.AtCwd, "/", 0, mountAttr(unix.MOUNT_ATTR_NODEV, 0, 0), mountAttrSize)
	}
	if r.Write == "none" && r.Layers == nil {
		s.setAttr("make the root read-only", tree, unix.MOUNT_ATTR_RDONLY, false)
	}
	return nil
}

// overlay mounts the tree as the lower layer; the upper one is in a tmpfs of the
// machine's own, or under the directory given.
func (r *Root) overlay(s *Steps, tree any) {
	if s.Plan.layered() {
		s.moveMount("put its memory over the old /proc", layersFD, "/proc")
		s.Call("go there", 0, unix.SYS_FCHDIR, layersFD)
	} else {
		s.scratch(r.Size)
	}
	if r.Layers != nil {
		r.layers(s)
		return
	}
	s.Call("make lower", 0, unix.SYS_MKDIRAT, stage0.AtCwd, "lower", 0o755)
	s.Call("make root", 0, unix.SYS_MKDIRAT, stage0.AtCwd, "root", 0o755)
	s.moveMount("mount "+r.Source+" on lower", tree, "lower")
	where := "in memory"
	if r.Size != 0 {
		where += fmt.Sprintf(", at most %d bytes", r.Size)
	}
	if r.Upper != "" {
		where = "under " + r.Upper
	}
	changes := r.changes(s)
	options := "lowerdir=lower,upperdir=" + changes + "upper,workdir=" + changes + "work"
	if s.Plan.inUserSpace() {
		// trusted.* belongs to the host's root alone.
		options += ",userxattr"
	}
	s.Call("mount overlay on root: lower "+r.Source+", changes "+where, 0, unix.SYS_MOUNT, "msh", "root", "overlay", 0, options)
	s.Call("go there", 0, unix.SYS_CHDIR, "root")
}

// changes makes the directories upper and work, and returns what stands before their
// names.
func (r *Root) changes(s *Steps) string {
	if r.Upper != "" {
		s.Call("make changes", 0, unix.SYS_MKDIRAT, stage0.AtCwd, "changes", 0o755)
		s.moveMount("mount "+r.Upper+" on changes", s.Plan.tree(upperTree), "changes")
		return "changes/"
	}
	var flags stage0.Flags
	if s.Plan.layered() {
		flags = stage0.MayFail // where it wakes they are there
	}
	s.Call("make upper", flags, unix.SYS_MKDIRAT, stage0.AtCwd, "upper", 0o755)
	s.Call("make work", flags, unix.SYS_MKDIRAT, stage0.AtCwd, "work", 0o755)
	return ""
}

// inUserSpace tells whether the child is root of a user namespace only: its own, or
// that of the user who runs msh.
func (p *Plan) inUserSpace() bool { return p.ownIDs() || p.Under.User }

// ownIDs tells whether the child's ids are not those of msh.
func (p *Plan) ownIDs() bool { return p.Space()&unix.CLONE_NEWUSER != 0 }

const (
	fsconfigString = 1
	fsconfigCreate = 6
	fsCloexec      = 1
)

// scratch mounts a tmpfs over the old /proc and goes there. Below the old root it
// goes with that, in one grace period of RCU; the overlay keeps its layers.
func (s *Steps) scratch(size int64) {
	options := append([]string{"mode", "755"}, room(size)...)
	mnt := s.detached("tmpfs", 0, options...)
	s.moveMount("put it over the old /proc", mnt, "/proc")
	s.Call("go there", 0, unix.SYS_FCHDIR, mnt)
}

// room are a tmpfs's options for so much memory; for 0 those that it has by itself,
// half of the host's, since to it 0 is without bounds (tmpfs(5)). Empty files take none of that
// memory, but the kernel's own, so they are counted as well.
func room(size int64) []string {
	if size == 0 {
		return nil
	}
	return []string{"size", fmt.Sprint(size), "nr_inodes", fmt.Sprint(1024 + size/1024)}
}

// pseudoAttr are the flags that proc and sysfs are mounted with everywhere.
const pseudoAttr = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// detached makes a mount that is not in any table yet; options are names and values.
func (s *Steps) detached(fstype string, attr uint64, options ...string) stage0.Ref {
	words := "create a " + fstype
	fs := s.Call("open a new "+fstype, 0, unix.SYS_FSOPEN, fstype, fsCloexec)
	for i := 0; i < len(options); i += 2 {
		words += " " + options[i] + "=" + options[i+1]
		s.Call("set its "+options[i], 0, unix.SYS_FSCONFIG, fs, fsconfigString, options[i], options[i+1], 0)
	}
	s.Call(words, 0, unix.SYS_FSCONFIG, fs, fsconfigCreate, 0, 0, 0)
	return s.Call("mount it, detached", 0, unix.SYS_FSMOUNT, fs, fsCloexec, attr)
}

func (s *Steps) moveMount(words string, tree any, to string) {
	s.Call(words, 0, unix.SYS_MOVE_MOUNT, tree, "", stage0.AtCwd, to, moveFromHandle)
}

// moveMountAt is moveMount to a place that a descriptor stands for.
func (s *Steps) moveMountAt(words string, tree any, to stage0.Ref) {
	s.Call(words, 0, unix.SYS_MOVE_MOUNT, tree, "", to, "", moveFromHandle|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// howToOpen lays out struct open_how.
func howToOpen(flags, resolve uint64) []byte {
	b := binary.NativeEndian.AppendUint64(nil, flags)
	b = binary.NativeEndian.AppendUint64(b, 0)
	return binary.NativeEndian.AppendUint64(b, resolve)
}

const howSize = 24

// setAttr changes flags of a mount that a descriptor stands for.
func (s *Steps) setAttr(words string, tree any, attr uint64, below bool) {
	at := atEmptyPath
	if below {
		at |= unix.AT_RECURSIVE
	}
	s.Call(words, 0, unix.SYS_MOUNT_SETATTR, tree, "", at, mountAttr(attr, 0, 0), mountAttrSize)
}

const mountAttrSize = 32

// mountAttr lays out struct mount_attr.
func mountAttr(set, propagation uint64, userns int) []byte {
	b := binary.NativeEndian.AppendUint64(nil, set)
	b = binary.NativeEndian.AppendUint64(b, 0)
	b = binary.NativeEndian.AppendUint64(b, propagation)
	return binary.NativeEndian.AppendUint64(b, uint64(userns))
}

type deviceNode struct {
	name         string
	major, minor uint32
}

// deviceNodes are those that every program counts on.
var deviceNodes = []deviceNode{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

// devOptions are those of the tmpfs of a machine's /dev.
var devOptions = []string{"size", "1m", "nr_inodes", "2048", "mode", "755"}

// devAhead tells whether msh makes the file system of the machine's /dev, with the
// minimal init in it: stage0 is executed from that, and is the init without executing it
// once more, which is no small part of what a machine takes. Not where it changes its
// user, whose file that is not; nor where a profile may refuse what is left to be called.
func (p *Plan) devAhead() bool {
	return p.Spec.Init == nil && p.Spec.Has("root") && p.plain() && (p.Confined == nil || len(p.Confined.Profiles) == 0)
}

// makeDev makes it, as /dev is mounted and nowhere yet, and opens the init in it.
func (t *Txn) makeDev() (dev, init int, err error) {
	if err := t.step("make its /dev"); err != nil {
		return -1, -1, err
	}
	if dev, err = t.own(newTmpfs(unix.MOUNT_ATTR_NOSUID, devOptions...)); err != nil {
		return -1, -1, err
	}
	w, err := unix.Openat(dev, initName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(w, stage0.Image())
		err = errors.Join(err, unix.Fchmod(w, 0o555), unix.Close(w)) // one that is open cannot be executed
	}
	if err != nil {
		return -1, -1, fmt.Errorf("write msh's minimal init: %w", err)
	}
	init, err = t.own(unix.Openat(dev, initName, unix.O_PATH|unix.O_CLOEXEC, 0))
	return dev, init, err
}

// initName is the file of the minimal init, in the machine's /dev.
const initName = ".init"

// openNodes opens the parent's device nodes where the machine may not make its
// own: mknod(2) is refused in a user namespace.
func (s *Steps) openNodes() []stage0.Ref {
	if !s.Plan.inUserSpace() {
		return nil
	}
	var refs []stage0.Ref
	for _, n := range deviceNodes {
		path := "/dev/" + n.name
		refs = append(refs, s.Call("open "+path, 0, unix.SYS_OPEN_TREE, stage0.AtCwd, path, openTreeFlags(false)))
	}
	return refs
}

// populateDev makes a /dev of the machine's own: the nodes above, its own
// terminals, shared memory and message queues.
func (s *Steps) populateDev(dev stage0.Ref, nodes []stage0.Ref) {
	p := s.Plan
	var tmpfs any = devFD
	if !p.devAhead() {
		tmpfs = s.detached("tmpfs", unix.MOUNT_ATTR_NOSUID, devOptions...)
	}
	s.moveMountAt("mount it on /dev", tmpfs, dev)
	for i, n := range deviceNodes {
		path := "/dev/" + n.name
		if nodes == nil {
			s.Call("make "+path, 0, unix.SYS_MKNODAT, stage0.AtCwd, path, unix.S_IFCHR|0o666, unix.Mkdev(n.major, n.minor))
			continue
		}
		s.Call("make "+path, 0, unix.SYS_MKNODAT, stage0.AtCwd, path, unix.S_IFREG|0o666, 0)
		s.moveMount("mount the parent's "+path, nodes[i], path)
	}
	for _, l := range []struct{ name, to string }{{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"},
		{"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}} {
		s.Call("link /dev/"+l.name+" to "+l.to, 0, unix.SYS_SYMLINKAT, l.to, stage0.AtCwd, "/dev/"+l.name)
	}
	if p.Spec.Has("children") {
		s.Call("make "+coverDir, 0, unix.SYS_MKDIRAT, stage0.AtCwd, coverDir, 0o755)
	}
	s.Call("make /dev/pts", 0, unix.SYS_MKDIRAT, stage0.AtCwd, "/dev/pts", 0o755)
	pts := "newinstance,ptmxmode=0666,mode=0620"
	if (p.IDs == nil && !p.Under.OneID) || p.IDs != nil && hasGroup(p.IDs, 5) {
		pts += ",gid=5" // tty, in every distribution
	}
	s.Call("mount devpts on /dev/pts", 0, unix.SYS_MOUNT, "devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, pts)
	s.Call("make /dev/shm", 0, unix.SYS_MKDIRAT, stage0.AtCwd, "/dev/shm", 0o755)
	s.Call("mount tmpfs on /dev/shm", 0, unix.SYS_MOUNT, "shm", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	if p.Flags&unix.CLONE_NEWIPC != 0 {
		s.Call("make /dev/mqueue", 0, unix.SYS_MKDIRAT, stage0.AtCwd, "/dev/mqueue", 0o755)
		s.Call("mount mqueue on /dev/mqueue", 0, unix.SYS_MOUNT, "mqueue", "/dev/mqueue", "mqueue", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
	}
}

func hasGroup(d *IDs, gid uint32) bool {
	for _, m := range d.Maps {
		if gid >= m.Inside && uint64(gid) < uint64(m.Inside)+uint64(m.Size) {
			return true
		}
	}
	return false
}

// clean makes a path of the machine's absolute and free of "..".
func clean(path string) string { return filepath.Clean("/" + strings.TrimPrefix(path, "/")) }
