package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
)

// Private stands for the mount point of the v2 hierarchy on a host that mounts v1
// alone. The kernel has that hierarchy all the same, and one mount of it shows the
// groups that were made by another: each msh mounts it for itself, where no path
// leads and nobody else sees it. The mount ends with its msh, the groups stay.
//
// One thing shows outside: from the first such mount until the host is booted
// again, /proc/PID/cgroup has a line for v2 (cgrp_dfl_visible in the kernel).
const Private = "cgroup2:"

// privateRoot is the path of msh's own mount of the v2 hierarchy. What msh starts
// on the host, criu above all, can use it as well.
var privateRoot = sync.OnceValues(func() (string, error) {
	fd, err := mountPrivate()
	if err != nil {
		return "", fmt.Errorf("mount cgroup2, which this host with cgroup v1 has mounted nowhere: %w", err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), nil
})

func mountPrivate() (mount int, err error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, o := range v2Options() {
		if err := unix.FsconfigSetFlag(fs, o); err != nil && err != unix.EINVAL { // seclabel is none of its own
			return -1, fmt.Errorf("fsconfig %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig: %w", err)
	}
	mount, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return mount, nil
}

// v2Options are the options of the v2 hierarchy where it is mounted after all, at
// a place that Detect does not look at. They are the hierarchy's, not the mount's,
// and each new mount sets them anew for everybody (apply_cgroup_root_flags in the
// kernel): an msh that named none would take nsdelegate from whoever relies on it.
func v2Options() []string {
	for _, table := range []string{"/proc/self/mountinfo", "/proc/1/mountinfo"} {
		b, err := rawfile.Read(table)
		if err != nil {
			continue // not root, or another's /proc: then nothing can be mounted either
		}
		for line := range strings.Lines(string(b)) {
			// … - TYPE SOURCE OPTIONS
			_, fs, _ := strings.Cut(line, " - ")
			f := strings.Fields(fs)
			if len(f) < 3 || f[0] != "cgroup2" {
				continue
			}
			var options []string
			for o := range strings.SplitSeq(f[2], ",") {
				if o != "rw" && o != "ro" {
					options = append(options, o)
				}
			}
			return options
		}
	}
	return nil
}

// ready tells whether the group's directories can be got at. Without it a group
// behind a mount that failed would look as if it were gone.
func (g *Group) ready() error {
	if g.Tracker != Private {
		return nil
	}
	_, err := privateRoot()
	return err
}

// mountPoint is where the hierarchy is that is mounted at mount.
func mountPoint(mount string) string {
	if mount != Private {
		return mount
	}
	root, err := privateRoot()
	if err != nil {
		return "/proc/self/fd/none" // which is not there; see ready
	}
	return root
}

// Find lists the directories of groups, at the top of each hierarchy, whose names
// match a pattern of filepath.Match; by paths of this process.
func (h *Host) Find(pattern string) []string {
	var all []string
	for _, top := range []string{Root, filepath.Join(Root, "*"), mountPoint(h.V2)} {
		dirs, _ := filepath.Glob(filepath.Join(top, pattern))
		all = append(all, dirs...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Try tells whether groups of the v2 hierarchy can be got at.
func (h *Host) Try() error { return (&Group{Tracker: h.V2}).ready() }
