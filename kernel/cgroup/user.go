package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup2"
	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
)

// NotDelegated is the error of a limit for which a user has no control group.
type NotDelegated struct {
	Controller string
	Lack       string // what there is instead
}

func (e *NotDelegated) Error() string {
	return fmt.Sprintf("got none (%s), want a control group with the %s controller that is delegated to this user", e.Lack, e.Controller)
}

func (e *NotDelegated) Unwrap() error { return ErrMissing }

// vacated is where the processes of a group go when groups below it are to be
// limited: on v2 only a group without processes can pass controllers down. No
// machine's group can be called so.
const vacated = ".msh"

// SpaceName is what the process that holds a user's space is called: stage0 takes an
// i in front for the word to be an init.
const SpaceName = "init of an msh space"

// DetectUser looks where a user who is not root may make groups: below the group
// the process is in, if that has been given to the user (cgroups(7), delegation).
// Nothing delegated is no error: Base is "" then, and Lack tells why.
func DetectUser() (*Host, error) {
	h := &Host{User: true}
	own, err := ownGroups()
	if err != nil {
		return nil, err
	}
	switch cgroups.Mode() {
	case cgroups.Unified:
		base := own[""]
		if path.Base(base) == vacated {
			base = path.Dir(base)
		}
		if h.Lack = writable(Root, base, "cgroup.procs", "cgroup.subtree_control"); h.Lack != "" {
			return h, nil
		}
		h.Unified, h.V2, h.Base = true, Root, base
		b, err := rawfile.Read(filepath.Join(Root, base, "cgroup.controllers"))
		if err != nil {
			return nil, err
		}
		h.Controllers = strings.Fields(string(b))
		h.Lack = fmt.Sprintf("%s has %s", filepath.Join(Root, base), strings.Join(append(h.Controllers, "no more"), ", "))
		slices.Sort(h.Controllers)
	case cgroups.Hybrid, cgroups.Legacy:
		h.detectV1(own)
	default:
		h.Lack = "no cgroup hierarchy at " + Root
	}
	return h, nil
}

