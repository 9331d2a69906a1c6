package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/criu"
)

// Finding is what the doctor says of one thing that machines need.
type Finding struct {
	Name   string
	OK     bool
	Vital  bool // without it no machine can be made
	Detail string
	Mend   string
}

// Doctor finds out, by trying, what this host has for machines. It leaves nothing
// behind.
func (h *Host) Doctor(ctx context.Context) []Finding {
	all := []Finding{checkKernel(), checkRoot(), checkCapability(), h.checkCgroup()}
	for _, name := range []string{"cpu", "cpuset", "memory", "pids", "io"} {
		all = append(all, h.checkController(name))
	}
	for _, name := range []string{"pidspace", "mountspace", "uidspace", "ipcspace", "netspace", "cgroupspace", "timespace", "uname"} {
		all = append(all, checkSpace(name))
	}
	all = append(all, checkPidfd(), checkMountAPI())
	if os.Geteuid() != 0 {
		return append(all, Finding{Name: "machines", Detail: "not tried: without the user's space only root can make them", Mend: "see the line \"space\", or sudo msh doctor"})
	}
	all = append(all, h.space.findings(h)...)
	if !h.Cgroup.Unified && !h.Cgroup.User {
		all = append(all, Finding{Name: "memory high", Detail: "memory(high=…) is cgroup v2's", Mend: "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 alone on " + cgroup.Root})
	}
	for _, t := range h.trials() {
		all = append(all, t.try(ctx, h))
	}
	return append(append(all, checkNetworks()...), h.checkCriu(ctx))
}

// checkCriu looks for what snapshots are made with.
func (h *Host) checkCriu(ctx context.Context) Finding {
	f := Finding{Name: "snapshots", Detail: "snapshot, hibernate, wake, clone: CRIU"}
	c, err := criu.Find(ctx)
	if err != nil {
		f.Detail += ": " + err.Error()
		if hint := (interface{ Hint() string })(nil); errors.As(err, &hint) {
			f.Mend = hint.Hint()
		}
		return f
	}
	f.OK = true
	f.Detail += " " + c.Version.String()
	if features, err := c.Features(ctx); err == nil && !features.Track {
		f.Detail += "; the kernel does not tell which pages have changed (CONFIG_MEM_SOFT_DIRTY), so no memory is sent ahead"
	}
	return f
}

// wantKernel is the first with everything that every machine is made with:
// mount_setattr(2) is the youngest of it.
const wantKernel = "5.12"

func checkKernel() Finding {
	f := Finding{Name: "kernel", Vital: true}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.Detail = err.Error()
		return f
	}
	release := string(u.Release[:bytes.IndexByte(u.Release[:], 0)])
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	f.OK = major > 5 || major == 5 && minor >= 12
	f.Detail = "Linux " + release
	if !f.OK {
		f.Mend = "msh needs " + wantKernel + " or later"
	}
	return f
}

func checkRoot() Finding {
	if u, _ := theSpace(); u != nil {
		return Finding{Name: "space", OK: true, Vital: true, Detail: fmt.Sprintf("user %d, who is root in a space of its own", u.UIDs[0].Outside)}
	}
	f := Finding{Name: "root", Vital: true, OK: os.Geteuid() == 0, Detail: fmt.Sprintf("user %d", os.Geteuid())}
	if !f.OK {
		f.Mend = "run msh as root"
	}
	return f
}

// checkCapability looks for what a root of a container often lacks.
func checkCapability() Finding {
	f := Finding{Name: "CAP_SYS_RESOURCE", Detail: "rlimit can raise hard limits"}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		f.Detail = "capget: " + err.Error()
		return f
	}
	f.OK = data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
	if !f.OK {
		f.Detail, f.Mend = "rlimit can only lower hard limits", "start msh with that capability"
	}
	return f
}

func (h *Host) checkCgroup() Finding {
	if h.Cgroup.User && h.Cgroup.Base == "" {
		return Finding{Name: "cgroup", Detail: "none is delegated to this user (" + h.Cgroup.Lack + "): machines have no limits, and cannot be frozen", Mend: delegate}
	}
	f := Finding{Name: "cgroup", OK: true, Vital: true, Detail: h.Cgroup.Mode() + ", controllers " + strings.Join(h.Cgroup.Controllers, " ")}
	if h.Cgroup.V2 == cgroup.Private {
		f.Detail += "; cgroup2 by a mount of msh's own"
		if err := h.Cgroup.Try(); err != nil && os.Geteuid() == 0 {
			f.OK, f.Detail, f.Mend = false, err.Error(), "mount cgroup2 on "+cgroup.Root+"/unified"
		}
	}
	return f
}

