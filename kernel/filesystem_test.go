package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// "/" is the machine's, as a source, and no file.
func TestFilesRoot(t *testing.T) {
	ctx := t.Context()
	roots(t, func(t *testing.T, m *Machine, root string) {
		for _, path := range []string{"/", "", ".", "/etc/..", "/../.."} {
			if err := m.WriteFile(ctx, path, []byte("x"), 0o644); err == nil {
				t.Errorf("wrote %q", path)
			}
		}
		if _, err := m.ReadFile(ctx, "/"); !errors.Is(err, unix.EISDIR) {
			t.Errorf("read /: %v", err)
		}
		// Devices cannot be copied, and of /proc there is no end.
		sh(t, m, "umount /dev/pts /dev/shm /dev/mqueue 2>/dev/null; umount -l /sys /proc /dev && ls -A /dev")
		dst := t.TempDir()
		if err := m.CopyOut(ctx, "/", dst); err != nil {
			t.Fatal(err)
		}
		want(t, "the machine's", "root's", read(t, filepath.Join(dst, "data/secret")))
		names, err := os.ReadDir(dst)
		want(t, "what it has", sh(t, m, "ls -A / | wc -l"), fmt.Sprint(len(names)))
		if err != nil {
			t.Error(err)
		}
		src := t.TempDir()
		mustWrite(t, filepath.Join(src, "tree/x"), "x", 0o644)
		if err := m.CopyIn(ctx, filepath.Join(src, "tree"), "/"); err != nil {
			t.Error(err)
		}
		want(t, "copied to /", "x", sh(t, m, "cat /tree/x"))
	})
}

// What never ends, or makes its reader wait, is not read.
func TestFilesEndless(t *testing.T) {
	roots(t, func(t *testing.T, m *Machine, root string) {
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		sh(t, m, "mkfifo /tmp/fifo; ln -s /dev/zero /tmp/zero")
		spawn(t, m, "exec 3<>/tmp/fifo; sleep 1000")
		eventually(t, "a writer", func() bool { return sh(t, m, "ls /proc/[0-9]*/fd/3 2>/dev/null | wc -l") != "0" })
		for _, path := range []string{"/tmp/fifo", "/tmp/zero", "/dev/zero"} {
			if _, err := m.ReadFile(ctx, path); !errors.Is(err, errNoFile) {
				t.Errorf("read %s: %v", path, err)
			}
		}
		if err := m.CopyOut(ctx, "/tmp/fifo", filepath.Join(t.TempDir(), "x")); err == nil {
			t.Error("copied a FIFO")
		}
		if _, err := m.readFile(ctx, "/data/secret", 3); !errors.Is(err, unix.EFBIG) {
			t.Errorf("read over the limit: %v", err)
		}
		// A lease on the file makes who opens it wait.
		gone, stop := context.WithCancel(ctx)
		stop()
		for what, f := range map[string]func() error{
			"read":     func() error { _, err := m.ReadFile(gone, "/data/secret"); return err },
			"exists":   func() error { _, err := m.Exists(gone, "/data/secret"); return err },
			"write":    func() error { return m.WriteFile(gone, "/tmp/x", []byte("x"), 0o644) },
			"copy in":  func() error { return m.CopyIn(gone, "/etc/passwd", "/tmp/y") },
			"copy out": func() error { return m.CopyOut(gone, "/etc/passwd", t.TempDir()) },
		} {
			if err := f(); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s, cancelled: %v", what, err)
			}
		}
		want(t, "nothing is left", "", sh(t, m, "ls -A /tmp | grep msh || true"))
	})
}