// detectV1 takes those hierarchies in which the process's group is the user's: they
// need the same path, which is the group's name in all of them.
func (h *Host) detectV1(own map[string]string) {
	take := func(mount, base string) bool {
		if h.Base != "" && h.Base != base || base == "/" {
			return false
		}
		if lack := writable(mount, base, "cgroup.procs"); lack != "" {
			h.Lack = lack
			return false
		}
		h.Base = base
		return true
	}
	var st unix.Statfs_t
	if v2 := filepath.Join(Root, "unified"); unix.Statfs(v2, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC && take(v2, own[""]) {
		h.V2 = v2
	}
	for _, name := range []string{"blkio", "cpu", "cpuset", "memory", "pids"} {
		if base, ok := own[name]; ok && take(filepath.Join(Root, name), base) {
			h.Controllers = append(h.Controllers, name)
		}
	}
	switch {
	case h.Base == "" && h.Lack == "":
		h.Lack = "this process is in the root group of every hierarchy"
	case h.Base != "":
		h.Lack = fmt.Sprintf("%s is the user's in the hierarchies of %s", h.Base, strings.Join(append(h.Controllers, "no more"), ", "))
	}
}

// ownGroups is the path of the process's group for each controller; "" is v2's.
func ownGroups() (map[string]string, error) {
	b, err := rawfile.Read("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	own := map[string]string{}
	for line := range strings.Lines(string(b)) { // NUMBER:CONTROLLERS:PATH
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 || strings.HasPrefix(f[1], "name=") {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			own[c] = f[2]
		}
	}
	return own, nil
}

// writable is "" where a group and those files of it are the user's to write, else
// why not.
func writable(mount, group string, files ...string) string {
	dir := filepath.Join(mount, group)
	for _, f := range append([]string{"."}, files...) {
		if err := unix.Access(filepath.Join(dir, f), unix.W_OK); err != nil {
			return fmt.Sprintf("%s is not this user's to write (%v)", filepath.Join(dir, f), err)
		}
	}
	return ""
}

// applyUser is applyV2 below a group that is delegated to a user.
func (g *Group) applyUser(m *cgroup2.Manager, need []string, l Limits) error {
	if len(need) == 0 {
		return nil // nothing is counted either: that would take a controller
	}
	have, err := m.Controllers()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(need, func(c string) bool { return !slices.Contains(have, c) }) {
		if err := g.vacate(); err != nil {
			return err
		}
		// Where one is enabled the counters that stats() reads are as well.
		if err := g.passDown(append(need, "cpu", "memory", "pids", "io")); err != nil {
			return err
		}
	}
	return g.updateV2(m, l)
}

// passDown enables controllers, of those that the base has, in every group from
// there to the one above g.
func (g *Group) passDown(controllers []string) error {
	b, err := rawfile.Read(filepath.Join(g.Tracker, g.Base, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var text []string
	for _, c := range strings.Fields(string(b)) {
		if slices.Contains(controllers, c) {
			text = append(text, "+"+c)
		}
	}
	var above []string
	for p := path.Dir(g.Path); strings.HasPrefix(p, g.Base); p = path.Dir(p) {
		above = append(above, p)
		if p == g.Base || p == "/" {
			break
		}
	}
	for _, p := range slices.Backward(above) {
		file := filepath.Join(g.Tracker, p, "cgroup.subtree_control")
		if err := rawfile.Write(file, strings.Join(text, " ")); err != nil {
			return fmt.Errorf("pass controllers down: %w", err)
		}
	}
	return nil
}

// ErrCrowded is the error of a base that others' processes are in.
var ErrCrowded = errors.New("other processes are in the control group")

// vacate moves the processes of the base into a group of their own below it. Those
// that are not msh's are moved only where the group is the user's by word of the
// service manager, which then keeps its hands off (systemd's Delegate=yes).
func (g *Group) vacate() error {
	base := filepath.Join(g.Tracker, g.Base)
	pids, err := pidsIn(base)
	if err != nil || len(pids) == 0 {
		return err
	}
	if !delegated(base) {
		for _, pid := range pids {
			if !ours(pid) {
				return fmt.Errorf("%s: %w, process %d first of all, and so it cannot pass controllers down", base, ErrCrowded, pid)
			}
		}
	}
	leaf := filepath.Join(base, vacated)
	if err := unix.Mkdir(leaf, 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("mkdir %s: %w", leaf, err)
	}
	return move(base, leaf)
}

// move moves all processes of one group into another.
func move(from, to string) error {
	for {
		pids, err := pidsIn(from)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			err := rawfile.Write(filepath.Join(to, "cgroup.procs"), strconv.Itoa(pid))
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %d to %s: %w", pid, to, err)
			}
		}
	}
}

// delegated reads the mark that systemd sets (systemd.resource-control(5)).
func delegated(dir string) bool {
	var b [8]byte
	for _, mark := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(dir, mark, b[:]); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

// ours tells whether a process is this msh, a child of it, or the one that holds
// the user's space.
func ours(pid int) bool {
	if pid == os.Getpid() || statField(pid, 1) == uint64(os.Getpid()) {
		return true
	}
	b, err := rawfile.Read(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.TrimRight(string(b), "\x00") == SpaceName
}

// Restore undoes what vacate did, once no machine is left below the base: whoever
// gave the group to the user finds it as it was. What stands in the way is left.
func (h *Host) Restore() {
	if !h.User || !h.Unified {
		return
	}
	base := filepath.Join(h.V2, h.Base)
	leaf := filepath.Join(base, vacated)
	if left, err := filepath.Glob(filepath.Join(base, "msh.*")); err != nil || len(left) > 0 || unix.Access(leaf, unix.F_OK) != nil {
		return
	}
	b, err := rawfile.Read(filepath.Join(base, "cgroup.subtree_control"))
	if err != nil {
		return
	}
	var off []string
	for _, c := range strings.Fields(string(b)) {
		off = append(off, "-"+c)
	}
	if len(off) > 0 && rawfile.Write(filepath.Join(base, "cgroup.subtree_control"), strings.Join(off, " ")) != nil {
		return
	}
	if move(leaf, base) == nil {
		unix.Rmdir(leaf)
	}
}
