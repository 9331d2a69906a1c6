package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// others tells whether the machine has that namespace for itself and no other.
func ownSpaces(t *testing.T, m *Machine, own ...string) {
	t.Helper()
	for _, ns := range namespaces {
		same := nsOf(t, "self", ns.name) == nsOf(t, m.Pid(), ns.name)
		is := false
		for _, o := range own {
			is = is || o == ns.name
		}
		if is == same {
			t.Errorf("%s namespace: own %v, want %v", ns.name, !same, is)
		}
	}
}

func TestPidspace(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	ownSpaces(t, m, "pid", "mnt")
	want(t, "init's own number", fmt.Sprintf("%d 1", m.Pid()), field(t, fmt.Sprintf("/proc/%d/status", m.Pid()), "NSpid"))
	want(t, "init, inside", ".init", run(t, m, "cat", "/proc/1/comm"))
	want(t, "processes, inside", "1", sh(t, m, "cd /proc; n=0; for p in [0-9]*; do case $p in $$) ;; *) n=$((n+1)) ;; esac; done; echo $n"))
	want(t, "its /proc is a mount of its own", "proc", strings.Fields(sh(t, m, "grep ' /proc proc ' /proc/self/mounts"))[0])
	if sh(t, m, "echo $$") == "1" {
		t.Error("a command is PID 1")
	}
	// With its init ends all that it has.
	p := spawn(t, m, "sleep 600")
	if err := unix.Kill(m.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context(), long); err != nil || code != 137 {
		t.Errorf("a process after its init's end: %d, %v", code, err)
	}
}

func TestIpcspace(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("ipcspace"), overlay())
	ownSpaces(t, m, "ipc", "mnt")
	const key = 0x6d736801
	id, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	want(t, "segments inside", "1", sh(t, m, "wc -l < /proc/sysvipc/shm")) // the heading
	contains(t, sh(t, m, "grep mqueue /proc/self/mounts"), "/dev/mqueue")
	shared := fork(t, l)
	if sh(t, shared, "wc -l < /proc/sysvipc/shm") == "1" {
		t.Error("a machine without ipcspace does not see the host's segments")
	}
}

func TestNetspace(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("netspace"), overlay())
	ownSpaces(t, m, "net", "mnt")
	want(t, "interfaces", "lo", sh(t, m, "sed -n 's/^ *\\([^ ]*\\):.*/\\1/p' /proc/net/dev"))
	contains(t, run(t, m, "cat", "/sys/class/net/lo/flags"), "0x9") // up, loopback
	want(t, "the loopback answers", "", sh(t, m, "ip -o addr show dev lo | grep -q 127.0.0.1"))
}

// What is mounted in a machine's own table is not seen outside, even where the
// host's mounts are shared.
func TestMountspace(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("mountspace"))
	ownSpaces(t, m, "mnt")
	dir := t.TempDir()
	run(t, m, "mount", "-t", "tmpfs", "here", dir)
	sh(t, m, "touch "+dir+"/x")
	if _, err := os.Stat(dir + "/x"); !os.IsNotExist(err) {
		t.Errorf("seen outside: %v", err)
	}
	if strings.Contains(read(t, "/proc/self/mountinfo"), dir) {
		t.Error("the mount came back to the host's table")
	}
	// and the other way round
	other := t.TempDir()
	if err := unix.Mount("there", other, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(other, 0)
	if strings.Contains(run(t, m, "cat", "/proc/self/mounts"), other) {
		t.Error("the host's new mount came into the machine's table")
	}
}

func TestCgroupspace(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("cgroupspace"), space("pidspace"), &Pids{Max: 20}, overlay())
	ownSpaces(t, m, "cgroup", "pid", "mnt")
	inside := run(t, m, "cat", "/proc/self/cgroup")
	if strings.Contains(inside, "msh.") {
		t.Errorf("its own groups have names inside:\n%s", inside)
	}
	want(t, "v2's", "0::/", inside[strings.LastIndex(inside, "\n")+1:])
	contains(t, read(t, fmt.Sprintf("/proc/%d/cgroup", m.Pid())), m.group.Path)
}

