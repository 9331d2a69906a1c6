package escape

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// These aim at settings of the whole host: each is opened for writing, by every way
// to it that a root might find, and closed.

// setting tries a file below /proc or /sys: as it is, with its mount made writable
// again, and in a new mount of that file system.
func setting(fstype, file string) func(*Target) error {
	return func(*Target) error {
		root := "/" + strings.Split(file, "/")[1]
		return anyOf(
			func() error { return openable(file) },
			func() error { return inOwnTable(func() error { return remounted(root, file) }) },
			func() error { return inOwnTable(func() error { return mountedAnew(fstype, root, file) }) },
		)
	}
}

// inOwnTable goes on in a mount table of the thread's own where that can be had, so
// that nothing of it is seen by others. A machine has its own in any case.
func inOwnTable(f func() error) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err == nil {
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	} else if os.Getpid() != 1 && !ownTable() {
		return err
	}
	return f()
}

// ownTable tells whether the mount table is the machine's own: its root is.
func ownTable() bool {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" && strings.Contains(line, " - overlay ") {
			return true
		}
	}
	return false
}

// remounted takes masks off, mount by mount, and read-only flags.
func remounted(root, file string) error {
	held := unmask(root, file)
	if err := openable(file); err == nil || held == nil {
		return err
	}
	return held
}

func unmask(root, file string) (held error) {
	for at := file; at != "/"; at = filepath.Dir(at) {
		unix.Unmount(at, unix.MNT_DETACH)
	}
	for at := file; ; at = filepath.Dir(at) {
		if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			held = fmt.Errorf("remount %s: %w", at, err)
		}
		if at == root {
			return held
		}
	}
}

// masked reads what level 2 covers: as it is, with the cover taken off, in a new mount.
func masked(*Target) error {
	const root, file = "/proc", "/proc/interrupts"
	return anyOf(
		func() error { return readable(file) },
		func() error {
			return inOwnTable(func() error {
				if held := unmask(root, file); held != nil {
					return held
				}
				return readable(file)
			})
		},
		func() error {
			return inOwnTable(func() error {
				return inNewMount("proc", "", func(dir string) error { return readable(dir + strings.TrimPrefix(file, root)) })
			})
		},
	)
}

// writable makes what was mounted read-only writable again, and opens it.
func writable(t *Target) error {
	return anyOf(
		func() error { return openable(t.Shared) },
		func() error {
			return inOwnTable(func() error {
				if err := unix.Mount("", t.Shared, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
					return fmt.Errorf("remount: %w", err)
				}
				return openable(t.Shared)
			})
		},
	)
}

func mountedAnew(fstype, root, file string) error {
	return inNewMount(fstype, "", func(dir string) error { return openable(dir + strings.TrimPrefix(file, root)) })
}

