package kernel

import (
	"golang.org/x/sys/unix"
)

// Space is a namespace that takes no parameters: pidspace, ipcspace, netspace,
// mountspace or cgroupspace.
type Space struct{ Name string }

// Kind is the space's name.
func (s *Space) Kind() string { return s.Name }

// Mode is new: a space is made for the machine.
func (*Space) Mode() Mode { return New }

// Validate has nothing to check.
func (*Space) Validate() error { return nil }

// Plan has clone make the namespace, and a mount table with it where the
// namespace is seen through a file system.
func (s *Space) Plan(p *Plan) error {
	switch s.Name {
	case "pidspace":
		p.Flags |= unix.CLONE_NEWPID
		p.Table = true
	case "ipcspace":
		p.Flags |= unix.CLONE_NEWIPC
	case "netspace":
		p.Flags |= unix.CLONE_NEWNET
	case "mountspace":
		p.Table = true
	case "cgroupspace":
		p.Unmade |= unix.CLONE_NEWCGROUP
	}
	return nil
}

// Enter mounts the machine's own /proc. A new network prepares itself (Steps.newNetwork).
func (s *Space) Enter(steps *Steps) error {
	switch s.Name {
	case "pidspace":
		if !steps.Plan.Spec.Has("root") { // which brings its own
			steps.Call("mount proc on /proc", 0, unix.SYS_MOUNT, "proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
		}
	}
	return nil
}