// A file with a lease on it is opened when the holder has given that up; who does
// not want to wait cancels.
func TestFilesLease(t *testing.T) {
	l := newLab(t)
	m := fork(t, l)
	path := filepath.Join(t.TempDir(), "leased")
	mustWrite(t, path, "text", 0o600)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no lease here: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.ReadFile(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	if b, err := m.ReadFile(t.Context(), path); err != nil || string(b) != "text" {
		t.Errorf("afterwards: %q, %v", b, err)
	}
}

// The machine stops whatever comes into it: who does not want to wait cancels.
func TestFilesStopped(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{}, overlay())
	spawn(t, m, "while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -STOP $p; done; done 2>/dev/null")
	were := len(pidsOf(t, m))
	stopped := 0
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		begin := time.Now()
		if err := m.WriteFile(ctx, "/tmp/x", nil, 0o644); err != nil {
			stopped++
		}
		if d := time.Since(begin); d > long {
			t.Errorf("cancelled after 50 ms, it took %v", d)
		}
		cancel()
	}
	t.Logf("%d of 20 were stopped", stopped)
	eventually(t, "nothing of it is left", func() bool { return len(pidsOf(t, m)) <= were })
}

// Many write one file, by the longest name there is.
func TestFilesParallel(t *testing.T) {
	ctx := t.Context()
	roots(t, func(t *testing.T, m *Machine, root string) {
		name := "/tmp/" + strings.Repeat("n", 255)
		together(t, 40, func(i int) error {
			return m.WriteFile(ctx, name, fmt.Appendf(nil, "%04d", i), 0o644)
		})
		want(t, "one of them", 4, len(run(t, m, "cat", name)))
		if err := m.WriteFile(ctx, name+"n", nil, 0o644); !errors.Is(err, unix.ENAMETOOLONG) {
			t.Errorf("a name too long: %v", err)
		}
		if err := m.WriteFile(ctx, "/tmp/x", make([]byte, 8), 0o644); err != nil {
			t.Error(err)
		}
		want(t, "no other name is left", "2", sh(t, m, "ls -A /tmp | wc -l"))
	})
}

