package kernel

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// Sysctl is a kernel parameter that a namespace has for itself.
type Sysctl struct {
	Name  string // "net.ipv4.ip_forward"
	Value string
}

// Kind is "sysctl".
func (*Sysctl) Kind() string { return "sysctl" }

// Mode is new: it is the machine's own space that it changes.
func (*Sysctl) Mode() Mode { return New }

// Key is the parameter's name.
func (s *Sysctl) Key() string { return s.path() }

// space is the resource whose namespace holds the parameter, "" for none.
func (s *Sysctl) space() string {
	switch name := strings.ReplaceAll(s.Name, "/", "."); {
	case strings.HasPrefix(name, "net."):
		return "netspace"
	case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"),
		name == "kernel.sem", name == "kernel.auto_msgmni":
		return "ipcspace"
	}
	return ""
}

// path turns the name into the file below /proc/sys. As with sysctl(8) either
// sign separates, and where it is the slash, a dot is part of a name (eth0.5).
func (s *Sysctl) path() string {
	dot, slash := strings.IndexByte(s.Name, '.'), strings.IndexByte(s.Name, '/')
	if slash >= 0 && (dot < 0 || slash < dot) {
		return s.Name
	}
	swap := func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}
	return strings.Map(swap, s.Name)
}

// Validate refuses what is not a namespace's own: it would be the whole host's.
func (s *Sysctl) Validate() error {
	for _, part := range strings.Split(s.path(), "/") {
		if part == "" || part == "." || part == ".." {
			return bad("sysctl", "key", s.Name, `a name as "net.ipv4.ip_forward"`)
		}
	}
	switch p := s.path(); {
	case p == "kernel/hostname" || p == "kernel/domainname":
		return &ParamError{Kind: "sysctl", Param: "key", Got: s.Name, Want: "uname(nodename=…, domainname=…) for names", Mend: "use uname(nodename=…)"}
	case s.space() == "":
		return bad("sysctl", "key", s.Name, "one that a namespace has for itself: net.*, kernel.shm*, kernel.msg*, kernel.sem or fs.mqueue.*; this one is the whole host's")
	case strings.ContainsRune(s.Name, 0):
		return bad("sysctl", "key", s.Name, "a text without NUL")
	case s.Value == "" || strings.ContainsRune(s.Value, 0):
		return bad("sysctl", "value", s.Value, "a text to write, not empty and without NUL")
	}
	return nil
}

// Plan has IPv6 on where a parameter of it is asked for.
func (s *Sysctl) Plan(p *Plan) error {
	p.IPv6 = p.IPv6 || strings.HasPrefix(s.path(), "net/ipv6/")
	return nil
}

// Enter writes it.
func (s *Sysctl) Enter(steps *Steps) error {
	s.write(steps, stage0.AtCwd, "/proc/sys/"+s.path())
	return nil
}

func (s *Sysctl) write(steps *Steps, at any, file string) {
	fd := steps.Call("open /proc/sys/"+s.path(), 0, unix.SYS_OPENAT, at, file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	steps.Call("write "+s.Value+" to "+s.Name, 0, unix.SYS_WRITE, fd, s.Value, len(s.Value))
	steps.Call("close it", 0, unix.SYS_CLOSE, fd)
}

func (s *Sysctl) set(m *Machine) error {
	if m.space()&spaceFlags[s.space()] == 0 {
		return bad("sysctl", "key", s.Name, s.space()+"() in the machine, or it would be the host's")
	}
	// By way of the host's /proc: the machine's may be read-only. Which file of that
	// name it is depends on who opens it (proc_sys_lookup).
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc: %w", err)
	}
	defer unix.Close(proc)
	return m.performWith(map[stage0.FD]int{procFD: proc}, func(steps *Steps) { s.write(steps, procFD, "sys/"+s.path()) })
}