func inNewMount(fstype, options string, f func(dir string) error) error {
	dir, err := scratch()
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("escape", dir, fstype, 0, options); err != nil {
		return fmt.Errorf("mount %s: %w", fstype, err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	return f(dir)
}

// scratch makes a directory to mount on.
func scratch() (string, error) {
	for _, at := range []string{"/tmp", "/dev/shm", "/run"} {
		if dir, err := os.MkdirTemp(at, "escape-*"); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no directory to mount on")
}

// binfmt registers nothing: it opens the file that would.
func binfmt(*Target) error {
	const at = "/proc/sys/fs/binfmt_misc"
	if b, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(b), "binfmt_misc") {
		return absent("no binfmt_misc on this kernel")
	}
	return anyOf(
		func() error { return openable(at + "/register") },
		func() error {
			// A user namespace has its own since Linux 6.7.
			if b, _ := os.ReadFile("/proc/self/uid_map"); !strings.Contains(string(b), "4294967295") {
				return errors.New("a new mount of it is the machine's own")
			}
			return inOwnTable(func() error { return mountedAnew("binfmt_misc", at, at+"/register") })
		},
	)
}

// groups finds the directories of the process's own control groups, by the mounts
// that are there and by new ones, and calls f until it succeeds.
func groups(f func(dir string) error) error {
	lines, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	held := errors.New("no way to its control group")
	try := func(mount, path string) bool {
		for _, dir := range []string{filepath.Join(mount, path), mount} {
			err := f(dir)
			if err == nil {
				return true
			}
			if !errors.As(err, new(absentError)) {
				held = err
			}
		}
		return false
	}
	type hierarchy struct{ controllers, path string }
	var all []hierarchy
	for line := range strings.Lines(string(lines)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			all = append(all, hierarchy{f[1], f[2]})
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		m := strings.Fields(line)
		if len(m) < 4 || !strings.HasPrefix(m[2], "cgroup") {
			continue
		}
		for _, h := range all {
			if h.controllers == "" == (m[2] == "cgroup2") && (h.controllers == "" || strings.Contains(m[3], h.controllers)) {
				if try(m[1], h.path) {
					return nil
				}
				if unix.Mount("", m[1], "", unix.MS_REMOUNT|unix.MS_BIND, "") == nil && try(m[1], h.path) {
					return nil
				}
			}
		}
	}
	err = inOwnTable(func() error {
		dir, err := scratch()
		if err != nil {
			return err
		}
		defer os.Remove(dir)
		for _, h := range all {
			fstype, options := "cgroup", h.controllers
			if h.controllers == "" {
				fstype = "cgroup2"
			} else if name, ok := strings.CutPrefix(options, "name="); ok {
				options = "none,name=" + name
			}
			if err := unix.Mount("escape", dir, fstype, 0, options); err != nil {
				held = fmt.Errorf("mount %s: %w", fstype, err)
				continue
			}
			ok := try(dir, h.path)
			unix.Unmount(dir, unix.MNT_DETACH)
			if ok {
				return nil
			}
		}
		return held
	})
	return err
}

// releaseAgent opens the program that the kernel runs, as the host's root, when a
// group is left by its last process (CVE-2022-0492).
func releaseAgent(*Target) error {
	b, _ := os.ReadFile("/proc/filesystems")
	if !strings.Contains(string(b), "\tcgroup\n") {
		return absent("no cgroup v1 on this kernel")
	}
	if b, _ := os.ReadFile("/proc/self/cgroup"); strings.HasPrefix(string(b), "0:") {
		return newHierarchy() // all groups are v2's, which has no such thing
	}
	return groups(func(dir string) error {
		for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
			err := openable(filepath.Join(dir, "release_agent"))
			if err == nil || !errors.As(err, new(absentError)) {
				return err
			}
		}
		return absent("no release_agent")
	})
}

// newHierarchy makes one of v1's, without controllers, which has a release_agent too.
func newHierarchy() error {
	return inOwnTable(func() error {
		return inNewMount("cgroup", "none,name=escape", func(dir string) error { return openable(filepath.Join(dir, "release_agent")) })
	})
}

func raiseLimit(*Target) error {
	return groups(func(dir string) error {
		held := error(absent("no limits in %s", dir))
		for _, file := range []string{"pids.max", "memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us"} {
			err := openable(filepath.Join(dir, file))
			if err == nil {
				return nil
			}
			if !errors.As(err, new(absentError)) {
				held = err
			}
		}
		return held
	})
}

// leaveGroup moves this process to a group above its own.
func leaveGroup(*Target) error {
	return groups(func(dir string) error {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
			return absent("no group in %s", dir)
		}
		before, _ := os.ReadFile("/proc/self/cgroup")
		fd, err := unix.Open(filepath.Join(filepath.Dir(dir), "cgroup.procs"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			return absent("nothing above %s", dir)
		}
		if err != nil {
			return fmt.Errorf("open the group above: %w", err)
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			return fmt.Errorf("join the group above: %w", err)
		}
		if after, _ := os.ReadFile("/proc/self/cgroup"); string(after) == string(before) {
			return errors.New("it is where it was")
		}
		return nil
	})
}
