package criu

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Problem is why a tree cannot be saved.
type Problem struct {
	Pid  int    // of the process, seen from the caller; 0 where it is the whole tree's
	Name string // the process's
	What string // "has an io_uring (descriptor 7)"
	Mend string
}

func (p Problem) String() string {
	if p.Pid == 0 {
		return p.What
	}
	return fmt.Sprintf("process %d (%s) %s", p.Pid, p.Name, p.What)
}

// Bounds are what of a tree's surroundings the caller takes care of.
type Bounds struct {
	Mounts []string // places in the tree's mount table, as Dump.Mounts has them
	Files  []string // keys of files outside, as Dump.Files has them
}

// process is one of a tree, as /proc tells of it.
type process struct {
	pid    int
	name   string
	status map[string]string // of /proc/PID/status
	fds    []descriptor
}

type descriptor struct {
	number int
	link   string // where /proc/PID/fd/N leads
	info   map[string]string
}

// Check looks through a tree for what criu is known not to save, while it runs;
// pids are its processes, the root first. A process that ends meanwhile is no
// problem. It finds what can be seen from outside: a dump may fail for other
// reasons.
func Check(pids []int, b Bounds) []Problem {
	t := readTree(pids)
	if len(t.all) == 0 {
		return nil
	}
	var found []Problem
	for _, p := range t.all {
		for _, look := range []func(*tree, *process) []Problem{spaces, rights, descent, program, files, devices, sockets, terminals} {
			found = append(found, look(t, p)...)
		}
	}
	found = append(found, t.outsiders(b)...)
	return append(found, t.mounted(b)...)
}

// tree is what the looks go through.
type tree struct {
	all     []*process
	mounts  map[string]mount  // of the root, by number
	space   map[string]string // the root's namespaces, by kind
	masters map[string]bool   // terminals whose master side is in the tree, by index
	unix    map[uint64]bool   // inodes of the unix sockets in the tree
}

type mount struct{ at, fstype string }

func readTree(pids []int) *tree {
	t := &tree{mounts: map[string]mount{}, space: map[string]string{}, masters: map[string]bool{}, unix: map[uint64]bool{}}
	for _, pid := range pids {
		p := readProcess(pid)
		if p == nil {
			continue
		}
		t.all = append(t.all, p)
		for _, d := range p.fds {
			if index, ok := d.info["tty-index"]; ok {
				t.masters[index] = true
			}
			if ino, ok := socket(d.link); ok {
				t.unix[ino] = true
			}
		}
	}
	if len(t.all) == 0 {
		return t
	}
	root := t.all[0].pid
	for _, s := range kinds {
		t.space[s] = space(root, s)
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", root))
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i > 5 && i+1 < len(f) {
			t.mounts[f[0]] = mount{at: unescape(f[4]), fstype: f[i+1]}
		}
	}
	return t
}

// unescape undoes the octal escapes of /proc/PID/mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func readProcess(pid int) *process {
	p := &process{pid: pid, status: readStatus(pid)}
	if p.status == nil {
		return nil
	}
	p.name = p.status["Name"]
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue
		}
		info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, n))
		p.fds = append(p.fds, descriptor{n, link, fields(string(info))})
	}
	slices.SortFunc(p.fds, func(a, b descriptor) int { return a.number - b.number })
	return p
}

func readStatus(pid int) map[string]string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	return fields(string(b))
}

// fields are lines of "name: value".
func fields(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m
}

func (p *process) problem(mend, format string, args ...any) []Problem {
	return []Problem{{p.pid, p.name, fmt.Sprintf(format, args...), mend}}
}

// kinds are the namespaces that criu can have only one of in a tree. Networks and
// mount tables may be several for criu, but those would be its to make again.
var kinds = []string{"pid", "mnt", "net", "uts", "ipc", "user", "cgroup", "time", "pid_for_children", "time_for_children"}

func space(pid int, kind string) string {
	s, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	return s
}

// spaces looks for namespaces that a program inside has made.
func spaces(t *tree, p *process) (found []Problem) {
	for _, kind := range kinds {
		s := space(p.pid, kind)
		if s == "" || s == t.space[kind] { // "": it ends, or has forked none yet
			continue
		}
		found = append(found, p.problem("end what made it: a container, a sandboxed service, unshare(1)", "has a %s namespace of its own inside the machine", strings.TrimSuffix(kind, "_for_children"))...)
		if kind == "user" {
			break // the others come with it
		}
	}
	return found
}

