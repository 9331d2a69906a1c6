package kernel

import (
	"fmt"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"msh/kernel/seccomp"
	"msh/kernel/stage0"
)

// The ladder. Each level is confined as the one below it, and more; docs/security.md
// has it as a table.
const (
	levelNodes = 1 // no devices but those of every /dev, no new privileges
	levelMasks = 2 // the profile and the masked paths of container engines
	levelFence = 3 // pure computing
)

// level is what a step of the ladder keeps and takes.
type level struct {
	keeps  capSet // capabilities, of those that the parent has
	takes  capSet // those that caps= cannot put back
	refuse []specs.LinuxSyscall
}

// levels are the ladder. What level 1 refuses in so many words matters where a
// capability is not asked for, or one is that many other things hang on, as on
// CAP_SYS_ADMIN: a host's root without a user space of his own has it there.
var levels = [topLevel + 1]level{
	{keeps: everyCap},
	{keeps: ^hostCaps, takes: hostCaps, refuse: hostCalls},
	{keeps: engineCaps, takes: hostCaps, refuse: hostCalls},
	{takes: hostCaps | spaceCaps, refuse: append(hostCalls[:len(hostCalls):len(hostCalls)], spaceCalls...)},
}

var (
	// hostCaps are what reaches past a machine: the kernel itself, its hardware and
	// clock, files by number (open_by_handle_at(2)), other machines' processes.
	// CAP_SYS_PTRACE is among them since a process that comes into a machine is, for
	// a moment, confined less than those that are there.
	hostCaps = capsNamed("sys_module", "sys_rawio", "sys_time", "sys_boot", "mknod", "sys_ptrace", "dac_read_search",
		"mac_admin", "mac_override", "syslog", "wake_alarm", "block_suspend", "perfmon", "bpf")
	// engineCaps are what container engines leave, but for mknod.
	engineCaps = capsNamed("chown", "dac_override", "fsetid", "fowner", "net_raw", "setgid", "setuid", "setfcap", "setpcap",
		"net_bind_service", "sys_chroot", "kill", "audit_write")
	spaceCaps = capsNamed("sys_admin", "sys_chroot")
)

var hostCalls = []specs.LinuxSyscall{
	seccomp.Refuse(unix.EPERM, []string{
		"init_module", "finit_module", "delete_module", "create_module", "kexec_load", "kexec_file_load",
		"iopl", "ioperm",
		"settimeofday", "stime", "clock_settime", "clock_settime64", "swapon", "swapoff",
		"open_by_handle_at", "bpf", "perf_event_open", "nfsservctl",
	}),
	// What is typed into a terminal by a program, or copied from the console (tty_ioctl(4)):
	// whoever has a terminal of the caller's open would be the caller.
	seccomp.Refuse(unix.EPERM, []string{"ioctl"}, seccomp.Low32(1, unix.TIOCSTI)),
	seccomp.Refuse(unix.EPERM, []string{"ioctl"}, seccomp.Low32(1, unix.TIOCLINUX)),
}

var spaceCalls = []specs.LinuxSyscall{
	seccomp.Refuse(unix.EPERM, []string{
		"unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot",
		"fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "open_tree_attr", "move_mount", "mount_setattr",
		"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
		"userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "request_key", "keyctl",
	}),
	seccomp.Refuse(unix.ENOSYS, []string{"clone3"}), // its flags are behind a pointer; libc takes clone then
	seccomp.Refuse(unix.EPERM, []string{"clone"}, seccomp.AnyOf(0, unix.CLONE_NEWNS, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC,
		unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP)...),
}

// Confinement is how what runs in a machine is confined: its own security(), on top
// of that of the machines that it is in. nil is not at all.
type Confinement struct {
	Level      int
	Caps       capSet // kept
	NoNewPrivs bool
	Profiles   []*seccomp.Profile `json:",omitempty"` // those given, the outermost first
	Fences     []*fence           `json:",omitempty"`

	once     sync.Once
	compiled []filter
	failed   error
}

type filter struct {
	words string
	flags int
	code  []byte
}

