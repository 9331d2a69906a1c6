package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"msh/kernel/cgroup"
)

// A host with cgroup v1 alone has its machines' processes in a v2 hierarchy that
// only msh has mounted (cgroup.Private). `make vmtest` has such a host.

// needV1Only skips where cgroup2 is mounted.
func needV1Only(t *testing.T) *cgroup.Host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("machines need root")
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if h.Mode() == "v1" {
		return h
	}
	if os.Getenv("MSH_VM_CGROUP") == "v1" {
		t.Fatalf("cgroup v1 alone should be here: %+v", h)
	}
	t.Skip("cgroup2 is mounted on this host: `make vmtest` runs this test on one without")
	return nil
}

// Whatever holds elsewhere holds there.
func TestV1(t *testing.T) {
	needV1Only(t)
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"quota", TestCPUQuota}, {"weight", TestCPUWeight}, {"set", TestCPUSet}, {"set later", TestCPUSetLater}, {"exclusive", TestCPUExclusive},
		{"memory", TestMemoryMax}, {"swap", TestMemorySwap}, {"memory that is too little", TestMemoryTooLittleToStart}, {"high", TestMemoryHigh},
		{"pids", TestPids}, {"pids later", TestPidsLater}, {"io", TestIO},
		{"freeze", TestFreeze}, {"frozen command", TestRunFrozen}, {"stop", TestStop}, {"kill", TestKill}, {"stats", TestStatsPlain},
		{"nested limits", TestNestedLimits}, {"children", TestChildren}, {"cgroupspace", TestCgroupspace},
		{"restart", TestSpawnRestart}, {"faults", testV1Faults}, {"crash", TestCrash},
	} {
		t.Run(c.name, c.test)
	}
}

// Those of all kinds are in TestFaults: here it is the groups that differ.
func testV1Faults(t *testing.T) {
	h := newHost(t)
	l := labOn(t, h, "")
	rs := []Resource{&CPU{Quota: 50}, &Memory{Max: bytesOf(32 << 20)}, &Pids{Max: 50}, space("cgroupspace"), space("pidspace"), &Children{Max: 1}}
	faults(t, h, l, l.Host(), rs)
	faults(t, h, l, fork(t, l, rs...), []Resource{&CPU{Weight: 50}, &Pids{Max: 10}})
}

func TestV1Networks(t *testing.T) {
	needV1Only(t)
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"netaddr", TestNetaddr}, {"netaddr nested", TestNetaddrNested}, {"netaddr uidspace", TestNetaddrUidspace},
		{"routes", TestRoutesShared}, {"routes nested", TestRoutesNested}, {"faults", TestRoutesFaults}, {"crash", TestRoutesCrash},
	} {
		t.Run(c.name, c.test)
	}
}

// Nobody else sees the mount, and what one msh has made in it another finds.
func TestV1Private(t *testing.T) {
	host := needV1Only(t)
	mounts := read(t, "/proc/self/mountinfo")
	l := newLab(t)
	m := fork(t, l, space("pidspace"), space("mountspace"))
	want(t, "mounts", mounts, read(t, "/proc/self/mountinfo"))
	if inside := sh(t, m, "cat /proc/mounts"); strings.Count(inside, "cgroup2") != strings.Count(read(t, "/proc/mounts"), "cgroup2") {
		t.Errorf("mounts inside:\n%s", inside)
	}
	want(t, "descriptors inside", "0 1 2 3", strings.Join(strings.Fields(sh(t, m, "ls /proc/self/fd")), " "))
	want(t, "the group's name", cgroup.Private+m.group.Path, m.GroupNames()[0])
	contains(t, read(t, fmt.Sprintf("/proc/%d/cgroup", m.Pid())), "0::"+m.group.Path)

	// Another process, with a mount of its own.
	dir := t.TempDir()
	out, err := exec.Command("unshare", "-m", "sh", "-ec", `mount -t cgroup2 none "$0"; cat "$0$1/cgroup.procs"; umount "$0"`, dir, m.group.Path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want(t, "its processes, seen from elsewhere", fmt.Sprint(m.Pid()), strings.TrimSpace(string(out)))
	want(t, "groups", 1, len(host.Find("msh."+l.Name()+".*")))
	destroy(t, m)
	want(t, "groups afterwards", 0, len(host.Find("msh."+l.Name()+".*")))
}

// Where cgroup2 is mounted at a place of its own, msh leaves it its options, which
// every mount shares.
func TestV1Options(t *testing.T) {
	needV1Only(t)
	dir := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sh := func(script string) string {
		t.Helper()
		out, err := exec.Command("sh", "-ec", script, dir).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	sh(`mount -t cgroup2 -o nsdelegate,memory_recursiveprot none "$0"`)
	defer sh(`umount "$0"`)
	options := func() string { return sh(`sed -n "s|.* $0 cgroup2 ||p" /proc/mounts`) }
	before := options()
	if !strings.Contains(before, "nsdelegate") && os.Getenv("MSH_VM") == "" {
		t.Skip("in a cgroup namespace, as in a container, the options cannot be set")
	}
	contains(t, before, "nsdelegate", "memory_recursiveprot")
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestStatsPlain$")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v: %s", err, out)
	}
	want(t, "options", before, options())
}
