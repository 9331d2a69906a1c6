package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
)

func (g *Group) v2() (*cgroup2.Manager, error) {
	if err := g.ready(); err != nil {
		return nil, err
	}
	return cgroup2.Load(g.Path, cgroup2.WithMountpoint(mountPoint(g.Tracker)))
}

// Pids lists the processes in the group and in those below it.
func (g *Group) Pids() ([]int, error) {
	if g.Tracker == "" {
		return g.Init.pids()
	}
	if err := g.ready(); err != nil {
		return nil, err
	}
	return pidsBelow(g.dir(g.Tracker))
}

// Has tells whether a process, even one that has ended and was not yet reaped, is
// in the group or below.
func (g *Group) Has(pid int) bool {
	if g.Tracker == "" {
		return g.Init.has(pid)
	}
	b, err := rawfile.Read(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) { // NUMBER:CONTROLLERS:PATH
		f := strings.SplitN(strings.TrimSuffix(strings.TrimSpace(line), " (deleted)"), ":", 3)
		if len(f) == 3 && (f[2] == g.Path || strings.HasPrefix(f[2], g.Path+"/")) {
			return true
		}
	}
	return false
}

func pidsBelow(dir string) ([]int, error) {
	var all []int
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !e.IsDir() {
			return nil
		}
		pids, err := pidsIn(path)
		all = append(all, pids...)
		return err
	})
	return all, err
}

func pidsIn(dir string) ([]int, error) {
	b, err := rawfile.Read(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Freeze stops every process in the group and below, and returns when they have
// stopped or ctx ends.
func (g *Group) Freeze(ctx context.Context) error {
	if err := g.SetFrozen(true); err != nil {
		return err
	}
	return g.AwaitFrozen(ctx, true)
}

// Thaw lets them go on.
func (g *Group) Thaw(ctx context.Context) error {
	if err := g.SetFrozen(false); err != nil {
		return err
	}
	return g.AwaitFrozen(ctx, false)
}

// SetFrozen asks for what AwaitFrozen waits for: several groups are asked first, and
// waited for then.
func (g *Group) SetFrozen(frozen bool) error {
	if g.Tracker == "" {
		if !frozen {
			return nil // it never is
		}
		return fmt.Errorf("%w: nothing but a control group can stop a machine as a whole, and none is delegated to this user", ErrMissing)
	}
	m, err := g.v2()
	if err != nil {
		return err
	}
	if frozen {
		return m.Freeze()
	}
	return m.Thaw()
}

// AwaitFrozen returns when all in the group stand still, or when they may go on, or
// when ctx ends.
func (g *Group) AwaitFrozen(ctx context.Context, frozen bool) error {
	switch {
	case g.Tracker == "":
		return nil
	case frozen:
		return g.await(ctx, "frozen", "1")
	}
	return g.await(ctx, "frozen", "0")
}

// Frozen tells whether the group is frozen, by itself or with one it is in. A
// process must never be started in such a group: its parent, which waits until
// it has executed its program, would stand still with it.
func (g *Group) Frozen() bool {
	if g.Tracker == "" {
		return false
	}
	for path := g.Path; path != "/" && path != "."; path = filepath.Dir(path) {
		b, err := rawfile.Read(filepath.Join(mountPoint(g.Tracker), path, "cgroup.freeze"))
		if err == nil && strings.TrimSpace(string(b)) == "1" {
			return true
		}
	}
	return false
}

// await polls cgroup.events; the kernel has no call that waits for it, and what
// is waited for takes microseconds.
func (g *Group) await(ctx context.Context, key, want string) error {
	for nap := 20 * time.Microsecond; ; nap = min(2*nap, 5*time.Millisecond) {
		b, err := rawfile.Read(filepath.Join(g.dir(g.Tracker), "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key && v == want {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %s is not %s yet: %w", g.dir(g.Tracker), key, want, ctx.Err())
		case <-time.After(nap):
		}
	}
}

// Kill ends every process in the group and below; it does not wait for them.
func (g *Group) Kill() error {
	if g.Tracker == "" {
		return g.Init.kill()
	}
	if !strings.HasPrefix(g.Path, g.Base+"/msh.") {
		return fmt.Errorf("kill cgroup %q: not a machine's", g.Path) // never the root's
	}
	if err := g.ready(); err != nil {
		return err
	}
	dir := g.dir(g.Tracker)
	err := rawfile.Write(filepath.Join(dir, "cgroup.kill"), "1")
	if err == nil || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Before 5.14 there is no kill: freeze, so that no fork gets away, signal, thaw.
	if unix.Access(dir, unix.F_OK) != nil {
		return nil
	}
	freeze := filepath.Join(dir, "cgroup.freeze")
	if err := rawfile.Write(freeze, "1"); err != nil {
		return err
	}
	pids, err := g.Pids()
	for _, pid := range pids {
		if e := unix.Kill(pid, unix.SIGKILL); e != nil && e != unix.ESRCH {
			err = errors.Join(err, fmt.Errorf("kill %d: %w", pid, e))
		}
	}
	return errors.Join(err, rawfile.Write(freeze, "0"))
}

// Remove ends the group's processes, waits for them and removes its directories
// and those that its processes made below them. What is gone already is no error,
// and a group that somebody else has made there is left alone.
func (g *Group) Remove(ctx context.Context) error {
	if g.Tracker == "" {
		if err := g.Init.end(ctx); err != nil || len(g.V1) == 0 {
			return err
		}
	}
	if mine, err := g.mine(); !mine {
		return err
	}
	var errs []error
	if g.Unified && g.Limits.Exclusive {
		// rmdir gives a partition's CPUs back only some time after it has answered.
		err := rawfile.Write(filepath.Join(g.dir(g.Tracker), "cpuset.cpus.partition"), "member")
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("end the partition: %w", err))
		}
	}
	dirs := g.Dirs()
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := g.rmdir(ctx, dirs[i]); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// rmdir removes a directory; what keeps it busy is killed, and again while the
// kernel still counts the dying, since something may have been on its way in.
func (g *Group) rmdir(ctx context.Context, dir string) error {
	for nap := 20 * time.Microsecond; ; nap = min(2*nap, 10*time.Millisecond) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || err == unix.ENOENT:
			return nil
		case err != unix.EBUSY && err != unix.ENOTEMPTY:
			return fmt.Errorf("rmdir %s: %w", dir, err)
		}
		if err := g.Kill(); err != nil {
			return err
		}
		removeBelow(dir)
		select {
		case <-ctx.Done():
			pids, _ := pidsBelow(dir)
			return fmt.Errorf("rmdir %s: still in use by processes %v: %w", dir, pids, ctx.Err())
		case <-time.After(nap):
		}
	}
}

// removeBelow removes the empty groups under dir: a machine with a cgroup space
// of its own may have made some.
func removeBelow(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			sub := filepath.Join(dir, e.Name())
			removeBelow(sub)
			unix.Rmdir(sub)
		}
	}
}