// Into itself, a directory is not copied, whatever it is called there.
func TestCopyIntoItself(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(dir, "a/b/c/file"), "text", 0o644)
	if err := os.Symlink("a/b", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	bind := &Mount{Source: dir, Target: "/shared", Type: "bind"}
	for name, m := range map[string]*Machine{
		"plain":    fork(t, l, overlay(), bind),
		"uidspace": fork(t, l, &Uidspace{}, overlay(), &Mount{Source: dir, Target: "/shared", Type: "bind", Options: []string{"idmap"}}),
	} {
		for _, c := range [][2]string{{"a", "a"}, {"a", "a/b"}, {"a", "a/b/c/new"}, {"a", "link"}, {"a", ""}, {"", "a/b"}} {
			if err := m.CopyIn(ctx, filepath.Join(dir, c[0]), filepath.Join("/shared", c[1])); err == nil || !strings.Contains(err.Error(), "into itself") {
				t.Errorf("%s: copy %q in to %q: %v", name, c[0], c[1], err)
			}
			if err := m.CopyOut(ctx, filepath.Join("/shared", c[0]), filepath.Join(dir, c[1])); err == nil || !strings.Contains(err.Error(), "into itself") {
				t.Errorf("%s: copy %q out to %q: %v", name, c[0], c[1], err)
			}
		}
		if err := m.CopyIn(ctx, filepath.Join(dir, "a/b/c"), "/shared/a"); err != nil { // but out of itself
			t.Errorf("%s: %v", name, err)
		}
		want(t, "only that is new", "b c file c file link", strings.Join(under(t, dir), " "))
		if err := os.RemoveAll(filepath.Join(dir, "a/c")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Host().CopyOut(ctx, "/", t.TempDir()); err == nil || !strings.Contains(err.Error(), "into itself") {
		t.Errorf("copy / of the host: %v", err)
	}
}

// under lists the names below a directory and its a.
func under(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if path != dir && path != filepath.Join(dir, "a") {
			names = append(names, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// In a machine with ids of its own, its root's rights are what counts, not those
// of the host's root, whose the shared directory is.
func TestFilesRights(t *testing.T) {
	ctx := t.Context()
	shared := t.TempDir()
	for path, mode := range map[string]os.FileMode{shared: 0o777, filepath.Join(shared, "roots"): 0o755} {
		if err := errors.Join(os.MkdirAll(path, mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, filepath.Join(shared, "roots/victim"), "untouched", 0o644)
	mustWrite(t, filepath.Join(shared, "secret"), "the host's", 0o600)
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{}, overlay(), &Mount{Source: shared, Target: "/shared", Type: "bind"})
	sh(t, m, "cd /shared; ln -s roots dir; ln -s roots/victim link; mkdir own; ln -s ../roots own/dir; ln -s secret s")
	for _, path := range []string{"roots/victim", "roots/new", "dir/victim", "dir/new", "own/dir/victim"} {
		if err := m.WriteFile(ctx, "/shared/"+path, []byte("hit"), 0o4755|os.ModeSetuid); !errors.Is(err, os.ErrPermission) {
			t.Errorf("write %s: %v", path, err)
		}
		if err := m.CopyIn(ctx, "/etc/passwd", "/shared/"+path); !errors.Is(err, os.ErrPermission) {
			t.Errorf("copy to %s: %v", path, err)
		}
	}
	for _, path := range []string{"secret", "s"} {
		if b, err := m.ReadFile(ctx, "/shared/"+path); !errors.Is(err, os.ErrPermission) {
			t.Errorf("read %s: %q, %v", path, b, err)
		}
	}
	if err := m.CopyOut(ctx, "/shared/secret", filepath.Join(t.TempDir(), "x")); !errors.Is(err, os.ErrPermission) {
		t.Errorf("copy the secret: %v", err)
	}
	want(t, "the host's file", "untouched", read(t, filepath.Join(shared, "roots/victim")))
	names, err := os.ReadDir(filepath.Join(shared, "roots"))
	if err != nil || len(names) != 1 {
		t.Errorf("in the host's directory: %v, %v", names, err)
	}
	// What it may, it does as itself.
	if err := m.WriteFile(ctx, "/shared/own/file", []byte("mine"), 0o600); err != nil {
		t.Error(err)
	}
	want(t, "whose it is", fmt.Sprintf("%d:%[1]d", m.IDs()[0].Outside), ownerOf(t, filepath.Join(shared, "own/file")))

	// Without a root of its own, it has the host's files before it.
	plain := fork(t, l, &Uidspace{})
	if _, err := plain.ReadFile(ctx, filepath.Join(shared, "secret")); !errors.Is(err, os.ErrPermission) {
		t.Errorf("read the secret in a shared root: %v", err)
	}
	if _, err := plain.ReadFile(ctx, "/etc/shadow"); !errors.Is(err, os.ErrPermission) && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("read /etc/shadow in a shared root: %v", err)
	}
	if err := plain.WriteFile(ctx, filepath.Join(shared, "roots/victim"), nil, 0o644); !errors.Is(err, os.ErrPermission) {
		t.Errorf("write in a shared root: %v", err)
	}
}

// The files of all its users are its root's to write.
func TestFilesUsers(t *testing.T) {
	ctx := t.Context()
	l := newLab(t)
	for name, m := range map[string]*Machine{"plain": fork(t, l, overlay()), "uidspace": fork(t, l, &Uidspace{}, overlay()),
		"the host's ids": fork(t, l, &Uidspace{Map: []IDMap{{0, 0, 65536}}}, overlay())} {
		sh(t, m, "mkdir /tmp/ann && echo old >/tmp/ann/file && chmod 600 /tmp/ann/file && chmod 700 /tmp/ann && chown -R 1000:1001 /tmp/ann")
		if b, err := m.ReadFile(ctx, "/tmp/ann/file"); err != nil || string(b) != "old\n" {
			t.Errorf("%s: read: %q, %v", name, b, err)
		}
		for _, path := range []string{"/tmp/ann/file", "/tmp/ann/new"} {
			if err := m.WriteFile(ctx, path, []byte("new"), 0o644); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			want(t, name+": "+path, "0:0 new", sh(t, m, "echo $(stat -c %u:%g "+path+") $(cat "+path+")"))
		}
	}
}
