package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func inside(m *Machine, path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.Pid()), path)
}

func TestRootOverlay(t *testing.T) {
	dir := smallRoot(t)
	l := newLab(t)
	m, other := fork(t, l, &Root{Source: dir, Write: "overlay"}), fork(t, l, &Root{Source: dir, Write: "overlay"})
	want(t, "its root", "bin data dev etc proc root sys tmp", strings.Join(strings.Fields(run(t, m, "ls", "/")), " "))
	sh(t, m, "echo mine > /etc/motd; rm -r /data; echo x >> /etc/group")
	want(t, "a change, from outside", "mine", read(t, inside(m, "/etc/motd")))
	for _, path := range []string{filepath.Join(dir, "etc/motd"), inside(other, "/etc/motd")} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	want(t, "what was removed", "root's", read(t, filepath.Join(dir, "data/secret")))
	// Nothing of the host's is to be found above.
	want(t, "mounts below which the host would be", "/", sh(t, m, "cd /../../..; pwd"))
	if out := run(t, m, "cat", "/proc/self/mounts"); strings.Contains(out, dir) || strings.Contains(out, "scratch") {
		t.Errorf("mounts:\n%s", out)
	}
}

func TestRootDev(t *testing.T) {
	l := newLab(t)
	for _, rs := range [][]Resource{{space("pidspace")}, {space("pidspace"), space("ipcspace"), &Uidspace{}}} {
		m := fork(t, l, append(rs, &Root{Source: smallRoot(t), Write: "overlay"})...)
		for _, n := range deviceNodes {
			var st unix.Stat_t
			if err := unix.Stat(inside(m, "/dev/"+n.name), &st); err != nil {
				t.Error(err)
				continue
			}
			want(t, n.name, [2]uint32{n.major, n.minor}, [2]uint32{unix.Major(st.Rdev), unix.Minor(st.Rdev)})
		}
		want(t, "null", "", sh(t, m, "echo x > /dev/null; cat /dev/null"))
		want(t, "shm", "yes", sh(t, m, "echo yes > /dev/shm/x; cat /dev/shm/x"))
		want(t, "stdin, stdout, fd", "fd\nptmx\nstderr\nstdin\nstdout", sh(t, m, "cd /dev; for f in *; do [ -L $f ] && echo $f; done; true"))
		want(t, "sysfs", "no", sh(t, m, "(echo x > /sys/kernel/mm/x) 2>/dev/null && echo yes || echo no"))
	}
}

func TestRootDirect(t *testing.T) {
	dir := smallRoot(t)
	l := newLab(t)
	m := fork(t, l, &Root{Source: dir, Write: "direct"})
	sh(t, m, "echo here > /etc/motd")
	want(t, "outside", "here", read(t, filepath.Join(dir, "etc/motd")))
	names, err := os.ReadDir(filepath.Join(dir, "dev"))
	if err != nil || len(names) > 0 {
		t.Errorf("made in the source's /dev: %v, %v", names, err)
	}
	bare := t.TempDir()
	contains(t, refused(t, l, l.Host(), &Root{Source: bare, Write: "direct"}), "find /proc")
	if names, err := os.ReadDir(bare); err != nil || len(names) > 0 {
		t.Errorf("made in the source: %v, %v", names, err)
	}
}

func TestRootNone(t *testing.T) {
	dir := smallRoot(t)
	l := newLab(t)
	m := fork(t, l, &Root{Source: dir, Write: "none"})
	r := try(t, m, "sh", "-c", "echo x > /etc/motd")
	if r.Code == 0 {
		t.Error("written to")
	}
	contains(t, string(r.Stderr), "Read-only")
	want(t, "its own /dev/shm", "x", sh(t, m, "echo x > /dev/shm/x; cat /dev/shm/x"))
}

func TestRootSize(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, &Root{Source: smallRoot(t), Write: "overlay", Size: 1 << 20})
	sh(t, m, "dd if=/dev/zero of=/tmp/a bs=64k count=8 2>/dev/null")
	r := try(t, m, "sh", "-c", "dd if=/dev/zero of=/tmp/b bs=64k count=16")
	if r.Code == 0 {
		t.Error("more than its size")
	}
	contains(t, string(r.Stderr), "No space left")
	sh(t, m, "rm /tmp/a /tmp/b; dd if=/dev/zero of=/tmp/c bs=64k count=8 2>/dev/null")
}

func TestRootUpper(t *testing.T) {
	dir, upper := smallRoot(t), t.TempDir()
	l := newLab(t)
	for _, rs := range [][]Resource{nil, {&Uidspace{}, space("pidspace")}} {
		m := fork(t, l, append(rs, &Root{Source: dir, Write: "overlay", Upper: upper})...)
		sh(t, m, "echo $((1 + $(cat /etc/count 2>/dev/null || echo 0))) > /tmp/n; mv /tmp/n /etc/count; rm -f /data/secret")
		destroy(t, m)
	}
	want(t, "kept from one machine to the next", "2", read(t, filepath.Join(upper, "upper/etc/count")))
	want(t, "its owner", "0:0", ownerOf(t, filepath.Join(upper, "upper/etc/count")))
	want(t, "the source", "root's", read(t, filepath.Join(dir, "data/secret")))
	m := fork(t, l, &Root{Source: dir, Write: "overlay", Upper: upper})
	want(t, "what was removed stays so", "gone", sh(t, m, "[ -e /data/secret ] || echo gone"))
}

func TestRootBad(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	contains(t, refused(t, l, l.Host(), &Root{Source: "/not/there", Write: "none"}), "root: source", `"/not/there"`, "no such file")
	contains(t, refused(t, l, l.Host(), &Root{Source: file, Write: "none"}), "root: source", "a directory")
	contains(t, refused(t, l, l.Host(), &Root{Source: "/", Write: "overlay", Upper: "/not/there"}), "root: upper", `"/not/there"`)
}
