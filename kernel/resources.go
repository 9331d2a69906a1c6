package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// View is the place from which resources are listed: a machine that could give
// them to one of its own.
type View struct {
	host *Host
	from *Machine
}

// Available is one thing that can be named in machine_rfork.
type Available struct {
	Kind      string
	Name      string
	Modes     []Mode
	Available bool
	Owner     string // LAB/MACHINE that has it exclusively, "" where free
	Detail    string // how much; where it cannot be used, why and the mend
}

// Resources lists what m could give to a machine of its own, by kind in the
// order of the table. kind "" is all.
func (m *Machine) Resources(kind string) ([]Available, error) {
	if kind != "" && kindOf(kind) == nil {
		var names []string
		for _, k := range kinds() {
			names = append(names, k.Name)
		}
		return nil, bad("resources", "kind", kind, "one of "+strings.Join(names, " "))
	}
	v := &View{m.host, m}
	var all []Available
	for _, k := range kinds() {
		if kind != "" && k.Name != kind {
			continue
		}
		list, err := k.List(v)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", k.Name, err)
		}
		for i := range list {
			list[i].Kind = k.Name
			if list[i].Modes == nil {
				list[i].Modes = k.Modes
			}
		}
		all = append(all, list...)
	}
	return all, nil
}

// refuse marks what cannot be had, and says why and the mend.
func (a *Available) refuse(err error) {
	if err == nil {
		return
	}
	a.Available = false
	a.Detail += "; " + err.Error()
	if hint := (interface{ Hint() string })(nil); errors.As(err, &hint) {
		a.Detail += ": " + hint.Hint()
	}
}

// limited marks a list unavailable where its controller is missing.
func (v *View) limited(controller, v2 string, list ...Available) []Available {
	name := controller
	if v.host.Cgroup.Unified {
		name = v2
	}
	if !slices.Contains(v.host.Cgroup.Controllers, name) {
		for i := range list {
			list[i].Available = false
			if v.host.Cgroup.User {
				list[i].Detail = fmt.Sprintf("no control group with the %s controller is delegated to this user (%s): %s", name, v.host.Cgroup.Lack, delegate)
				continue
			}
			list[i].Detail = fmt.Sprintf("no %s controller in cgroup %s: the kernel, or its cgroup_disable=, lacks it", name, v.host.Cgroup.Mode())
		}
	}
	return list
}

func listCPUs(v *View) ([]Available, error) {
	have, err := v.from.cpus()
	if err != nil {
		return nil, err
	}
	claims, err := v.host.book.Claims("cpu")
	if err != nil {
		return nil, err
	}
	var list []Available
	for _, n := range have {
		a := Available{Name: strconv.Itoa(n), Available: true, Detail: "CPU " + strconv.Itoa(n)}
		for _, c := range claims {
			if cpuOf(c) == a.Name && !v.from.within(c.Owner) {
				a.Owner, a.Available, a.Detail = c.Owner, false, "taken exclusively"
			}
		}
		list = append(list, a)
	}
	return v.limited("cpuset", "cpuset", list...), nil
}

func listMemory(v *View) ([]Available, error) {
	total, err := memTotal()
	if err != nil {
		return nil, err
	}
	for m := v.from; !m.isHost(); m = m.parent {
		if l, ok := m.Spec().find("memory").(*Memory); ok && l.Max != nil {
			total = min(total, *l.Max)
		}
	}
	free, err := v.host.unreserved(v.from)
	if err != nil {
		return nil, err
	}
	return v.limited("memory", "memory", Available{Name: "memory", Available: true, Detail: fmt.Sprintf("%d bytes, of which %d can still be reserved", total, free)}), nil
}

func listPids(v *View) ([]Available, error) {
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return nil, err
	}
	most := strings.TrimSpace(string(b))
	for m := v.from; !m.isHost(); m = m.parent {
		if p, ok := m.Spec().find("pids").(*Pids); ok {
			most = strconv.FormatInt(p.Max, 10)
			break
		}
	}
	return v.limited("pids", "pids", Available{Name: "pids", Available: true, Detail: "at most " + most}), nil
}

func listIO(v *View) ([]Available, error) {
	disks, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return nil, err
	}
	var list []Available
	for _, d := range disks {
		number, err := os.ReadFile(filepath.Join(d, "dev"))
		if err != nil {
			continue // unplugged since
		}
		sectors, _ := os.ReadFile(filepath.Join(d, "size"))
		n, _ := strconv.ParseInt(strings.TrimSpace(string(sectors)), 10, 64)
		if n == 0 {
			continue // a loop device without a file
		}
		list = append(list, Available{Name: "/dev/" + strings.ReplaceAll(filepath.Base(d), "!", "/"), Available: true,
			Detail: fmt.Sprintf("block device %s, %d bytes", strings.TrimSpace(string(number)), n*512)})
	}
	return v.limited("blkio", "io", list...), nil
}

func listChildren(v *View) ([]Available, error) {
	a := Available{Name: "children", Available: true, Detail: "as many as the host can hold"}
	if !v.from.isHost() {
		limit := 0
		if c, ok := v.from.Spec().find("children").(*Children); ok {
			limit = c.Max
		}
		have, err := v.from.offspring()
		if err != nil {
			return nil, err
		}
		left := max(0, limit-len(have))
		a.Available, a.Detail = left > 0, fmt.Sprintf("%d more of %d", left, limit)
		if limit == 0 {
			a.Detail = "none: make " + v.from.Name() + " with children(max)"
		}
	}
	return []Available{a}, nil
}

