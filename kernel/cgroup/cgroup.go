// Package cgroup makes, limits, counts and removes the control groups of
// machines on cgroup v1, v2 and hybrid hosts.
//
// A machine has one Group: a path that is the same in every hierarchy it needs.
//
//	unified   /sys/fs/cgroup/msh.lab.m1                 limits and processes
//	hybrid    /sys/fs/cgroup/unified/msh.lab.m1         processes: kill, freeze, CPU time
//	          /sys/fs/cgroup/{cpu,memory,…}/msh.lab.m1  only where a limit asks for it
//	legacy    cgroup2:/msh.lab.m1                       as in hybrid, in a mount of v2
//	          /sys/fs/cgroup/{cpu,memory,…}/msh.lab.m1  that only msh sees: Private
//
// The hierarchy that holds the processes is the mark of ownership: whatever is
// found in it after a crash is the machine's, and nothing else is. The limits
// themselves are written and the counters read by containerd/cgroups.
//
//	g := host.Group("/msh.lab.m1", cgroup.Limits{Pids: 64})
//	err := g.Make()          // after g.Dirs() went to the ledger
//	…                        // processes join: v2 by CLONE_INTO_CGROUP, v1 by Places()
//	err = g.Remove(ctx)      // kills what is left in it
package cgroup

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
)

// Root is where every distribution mounts the hierarchies.
const Root = "/sys/fs/cgroup"

// ErrMissing is the error for a controller that this host does not have.
var ErrMissing = errors.New("controller missing")

// Host is what this host has.
type Host struct {
	Unified bool   // v2 alone
	V2      string // where the v2 hierarchy is mounted; Private on a legacy host
	// Controllers that limits can use, sorted. On v2 those of the root, else
	// those with a v1 hierarchy of their own.
	Controllers []string
	// Of a user who is not root: where in the hierarchies the groups may be made,
	// and why not more of them can be. Base is "" where nothing is delegated.
	User bool
	Base string
	Lack string
}

// Detect looks what this host has. It costs a few system calls and reads nothing
// but the list of controllers.
func Detect() (*Host, error) {
	h := &Host{}
	switch cgroups.Mode() {
	case cgroups.Unified:
		h.Unified, h.V2 = true, Root
		b, err := rawfile.Read(filepath.Join(Root, "cgroup.controllers"))
		if err != nil {
			return nil, err
		}
		h.Controllers = strings.Fields(string(b))
	case cgroups.Hybrid, cgroups.Legacy:
		if h.V2 = filepath.Join(Root, "unified"); cgroups.Mode() == cgroups.Legacy {
			h.V2 = Private
		}
		for _, name := range []string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"} {
			if unix.Access(filepath.Join(Root, name, "cgroup.procs"), unix.F_OK) == nil {
				h.Controllers = append(h.Controllers, name)
			}
		}
	default:
		return nil, fmt.Errorf("no cgroup hierarchy at %s: mount cgroup2 there", Root)
	}
	slices.Sort(h.Controllers)
	return h, nil
}

// Mode is "v2", "hybrid" or "v1".
func (h *Host) Mode() string {
	switch {
	case h.User && h.Base == "":
		return "none"
	case h.Unified:
		return "v2"
	case h.V2 == Private:
		return "v1"
	}
	return "hybrid"
}

func (h *Host) has(controller string) bool { return slices.Contains(h.Controllers, controller) }

// A Group is the control group of one machine, in every hierarchy it needs. It
// is plain data, and can be written down and used by another process.
type Group struct {
	Path    string   // from the root of each hierarchy: "/msh.lab.m1"
	Unified bool     // whether limits and processes are both in v2
	Tracker string   // the mount point of the v2 hierarchy, which holds the processes; or Private
	V1      []string `json:",omitempty"` // controllers of v1 in use
	// Owner marks the directory of the processes as this machine's.
	Owner string
	// Base is the group that a user may make groups in; "" is root's, the root.
	Base string `json:",omitempty"`
	// Init is whose PID namespace holds the processes, where there is no Tracker.
	Init *Init `json:",omitempty"`
	// Leaf is set where processes are in Path/.init, since on v2 a group whose
	// children have limits cannot have processes of its own.
	Leaf   bool   `json:",omitempty"`
	Limits Limits `json:",omitzero"`
}

// Group lays out the group for those limits, touching nothing. parents is for
// a machine that will have machines of its own.
func (h *Host) Group(path string, l Limits, parents bool) *Group {
	g := &Group{Path: path, Unified: h.Unified, Tracker: h.V2, Limits: l, Leaf: h.Unified && parents, Base: h.Base}
	if !h.Unified {
		g.V1 = l.controllers() // sorted
	}
	return g
}

// Check tells whether the host has what the group's limits need.
func (h *Host) Check(l Limits) error {
	for _, c := range l.controllers() {
		name := c
		if h.Unified && c == "blkio" {
			name = "io"
		}
		if !h.has(name) {
			if h.User {
				return &NotDelegated{name, h.Lack}
			}
			return fmt.Errorf("%w: %s (cgroup %s here has %s)", ErrMissing, name, h.Mode(), strings.Join(h.Controllers, " "))
		}
	}
	if !h.Unified {
		if l.MemoryHigh != nil {
			return fmt.Errorf("%w: memory.high is cgroup v2's (this host is %s); memory(max=) works on both", ErrMissing, h.Mode())
		}
		if l.Swap != nil && unix.Access(filepath.Join(Root, "memory/memory.memsw.limit_in_bytes"), unix.F_OK) != nil {
			return fmt.Errorf("%w: memory.memsw: boot with swapaccount=1, or use cgroup v2", ErrMissing)
		}
	}
	return nil
}

// dir is the group's directory in the hierarchy mounted at mount.
func (g *Group) dir(mount string) string { return filepath.Join(mountPoint(mount), g.Path) }

func (g *Group) v1dir(controller string) string { return g.dir(filepath.Join(Root, controller)) }

// Dirs lists every directory that Make makes, in its order, by paths that hold as long as this process.
func (g *Group) Dirs() []string {
	var dirs []string
	if g.Tracker != "" {
		dirs = append(dirs, g.dir(g.Tracker))
	}
	if g.Leaf {
		dirs = append(dirs, g.Processes())
	}
	for _, c := range g.V1 {
		dirs = append(dirs, g.v1dir(c))
	}
	return dirs
}

// Names are the directories in words that mean the same to everybody.
func (g *Group) Names() []string {
	names := g.Dirs()
	if g.Tracker == Private {
		names[0] = Private + g.Path
	}
	return names
}

// Processes is the directory that a machine's processes are in.
func (g *Group) Processes() string {
	if g.Leaf {
		return filepath.Join(g.dir(g.Tracker), ".init") // no machine can be called so
	}
	return g.dir(g.Tracker)
}

// Place is where in a hierarchy of v1's a process belongs.
type Place struct{ Controller, Path string }

// Join is the file to which a task writes "0" to go there: done by the task itself
// it takes no grace period of RCU, done by another it takes 11 ms.
func (p Place) Join() string { return filepath.Join(Root, p.Controller, p.Path, "tasks") }

// Places are those of the group's processes: its own hierarchies, and those that
// only groups around it are in, where it is in theirs. Above are their places.
func (g *Group) Places(above []Place) []Place {
	var all []Place
	for _, c := range g.V1 {
		all = append(all, Place{c, g.Path})
	}
	for _, p := range above {
		if !slices.Contains(g.V1, p.Controller) {
			all = append(all, p)
		}
	}
	return all
}
