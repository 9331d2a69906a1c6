package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// limits are the files that hold what loop.star and config ask for, by cgroup v1
// controller and by cgroup v2.
var limits = []struct{ controller, v1, v1Value, v2, v2Value string }{
	{"cpu", "cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000"},
	{"memory", "memory.limit_in_bytes", "268435456", "memory.max", "268435456"},
	{"pids", "pids.max", "32", "pids.max", "32"},
}

// checkMachine looks at a process from outside: whoever is timed must have made
// the spaces, mounts and limits that he is timed for.
func checkMachine(pid int) error {
	var errs []error
	for _, ns := range []string{"pid", "mnt", "uts", "ipc", "net"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			return err
		}
		his, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			return err
		}
		if mine == his {
			errs = append(errs, fmt.Errorf("process %d has the host's %s namespace", pid, ns))
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid))
	if err != nil {
		return err
	}
	for _, want := range []string{"/ overlay", "/proc proc", "/sys sysfs", "/dev tmpfs", "/dev/pts devpts", "/dev/shm tmpfs", "/dev/mqueue mqueue"} {
		if !slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
			f := strings.Fields(line)
			return len(f) > 2 && f[1]+" "+f[2] == want
		}) {
			errs = append(errs, fmt.Errorf("process %d lacks the mount %s", pid, want))
		}
	}
	return errors.Join(append(errs, checkLimits(pid))...)
}

func checkLimits(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	groups := map[string]string{} // by controller; "" is v2
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for controller := range strings.SplitSeq(f[1], ",") {
			groups[controller] = f[2]
		}
	}
	var errs []error
	for _, l := range limits {
		file, want := filepath.Join("/sys/fs/cgroup", groups[""], l.v2), l.v2Value
		if path, ok := groups[l.controller]; ok {
			file, want = filepath.Join("/sys/fs/cgroup", l.controller, path, l.v1), l.v1Value
		}
		got, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(got)) != want {
			err = fmt.Errorf("%s of process %d is %q, want %q", file, pid, got, want)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