func listUids(v *View) ([]Available, error) {
	list := v.probe("uidspace", spaceFlags["uidspace"])
	claims, err := v.host.book.Claims("uid")
	if err != nil {
		return nil, err
	}
	for _, c := range claims {
		list = append(list, Available{Name: fmt.Sprintf("%d-%d", firstOf(c), endOf(c)), Owner: c.Owner, Detail: fmt.Sprintf("%d ids", c.Amount)})
	}
	return list, nil
}

var spaceFlags = map[string]uintptr{
	"pidspace": unix.CLONE_NEWPID, "uidspace": unix.CLONE_NEWUSER, "ipcspace": unix.CLONE_NEWIPC, "netspace": unix.CLONE_NEWNET, "mountspace": unix.CLONE_NEWNS,
	"cgroupspace": unix.CLONE_NEWCGROUP, "timespace": unix.CLONE_NEWTIME, "uname": unix.CLONE_NEWUTS,
}

func listSpace(name string) func(*View) ([]Available, error) {
	return func(v *View) ([]Available, error) { return v.probe(name, spaceFlags[name]), nil }
}

// probe tries whether a process can have a namespace of its own.
func (v *View) probe(name string, flag uintptr) []Available {
	a := Available{Name: name, Available: true, Detail: "a space of its own"}
	if err := TrySpace(flag); err != nil {
		a.Available = false
		a.Detail = "unshare: " + err.Error()
		switch {
		case os.IsPermission(err):
			a.Detail += ": " + explainPermission()
		default:
			a.Detail += ": the kernel lacks it (CONFIG_*_NS), or /proc/sys/user/max_*_namespaces is used up"
		}
	}
	return []Available{a}
}

// TrySpace makes a namespace in a process that then ends.
func TrySpace(flag uintptr) error {
	s := stage0.New()
	s.Call("unshare", 0, unix.SYS_UNSHARE, uint64(flag))
	s.Exit(0)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	p, err := (&birth{program: s, stdio: [3]int{null, null, null}, cgroup: -1, pidns: -1}).start()
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := reap(p.pidfd); err != nil {
		return err
	}
	if e, ok := p.failure().(*stepError); ok {
		return e.errno
	}
	return nil
}

func listRoot(v *View) ([]Available, error) {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return nil, err
	}
	a := Available{Name: "root", Available: true, Detail: `any directory; write="overlay", "direct" or "none"`}
	if !strings.Contains(string(b), "\toverlay\n") {
		a.Detail = `any directory; write="direct" or "none": for "overlay" load the overlay module (modprobe overlay)`
	}
	return []Available{a}, nil
}

func listMount(*View) ([]Available, error) {
	return []Available{{Name: "mount", Available: true, Detail: "any file or directory, or a file system of /proc/filesystems"}}, nil
}

func listUname(v *View) ([]Available, error) {
	list := v.probe("uname", unix.CLONE_NEWUTS)
	if list[0].Available {
		list[0].Detail = "every field; sysname, release, version and machine are answered by msh (seccomp notification)"
		if err := haveSeccomp(); err != nil {
			list[0].Detail = "nodename and domainname; for the others: " + err.Error()
		}
	}
	return list, nil
}

func listSysctls(v *View) ([]Available, error) {
	var list []Available
	for _, s := range []struct{ name, space string }{{"net.*", "netspace"}, {"kernel.shm*", "ipcspace"}, {"kernel.msg*", "ipcspace"}, {"kernel.sem", "ipcspace"}, {"fs.mqueue.*", "ipcspace"}} {
		list = append(list, Available{Name: s.name, Available: true, Detail: "with " + s.space + "()"})
	}
	return list, nil
}

func listRlimits(*View) ([]Available, error) {
	all, err := limitsOf(0)
	if err != nil {
		return nil, err
	}
	var list []Available
	for _, l := range all {
		list = append(list, Available{Name: l.Name, Available: true, Detail: fmt.Sprintf("soft %s, hard %s", limitText(l.Soft), limitText(l.Hard))})
	}
	return list, nil
}

func listDevices(v *View) ([]Available, error) {
	var list []Available
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "console", "fuse", "kvm", "net/tun", "loop-control", "vhost-net"} {
		var st unix.Stat_t
		if unix.Stat("/dev/"+name, &st) != nil {
			continue
		}
		a := Available{Name: "/dev/" + name, Detail: fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))}
		if slices.ContainsFunc(deviceNodes, func(n deviceNode) bool { return n.name == name }) {
			a.Available, a.Detail = true, a.Detail+", in the /dev of every machine with a root"
		} else {
			a.Available = true
		}
		list = append(list, a)
	}
	return list, nil
}

func listControllers(v *View) ([]Available, error) {
	var list []Available
	for _, c := range v.host.Cgroup.Controllers {
		list = append(list, Available{Name: c, Available: true, Detail: "cgroup " + v.host.Cgroup.Mode()})
	}
	return list, nil
}