// rights looks whether criu may read the process's limits: those of another user's
// process take CAP_SYS_RESOURCE in its user namespace (prlimit(2)), which a host
// in a container may lack.
func rights(t *tree, p *process) []Problem {
	const resource = 1 << unix.CAP_SYS_RESOURCE
	self := readStatus(os.Getpid())
	caps, err := strconv.ParseUint(self["CapEff"], 16, 64)
	if err != nil || caps&resource != 0 || space(p.pid, "user") != space(os.Getpid(), "user") {
		return nil
	}
	if p.status["Uid"] == self["Uid"] && p.status["Gid"] == self["Gid"] {
		return nil
	}
	uid, _, _ := strings.Cut(p.status["Uid"], "\t")
	return p.problem("run msh with CAP_SYS_RESOURCE, or make the machine with a uidspace()", "runs as user %s, and msh lacks CAP_SYS_RESOURCE, without which its limits cannot be read", uid)
}

// descent looks at what the process comes from.
func descent(t *tree, p *process) []Problem {
	if tracer := p.status["TracerPid"]; tracer != "0" && tracer != "" {
		return p.problem("end the debugger", "is traced by process %s", tracer)
	}
	// A number that a namespace has not is 0 there.
	for field, what := range map[string]string{"NSsid": "session", "NSpgid": "process group"} {
		if f := strings.Fields(p.status[field]); len(f) > 1 && f[len(f)-1] == "0" {
			return p.problem("start it by setsid(1)", "is in a %s that was made outside", what)
		}
	}
	return nil
}

// program looks at the program itself: criu saves one that is a memory file, but
// cannot restore it.
func program(t *tree, p *process) []Problem {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
	if err == nil && strings.HasPrefix(exe, "/memfd:") {
		return p.problem("have it executed from a file", "runs from a memory file (%s)", strings.TrimSuffix(exe, " (deleted)"))
	}
	return nil
}

// saved are the kinds of anonymous inodes that criu saves.
var saved = []string{"[eventfd]", "[eventpoll]", "inotify", "[fanotify]", "[signalfd]", "[timerfd]", "[pidfd]", "bpf-map"}

// files looks for descriptors of a kind that cannot be saved.
func files(t *tree, p *process) (found []Problem) {
	for _, d := range p.fds {
		kind, ok := strings.CutPrefix(d.link, "anon_inode:")
		if !ok || slices.Contains(saved, kind) {
			continue
		}
		mend := "end it, or save the files only"
		switch kind = strings.Trim(kind, "[]"); kind {
		case "io_uring":
			kind, mend = "an io_uring", "set the program to work without (nginx: no `aio io_uring`; PostgreSQL: io_method=worker; libuv: UV_USE_IO_URING=0), or save the files only"
		case "seccomp notify":
			kind = "a seccomp listener"
		case "userfaultfd":
			kind = "a userfaultfd"
		default:
			kind = "a " + kind
		}
		found = append(found, p.problem(mend, "has %s (descriptor %d)", kind, d.number)...)
	}
	return found
}

// devices looks for device nodes whose state the kernel does not give away: criu saves
// the memory devices (null, zero, random, …), terminals, and interfaces' /dev/net/tun.
func devices(t *tree, p *process) (found []Problem) {
	const mem, misc, tun = 1, 10, 200
	terminal := []uint32{4, 5, 136, 137, 138, 139, 140, 141, 142, 143}
	for _, d := range p.fds {
		var st unix.Stat_t
		if !strings.HasPrefix(d.link, "/") || unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", p.pid, d.number), &st) != nil {
			continue
		}
		flags, _ := strconv.ParseInt(d.info["flags"], 8, 64)
		major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
		switch kind := st.Mode & unix.S_IFMT; {
		case kind != unix.S_IFCHR && kind != unix.S_IFBLK, flags&unix.O_PATH != 0:
		case kind == unix.S_IFCHR && (major == mem || major == misc && minor == tun || slices.Contains(terminal, major)):
		default:
			found = append(found, p.problem("have the program close it, or save the files only", "has the device %s open (descriptor %d)", d.link, d.number)...)
		}
	}
	return found
}
