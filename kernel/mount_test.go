package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountBind(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	m := fork(t, l, &Root{Source: smallRoot(t), Write: "overlay"},
		&Mount{Source: dir, Target: "/new/place", Type: "bind"},
		&Mount{Source: dir, Target: "/ro", Type: "bind", Options: []string{"ro", "noexec"}},
		&Mount{Source: file, Target: "/etc/some/file", Type: "bind"},
		&Mount{Source: file, Target: "/etc/group", Type: "bind"})
	sh(t, m, "echo here > /new/place/x")
	want(t, "written through", "here", read(t, filepath.Join(dir, "x")))
	want(t, "a file on a new file", "text", run(t, m, "cat", "/etc/some/file"))
	want(t, "a file on a file", "text", run(t, m, "cat", "/etc/group"))
	r := try(t, m, "sh", "-c", "echo x > /ro/x")
	contains(t, string(r.Stderr), "Read-only")
	contains(t, sh(t, m, "grep ' /ro ' /proc/self/mounts"), "ro,", "noexec")
	if strings.Contains(sh(t, m, "grep ' /new/place ' /proc/self/mounts"), "noexec") {
		t.Error("options of one mount are on another")
	}
}

func TestMountRbind(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("below", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(below, unix.MNT_DETACH)
	if err := os.WriteFile(filepath.Join(below, "x"), []byte("deep"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := fork(t, l, &Root{Source: smallRoot(t), Write: "overlay"},
		&Mount{Source: dir, Target: "/one", Type: "bind"},
		&Mount{Source: dir, Target: "/all", Type: "bind", Options: []string{"rbind", "ro"}})
	want(t, "bind", "", run(t, m, "ls", "/one/below"))
	want(t, "rbind", "deep", run(t, m, "cat", "/all/below/x"))
	r := try(t, m, "sh", "-c", "echo x > /all/below/x")
	contains(t, string(r.Stderr), "Read-only")
	if err := os.WriteFile(filepath.Join(below, "x"), []byte("ours"), 0o644); err != nil {
		t.Errorf("the host's mount: %v", err)
	}
}

func TestMountTmpfs(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, &Root{Source: smallRoot(t), Write: "overlay"},
		&Mount{Target: "/scratch", Type: "tmpfs", Options: []string{"size=64k", "nosuid", "mode=700"}})
	line := sh(t, m, "grep ' /scratch ' /proc/self/mounts")
	contains(t, line, "tmpfs", "size=64k", "nosuid", "mode=700")
	r := try(t, m, "dd", "if=/dev/zero", "of=/scratch/x", "bs=64k", "count=2")
	contains(t, string(r.Stderr), "No space left")
}

// A link of the root's that points out of it does not lead a mount out.
func TestMountHostileTarget(t *testing.T) {
	l := newLab(t)
	root, outside := smallRoot(t), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(root, "way")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../../../"+outside, filepath.Join(root, "way2")); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/way/x", "/way2/x"} {
		m, err := l.Fork(t.Context(), l.Host(), &Spec{Resources: []Resource{&Root{Source: root, Write: "overlay"}, &Mount{Target: target, Type: "tmpfs"}}})
		if err == nil {
			destroy(t, m)
		}
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("made outside: %v, %v", names, err)
	}
}

// Without a root of its own a machine mounts in its parent's tree, for itself.
func TestMountWithoutRoot(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	m := fork(t, l, &Mount{Source: "/etc", Target: dir, Type: "bind"})
	ownSpaces(t, m, "mnt")
	want(t, "inside", "yes", sh(t, m, "[ -e "+dir+"/passwd ] && echo yes"))
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("outside: %v, %v", names, err)
	}
	contains(t, refused(t, l, l.Host(), &Mount{Source: "/etc", Target: dir + "/not/there", Type: "bind"}), "to mount /etc on it", "no such file")
	contains(t, refused(t, l, l.Host(), &Mount{Source: "/not/there", Target: dir, Type: "bind"}), "mount: source", `"/not/there"`)
	contains(t, refused(t, l, l.Host(), &Mount{Target: dir, Type: "nosuchfs"}), "nosuchfs")
}

// A mount that a machine makes in a shared directory of the host's stays its own.
func TestMountPropagation(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	for _, d := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	contains(t, field(t, "/proc/self/mountinfo", strings.Fields(read(t, "/proc/self/mountinfo"))[0]), "shared:")
	rs := []Resource{&Root{Source: smallRoot(t), Write: "overlay"}, &Mount{Source: dir, Target: "/host", Type: "bind"}}
	m := fork(t, l, append(rs, &Children{Max: 1})...)
	sh(t, m, "mount -t tmpfs t /host/a; touch /host/a/x")
	c := forkIn(t, l, m, &Spec{Resources: []Resource{&Mount{Source: "/host", Target: "/data", Type: "bind"}}})
	sh(t, c, "mount -t tmpfs t /data/b; touch /data/b/x")
	for _, path := range []string{filepath.Join(dir, "a/x"), filepath.Join(dir, "b/x"), inside(m, "/host/b/x")} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
