package kernel

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where lxcfs runs, it tells; and what only it has is there, too. Without, what only
// it would have is the kernel's.
func TestViewLxcfs(t *testing.T) {
	l := newLab(t)
	look := func() (m *Machine, mounts string) {
		m = fork(t, l, space("pidspace"), &ProcView{}, &Memory{Max: bytesOf(64 << 20)}, &Root{Source: "/", Write: "overlay"}, atLevel(2))
		want(t, "memory", "65536", sh(t, m, "awk '/MemTotal/ { print $2 }' /proc/meminfo"))
		return m, sh(t, m, "awk '$2 ~ /proc.(stat|uptime|loadavg|swaps|meminfo)/ { print $2, $3 }' /proc/mounts")
	}
	if !lxcfs() {
		m, mounts := look()
		if strings.Contains(mounts, "stat") || !strings.Contains(mounts, "/proc/meminfo") {
			t.Errorf("mounts: %s", mounts)
		}
		destroy(t, m)
	}
	program, err := exec.LookPath("lxcfs")
	if err != nil {
		t.Skip("lxcfs is not installed here")
	}
	if !lxcfs() {
		if err := os.MkdirAll(lxcfsDir, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "-f", lxcfsDir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			cmd.Process.Signal(unix.SIGTERM)
			cmd.Wait()
			unix.Unmount(lxcfsDir, unix.MNT_DETACH)
		}()
		eventually(t, "lxcfs runs", lxcfs)
	}
	m, mounts := look()
	want(t, "mounts", "/proc/meminfo fuse.lxcfs\n/proc/stat fuse.lxcfs\n/proc/uptime fuse.lxcfs\n/proc/loadavg fuse.lxcfs\n/proc/swaps fuse.lxcfs", mounts)
	if err := m.Set(&Memory{Max: bytesOf(32 << 20)}); err != nil {
		t.Fatal(err)
	}
	want(t, "memory, set", "32768", sh(t, m, "awk '/MemTotal/ { print $2 }' /proc/meminfo"))
}
