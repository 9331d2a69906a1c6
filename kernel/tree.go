package kernel

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// A Tree is a file or directory of the parent's that will be mounted in the
// machine. Whoever stands in the parent's mount table clones it (open_tree), so
// that the machine needs no path of the parent's.
type Tree struct {
	FD     stage0.FD
	Source string
	Param  string // for errors: "root: source"
	Below  bool   // with the mounts below it
	IDs    bool   // its owners shifted into the machine's uidspace
	Dir    bool   // must be a directory
	Plain  bool   // must have no link in its path
	ref    stage0.Ref
}

// Arg is the tree as an argument of a system call: a descriptor handed over by
// msh, or where an intermediate opened it, that step's result.
func (t *Tree) Arg(p *Plan) any {
	if p.relayed() {
		return t.ref
	}
	return t.FD
}

func (t *Tree) words() string {
	w := t.Source
	if t.Below {
		w += " and what is mounted below it"
	}
	if t.IDs {
		w += ", owners shifted"
	}
	return w
}

// open clones the tree out of msh's own mount table.
func (t *Tree) open() (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(t.Source, &st); err != nil {
		return -1, t.bad("a path that is there: " + err.Error())
	}
	if t.Dir && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return -1, t.bad("a directory")
	}
	fd, err := t.clone()
	if err == unix.ELOOP && t.Plain {
		return -1, t.bad("a path without links, as the parent has a fence of Landlock's")
	}
	if err == nil {
		// A clone of a shared mount is one more peer of it: what is mounted in the
		// machine would show up outside, and pivot_root refuses it.
		attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("%s: make the clone of %s private: %w", t.Param, t.Source, err)
		}
		return fd, nil
	}
	if errors.Is(err, unix.ENOSYS) {
		return -1, unsupported("Linux 5.2 or newer has it", "open_tree(2)")
	}
	if err == unix.EINVAL && InSpace() && !t.Below {
		return -1, t.bad("for an ordinary user a directory without mounts below it, which the kernel lets nobody look under; a mount takes them along with options=[\"rbind\"]")
	}
	return -1, fmt.Errorf("%s: open_tree %s: %w", t.Param, t.Source, err)
}

func (t *Tree) clone() (int, error) {
	if !t.Plain {
		return unix.OpenTree(unix.AT_FDCWD, t.Source, uint(openTreeFlags(t.Below)))
	}
	at, err := unix.Openat2(unix.AT_FDCWD, t.Source, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return unix.OpenTree(at, "", uint(openTreeFlags(t.Below))|unix.AT_EMPTY_PATH)
}

func (t *Tree) bad(want string) error {
	kind, param, _ := strings.Cut(t.Param, ": ")
	return bad(kind, param, t.Source, want)
}

// shiftOwners gives the trees the owners of the machine's id space. The child
// has them open already, but has not mounted them.
func (t *Txn) shiftOwners(c *Child) error {
	var userns = -1
	for _, tree := range t.plan.Trees {
		if !tree.IDs {
			continue
		}
		if err := t.step("shift the owners of " + tree.Source); err != nil {
			return err
		}
		if userns < 0 {
			var err error
			if userns, err = t.own(unix.Open(fmt.Sprintf("/proc/%d/ns/user", c.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)); err != nil {
				return fmt.Errorf("open the child's user namespace: %w", err)
			}
		}
		fd, err := t.treeOf(c, tree)
		if err != nil {
			return err
		}
		if err := tree.shift(fd, userns); err != nil {
			return err
		}
	}
	return nil
}

// shift gives a clone of the tree the owners that a user namespace sees.
func (t *Tree) shift(fd, userns int) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr)
	if errors.Is(err, unix.EINVAL) {
		return unsupported("ext4, xfs, btrfs and, since Linux 6.3, tmpfs can, an overlay cannot: take a directory on one of these, or the parent's own ids by uidspace(map=[(0, 0, 65536)])", "%s: %s: owners shifted into a uidspace (idmapped mount) on this file system", t.Param, t.Source)
	}
	if err != nil {
		return fmt.Errorf("%s: shift the owners of %s: %w", t.Param, t.Source, err)
	}
	return nil
}

// treeOf is the descriptor of a tree: msh's own, or the one the intermediate
// opened and the child has inherited.
func (t *Txn) treeOf(c *Child, tree *Tree) (int, error) {
	if !t.plan.relayed() {
		return t.trees[tree.FD], nil
	}
	n, err := c.result(tree.ref)
	if err != nil {
		return -1, err
	}
	return t.own(unix.PidfdGetfd(c.pidfd, int(n), 0))
}
