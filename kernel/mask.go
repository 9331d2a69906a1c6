package kernel

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// What a machine of level 2 and above does not see of the kernel's two file systems,
// or sees but cannot write: it is the whole host's. They are the lists of container
// engines; /sys as a whole is read-only.
var (
	maskedFiles = []string{"/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/interrupts"}
	maskedDirs  = []string{"/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/devices/virtual/powercap"}
	readOnly    = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// masksAt is the directory whose mask the other masks are copies of: one that every
// sysfs has (drivers/base/firmware.c), and that is to be masked itself.
const (
	masksAt   = "/sys/firmware"
	emptyFile = ".empty"
)

// present are those of the paths that this kernel has. /proc and /sys show the same
// names wherever they are mounted, but for those of processes and networks.
var present = sync.OnceValue(func() map[string]bool {
	all := map[string]bool{}
	for _, path := range slices.Concat(maskedFiles, maskedDirs, readOnly) {
		_, err := os.Lstat(path)
		all[path] = err == nil
	}
	return all
})

// mask hides them. empty is the file system with the empty file, nil where it is yet to be
// made.
//
// Nothing here is found by a path that somebody else could have laid a link in: the two
// file systems are known by the descriptors that they were mounted by, or found without
// following links; below them nobody makes names; and what is put over a name is an empty
// file, or an empty directory, of a file system of msh's own, not whatever lies at the
// machine's /dev/null (CVE-2025-31133). A mount goes to a descriptor, or to a name right
// below that of the file system, which is not followed where it is a link; never to a path
// (CVE-2025-52565, CVE-2025-52881).
func (s *Steps) mask(empty any) {
	proc, sys := s.proc, s.sys
	if proc == nil {
		proc = s.place("/proc")
	}
	if sys == nil {
		sys = s.place("/sys")
	}
	if empty == nil {
		empty = s.detached("tmpfs", pseudoAttr, emptyOptions...)
		s.Call("make an empty file in it", 0, unix.SYS_MKNODAT, empty, emptyFile, unix.S_IFREG|0o444, 0)
		s.setAttr("make it read-only", empty, unix.MOUNT_ATTR_RDONLY, false)
	}
	s.below(masksAt, proc, sys).cover("mask "+masksAt+" with the empty one", empty)
	for _, path := range maskedDirs {
		s.maskOne(path, "", empty, proc, sys)
	}
	for _, path := range maskedFiles {
		s.maskOne(path, emptyFile, empty, proc, sys)
	}
	for _, path := range readOnly {
		if present()[path] {
			at := s.below(path, proc, sys)
			at.cover("put it over "+path, s.readOnlyCopy(at, path))
		}
	}
	if s.sys == nil { // else that has been done
		s.setAttr("make /sys read-only", sys, unix.MOUNT_ATTR_RDONLY, true)
	}
}

// emptyOptions are those of the file system with the empty file.
var emptyOptions = []string{"size", "4k", "mode", "555"}

// emptyAhead tells whether msh makes that.
func (p *Plan) emptyAhead() bool { return p.masks() && p.plain() }

// empty is a mount of it. Machines of level 2 have one for all, which nobody can write to
// who lacks CAP_SYS_ADMIN, and which tells them of each other's locks, as the host's
// /dev/null does where container engines mask with it; others have one of their own.
func (t *Txn) empty() (int, error) {
	if err := t.step("make an empty file"); err != nil {
		return -1, err
	}
	if c := t.plan.Confined; c.level() < levelFence && c.Caps&capsNamed("sys_admin") == 0 {
		if shared, err := sharedEmpty(); err == nil {
			fd, err := unix.OpenTree(shared, "", treeClone|atEmptyPath)
			if err == nil { // since 6.15; before that, nobody can copy what is mounted nowhere
				return fd, nil
			}
		}
	}
	return makeEmpty()
}

// sharedEmpty stays open as long as msh runs.
var sharedEmpty = sync.OnceValues(makeEmpty)

func makeEmpty() (int, error) {
	fd, err := newTmpfs(pseudoAttr, emptyOptions...)
	if err != nil {
		return -1, err
	}
	err = unix.Mknodat(fd, emptyFile, unix.S_IFREG|0o444, 0)
	if err == nil {
		err = unix.Fchmodat(fd, emptyFile, 0o444, 0) // whatever msh's umask
	}
	if err == nil {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make an empty file: %w", err)
	}
	return fd, nil
}

func (s *Steps) maskOne(path, with string, empty, proc, sys any) {
	if !present()[path] {
		return
	}
	at := s.below(path, proc, sys)
	tree := s.Call("copy the empty one", 0, unix.SYS_OPEN_TREE, empty, with, treeClone|atEmptyPath)
	at.cover("mask "+path+" with it", tree)
}

func (s *Steps) readOnlyCopy(at spot, path string) stage0.Ref {
	const flags = treeClone | atEmptyPath | unix.AT_RECURSIVE | unix.AT_SYMLINK_NOFOLLOW
	if haveTreeAttr() {
		return s.Call("copy "+path+", read-only", 0, unix.SYS_OPEN_TREE_ATTR, at.dir, at.name, flags, mountAttr(unix.MOUNT_ATTR_RDONLY, 0, 0), mountAttrSize)
	}
	tree := s.Call("copy "+path, 0, unix.SYS_OPEN_TREE, at.dir, at.name, flags)
	s.setAttr("make it read-only", tree, unix.MOUNT_ATTR_RDONLY, true)
	return tree
}

// haveTreeAttr asks for open_tree_attr(2), which is open_tree(2) and mount_setattr(2) in one.
var haveTreeAttr = sync.OnceValue(func() bool {
	attr := mountAttr(unix.MOUNT_ATTR_RDONLY, 0, 0)
	empty := [1]byte{}
	_, _, errno := unix.Syscall6(unix.SYS_OPEN_TREE_ATTR, ^uintptr(0), uintptr(unsafe.Pointer(&empty)), atEmptyPath, uintptr(unsafe.Pointer(&attr[0])), mountAttrSize, 0)
	return errno == unix.EBADF
})

// place opens a directory of the root's without following links.
func (s *Steps) place(path string) stage0.Ref {
	return s.Call("find "+path, 0, unix.SYS_OPENAT2, stage0.AtCwd, path, howToOpen(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, unix.RESOLVE_NO_SYMLINKS), howSize)
}

// spot is what is to be covered: a name in a directory, or the directory where it is "".
type spot struct {
	steps *Steps
	dir   any
	name  string
}

// below finds it in the file system that it is in.
func (s *Steps) below(path string, proc, sys any) spot {
	from, name := proc, path[len("/proc/"):]
	if path[:len("/sys/")] == "/sys/" {
		from, name = sys, path[len("/sys/"):]
	}
	if !strings.Contains(name, "/") {
		return spot{s, from, name}
	}
	const resolve = unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_BENEATH
	return spot{s, s.Call("find "+path, 0, unix.SYS_OPENAT2, from, name, howToOpen(unix.O_PATH|unix.O_CLOEXEC, resolve), howSize), ""}
}

func (at spot) cover(words string, tree any) {
	at.steps.Call(words, 0, unix.SYS_MOVE_MOUNT, tree, "", at.dir, at.name, moveFromHandle|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// masks tells whether the machine's /proc and /sys are to be masked: where the level
// begins, and where a machine below it has others than its parent.
func (p *Plan) masks() bool {
	return p.Confined.level() >= levelMasks &&
		(p.Under.Confined.level() < levelMasks || p.Flags&unix.CLONE_NEWPID != 0 || p.Spec.Has("root"))
}