// filters are the seccomp filters, in the order in which they are installed.
func (c *Confinement) filters() ([]filter, error) {
	c.once.Do(func() { c.compiled, c.failed = c.compile() })
	return c.compiled, c.failed
}

func (c *Confinement) compile() ([]filter, error) {
	all, err := levelFilters(c.Level, c.Caps)
	if err != nil {
		return nil, err
	}
	for _, p := range c.Profiles {
		code, err := seccomp.Compile(p)
		var flags int
		if err == nil {
			flags, err = seccomp.Flags(p)
		}
		if err != nil {
			return nil, bad("security", "seccomp", nil, err.Error())
		}
		all = append(all, filter{"filter system calls by the profile given", flags, code})
	}
	return all, nil
}

// levelFilters are those of a level, made once.
func levelFilters(n int, kept capSet) ([]filter, error) {
	type key struct {
		level int
		kept  capSet
	}
	at := key{n, 0}
	if n >= levelMasks {
		at.kept = kept // the engines' profile depends on them
	}
	if f, ok := madeFilters.Load(at); ok {
		return f.([]filter), nil
	}
	var all []filter
	if refuse := levels[n].refuse; refuse != nil {
		p, words := seccomp.Refusing(), fmt.Sprintf("refuse what level %d does", n)
		var err error
		if n >= levelMasks {
			words = "allow what container engines do, and " + words
			p, err = seccomp.Default(kept.engineNames())
		}
		var code []byte
		if err == nil {
			// One filter for both: the kernel translates each for every process.
			p.Syscalls = append(p.Syscalls, refuse...)
			code, err = seccomp.Compile(p)
		}
		if err != nil {
			return nil, fmt.Errorf("security: level %d: %w", n, err)
		}
		all = append(all, filter{words, 0, code})
	}
	madeFilters.Store(at, all)
	return all, nil
}

var madeFilters sync.Map

// level is that of a confinement that may be nil.
func (c *Confinement) level() int {
	if c == nil {
		return 0
	}
	return c.Level
}

// The steps that confine a process, the same for a machine's init and for every way
// into the machine. They come in three parts, with what must come between:
//
//	hide       first of all: from ptrace(2), until a program is executed
//	           … control groups, namespaces, mounts, masks
//	enclose    no new privileges, fences
//	           … rlimits
//	           bounding set (an init's, as it waits for its network)
//	           … user
//	shed       capabilities, seccomp
//	           exec

// hide keeps the process, which is confined less than the machine's own as long as it
// performs steps, from being traced by them: who may is asked for CAP_SYS_PTRACE,
// which level 1 takes.
func (s *Steps) hide(c *Confinement) {
	if c != nil {
		s.Call("be nobody's to trace", 0, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
}

func (s *Steps) enclose(c *Confinement, program string) {
	if c == nil {
		return
	}
	if c.NoNewPrivs {
		s.Call("no new privileges", 0, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	for _, f := range c.Fences {
		s.landlock(f, program)
	}
}

func (s *Steps) boundCaps(c *Confinement) {
	if c != nil && c.Caps != everyCap {
		s.bound(c.Caps)
	}
}

// shed is the last before exec: what comes behind it must be let through. root tells
// whether the process is the machine's root user.
func (s *Steps) shed(c *Confinement, root bool, space uintptr) error {
	if c == nil {
		return nil
	}
	if c.Caps != everyCap {
		kept := c.Caps
		if !root {
			kept = 0
		} else if space&unix.CLONE_NEWUSER == 0 { // whose root has them all
			own, err := ownCaps()
			if err != nil {
				return err
			}
			kept &= own
		}
		s.keepCaps(kept)
	}
	filters, err := c.filters()
	if err != nil {
		return err
	}
	for _, f := range filters {
		s.Call(f.words, 0, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, f.flags, program(f.code))
	}
	return nil
}

// program is a struct sock_fprog.
func program(code []byte) stage0.Words {
	return stage0.Words{len(code) / seccomp.InstructionSize, code}
}

// confinement is how what runs in the machine is confined.
func (m *Machine) confinement() *Confinement {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.self.Confined
}