func (h *Host) checkController(name string) Finding {
	f := Finding{Name: "cgroup " + name, Detail: "limits of kind " + name}
	look := name
	switch {
	case name == "cpuset":
		f.Detail = "cpu(set=…)"
	case name == "io" && !h.Cgroup.Unified:
		look = "blkio"
	}
	if f.OK = slices.Contains(h.Cgroup.Controllers, look); !f.OK {
		f.Detail, f.Mend = "no controller: "+f.Detail+" cannot be had", "see cgroup_disable= in /proc/cmdline and the kernel's configuration"
		if h.Cgroup.User {
			f.Mend = delegate
		}
	}
	return f
}

func checkSpace(name string) Finding {
	f := Finding{Name: name, OK: true, Detail: "a space of its own", Vital: name == "mountspace"}
	if err := TrySpace(spaceFlags[name]); err != nil {
		f.OK, f.Detail, f.Mend = false, "unshare: "+err.Error(), "the kernel's configuration (CONFIG_*_NS), or /proc/sys/user/max_*_namespaces"
		if errors.Is(err, unix.EPERM) {
			f.Mend = "run msh as root"
		}
	}
	return f
}

func checkPidfd() Finding {
	f := Finding{Name: "pidfd", Vital: true, Detail: "processes are held by descriptors"}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		f.Detail, f.Mend = "pidfd_open: "+err.Error(), "Linux 5.3, and a seccomp filter that lets it through"
		return f
	}
	unix.Close(fd)
	f.OK = true
	return f
}

func checkMountAPI() Finding {
	f := Finding{Name: "mount API", Vital: true, Detail: "fsopen, open_tree, move_mount, mount_setattr"}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		unix.Close(fd)
		// An empty change of nothing: the kernel has it, or has it not.
		err = unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
		if errors.Is(err, unix.EBADF) {
			err = nil
		}
	}
	if f.OK = err == nil; !f.OK {
		f.Detail, f.Mend = err.Error(), "Linux "+wantKernel+", and a seccomp filter that lets them through"
	}
	return f
}

// trial is a machine made to see whether it can be.
type trial struct {
	name, detail string
	vital        bool
	given        []Resource
}

func (h *Host) trials() []trial {
	size := int64(1 << 20)
	all := []trial{
		{"machine", "a PID space with its /proc", true, []Resource{&Space{"pidspace"}}},
		{"overlay root", "root(…) with changes in memory", false, []Resource{&Root{Source: "/", Write: "overlay"}}},
		{"shifted owners", `uidspace() with root("/"): idmapped mounts, and an overlay with user xattrs on tmpfs`, false,
			[]Resource{&Uidspace{}, &Root{Source: "/", Write: "overlay"}, &Space{"pidspace"}}},
		{"netaddr, routes", "socket programs of a control group", false, []Resource{&Netaddr{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}}},
		{"security", "security(level=2): capabilities, system call filters, masked paths", false, []Resource{&Space{"pidspace"}, &Security{Level: 2}}},
		{"landlock", "security(level=3), landlock=…", false, []Resource{&Space{"pidspace"}, &Space{"netspace"}, &Security{Level: 3}}},
		{"uname", "uname(release=…): seccomp notification", false, []Resource{&Space{"pidspace"}, &Uname{Release: "1"}}},
		{"memory reserve", "memory(reserve=…)", false, []Resource{&Memory{Reserve: &size}}},
	}
	if h.Cgroup.Unified {
		all = append(all, trial{"memory high", "memory(high=…)", false, []Resource{&Memory{High: &size}}})
	}
	exclusive := trial{"exclusive CPU", "cpu(set=…, exclusive=True): a partition of its own, which the host loses too", false, nil}
	if !h.Cgroup.Unified {
		exclusive.detail = "cpu(set=…, exclusive=True): no other machine on it; the host's own processes can be (cgroup v1)"
	}
	if n := runtime.NumCPU(); n > 1 {
		exclusive.given = []Resource{&CPU{Set: []int{n - 1}, Exclusive: true}}
	}
	return append(all, exclusive)
}

func (t trial) try(ctx context.Context, h *Host) Finding {
	f := Finding{Name: t.name, Detail: t.detail, Vital: t.vital}
	if t.given == nil {
		f.Detail, f.Mend = "one CPU only", "a host with two"
		return f
	}
	lab, err := h.NewLab("doctor", false)
	if err == nil {
		_, err = lab.Fork(ctx, lab.Host(), &Spec{Resources: t.given})
		err = errors.Join(err, lab.Close(ctx))
	}
	if f.OK = err == nil; !f.OK {
		f.Detail = strings.TrimPrefix(err.Error(), "machine m1: ")
		if hint := (interface{ Hint() string })(nil); errors.As(err, &hint) {
			f.Mend = hint.Hint()
		}
	}
	return f
}
