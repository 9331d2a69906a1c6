package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"
)

const privateMark = "MSH_BENCH_PRIVATE"

// goPrivate executes the bench anew in a mount table of its own: whatever ends
// it, its mounts go with it, and what crun has to be told stays between the two.
// All that is measured runs in there.
//
// unshare(2) moves one thread only; an exec by that thread is the end of the
// others, and it stays where it is.
func goPrivate() error {
	if os.Getenv(privateMark) != "" {
		if err := os.Unsetenv(privateMark); err != nil {
			return err
		}
		return errors.Join(freshRun(), hideControllers())
	}
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare the mount table: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), privateMark+"=1"))
}

// freshRun mounts a tmpfs on /run, which it is on most hosts and not in every
// container: all that are measured keep their state there.
func freshRun() error {
	if err := syscall.Mount("run", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs on /run: %w", err)
	}
	return nil
}

// hideControllers lets crun work on a host with cgroup v1 and v2 both. It refuses
// where v2 has any controller, even one that nobody asks for (hugetlb is v2's
// when it is mounted nowhere else): "cgroups in hybrid mode not supported". To
// take it away from v2 would change the host for all.
func hideControllers() error {
	const file = "/sys/fs/cgroup/unified/cgroup.controllers"
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if err := syscall.Mount("/dev/null", file, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("hide %s: %w", file, err)
	}
	return nil
}