func TestTimespace(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, &Timespace{Boottime: 1000 * time.Hour, Monotonic: -1500 * time.Millisecond}, &Children{Max: 1})
	ownSpaces(t, m, "time")
	uptime := func(text string) time.Duration {
		d, err := time.ParseDuration(strings.Fields(text)[0] + "s")
		if err != nil {
			t.Fatal(err)
		}
		return d.Truncate(time.Hour)
	}
	here := uptime(read(t, "/proc/uptime"))
	want(t, "uptime inside", here+1000*time.Hour, uptime(run(t, m, "cat", "/proc/uptime")))
	want(t, "offsets, outside", "monotonic -2 500000000 boottime 3600000 0",
		strings.Join(strings.Fields(read(t, fmt.Sprintf("/proc/%d/timens_offsets", m.Pid()))), " "))
	// Nested, offsets add up.
	c := forkIn(t, l, m, &Spec{Resources: []Resource{&Timespace{Boottime: 2000 * time.Hour}, space("pidspace")}})
	want(t, "uptime, nested", here+3000*time.Hour, uptime(run(t, c, "cat", "/proc/uptime")))
	contains(t, refused(t, l, l.Host(), &Timespace{Boottime: -1000000 * time.Minute * 10}), "boottime")
}

func TestUname(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, &Uname{Nodename: "box", Domainname: "lab.test"})
	ownSpaces(t, m, "uts")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	names := func() string { return sh(t, m, "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname; uname -n") }
	want(t, "names", "box\nlab.test\nbox", names())
	if err := m.Set(&Uname{Nodename: "case"}); err != nil {
		t.Fatal(err)
	}
	want(t, "names, set", "case\nlab.test\ncase", names())
	now, _ := os.Hostname()
	want(t, "the host's", host, now)
	plain := fork(t, l)
	if err := plain.Set(&Uname{Nodename: "case"}); err == nil {
		t.Error("a machine without names of its own took the host's")
	} else {
		contains(t, err.Error(), "shares its parent's names")
	}
}

func TestSysctl(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("netspace"), space("ipcspace"), space("pidspace"), &Sysctl{"net.ipv4.ip_forward", "1"}, &Sysctl{"kernel.shmmni", "77"},
		&Sysctl{"fs/mqueue/msg_max", "20"})
	before := read(t, "/proc/sys/net/ipv4/ip_forward") + read(t, "/proc/sys/kernel/shmmni")
	value := func() string {
		return sh(t, m, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max")
	}
	want(t, "values", "1\n77\n20", value())
	if err := m.Set(&Sysctl{"kernel.shmmni", "88"}); err != nil {
		t.Fatal(err)
	}
	want(t, "values, set", "1\n88\n20", value())
	want(t, "the host's", before, read(t, "/proc/sys/net/ipv4/ip_forward")+read(t, "/proc/sys/kernel/shmmni"))

	contains(t, refused(t, l, l.Host(), &Sysctl{"net.ipv4.ip_forward", "1"}), "sysctl: key", "netspace()")
	contains(t, refused(t, l, l.Host(), space("netspace"), &Sysctl{"net.ipv4.not_there", "1"}), "/proc/sys/net/ipv4/not_there")
	plain := fork(t, l)
	if err := plain.Set(&Sysctl{"net.ipv4.ip_forward", "1"}); err == nil {
		t.Error("a machine without netspace changed the host's")
	}
}

// smallRoot is a root directory with busybox in it, on the disk.
func smallRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	box, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		if box, err = os.ReadFile("/bin/busybox"); err != nil {
			t.Skip("no busybox: run scripts/deps")
		}
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "data"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []struct {
		name, text string
		mode       os.FileMode
	}{
		{"bin/busybox", string(box), 0o755},
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n", 0o644},
		{"etc/group", "root:x:0:\nann:x:1001:\nstaff:x:50:ann,bob\ngames:x:60:ann\n", 0o644},
		{"data/secret", "root's\n", 0o600},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.text), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range strings.Fields("sh cat ls id echo touch mkdir rm mount umount stat sleep dd ln mkfifo mknod true false env ps kill grep sed tr wc pwd hostname chown mv seq test readlink tty stty") {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func ownerOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}
