package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// roots are the machines whose files are read and written from outside: with the
// host's ids and with their own.
func roots(t *testing.T, f func(t *testing.T, m *Machine, uid string)) {
	t.Run("plain", func(t *testing.T) {
		l := newLab(t)
		f(t, fork(t, l, space("pidspace"), &Root{Source: smallRoot(t), Write: "overlay"}), "0:0")
	})
	t.Run("uidspace", func(t *testing.T) {
		l := newLab(t)
		m := fork(t, l, space("pidspace"), &Uidspace{}, &Root{Source: smallRoot(t), Write: "overlay"})
		base := m.IDs()[0].Outside
		f(t, m, fmt.Sprintf("%d:%d", base, base))
	})
}

func TestFiles(t *testing.T) {
	roots(t, func(t *testing.T, m *Machine, root string) {
		if err := m.WriteFile(t.Context(), "/etc/new", []byte("text"), 0o640); err != nil {
			t.Fatal(err)
		}
		want(t, "owner outside", root, ownerOf(t, inside(m, "/etc/new")))
		want(t, "owner, mode and size inside", "0 0 640 4", run(t, m, "stat", "-c", "%u %g %a %s", "/etc/new"))
		if err := m.WriteFile(t.Context(), "etc/new", []byte("other"), 0o4755|os.ModeSetuid); err != nil {
			t.Fatal(err)
		}
		want(t, "mode, written anew", "4755", run(t, m, "stat", "-c", "%a", "/etc/new"))
		want(t, "no other name is left", "", sh(t, m, "ls -A /etc | grep msh || true"))
		b, err := m.ReadFile(t.Context(), "/etc/../etc/new")
		if err != nil || string(b) != "other" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := m.ReadFile(t.Context(), "/not/there"); !os.IsNotExist(unwrapAll(err)) {
			t.Errorf("read what is not there: %v", err)
		}
		if err := m.WriteFile(t.Context(), "/not/there", nil, 0o644); err == nil {
			t.Error("wrote into no directory")
		}
		if _, err := m.ReadFile(t.Context(), "/etc"); err == nil {
			t.Error("read a directory")
		}
		big := strings.Repeat("x", 3<<20)
		if err := m.WriteFile(t.Context(), "/tmp/big", []byte(big), 0o644); err != nil {
			t.Fatal(err)
		}
		if b, err := m.ReadFile(t.Context(), "/tmp/big"); err != nil || string(b) != big {
			t.Errorf("3 MiB: %d bytes, %v", len(b), err)
		}
	})
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok || u.Unwrap() == nil {
			return err
		}
		err = u.Unwrap()
	}
}

func TestCopy(t *testing.T) {
	roots(t, func(t *testing.T, m *Machine, root string) {
		src := t.TempDir()
		mustWrite(t, filepath.Join(src, "tree/deep/file"), "deep", 0o600)
		mustWrite(t, filepath.Join(src, "tree/run"), "#!", 0o755)
		if err := os.Symlink("deep/file", filepath.Join(src, "tree/link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(src, "tree/run"), 1234, 1234); err != nil {
			t.Fatal(err)
		}
		if err := m.CopyIn(t.Context(), filepath.Join(src, "tree"), "/data"); err != nil { // a directory: into it
			t.Fatal(err)
		}
		if err := m.CopyIn(t.Context(), filepath.Join(src, "tree/run"), "/data/as"); err != nil {
			t.Fatal(err)
		}
		want(t, "inside", "deep", run(t, m, "cat", "/data/tree/link"))
		want(t, "modes and owners", "600 0\n755 0\n755 0", run(t, m, "stat", "-c", "%a %u", "/data/tree/deep/file", "/data/tree/run", "/data/as"))
		want(t, "the link", "deep/file", run(t, m, "readlink", "/data/tree/link"))

		sh(t, m, "chown 7:7 /data/tree/run; echo changed > /data/tree/deep/file")
		dst := t.TempDir()
		if err := m.CopyOut(t.Context(), "/data/tree", dst); err != nil {
			t.Fatal(err)
		}
		want(t, "outside", "changed", read(t, filepath.Join(dst, "tree/link")))
		want(t, "whose it is outside", "0:0", ownerOf(t, filepath.Join(dst, "tree/run")))
		if err := m.CopyOut(t.Context(), "/data/tree/run", filepath.Join(dst, "program")); err != nil {
			t.Fatal(err)
		}
		want(t, "a file by another name", "#!", read(t, filepath.Join(dst, "program")))
		if err := m.CopyOut(t.Context(), "/not/there", dst); err == nil {
			t.Error("copied what is not there")
		}
		if err := m.CopyIn(t.Context(), "/not/there", "/tmp"); err == nil {
			t.Error("copied what is not there")
		}
	})
}

func mustWrite(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// Whatever the machine puts in the way, msh neither reads nor writes outside of
// it, and does not hang.
func TestFilesHostile(t *testing.T) {
	roots(t, func(t *testing.T, m *Machine, root string) {
		outside := t.TempDir()
		// The test's directories are not in the machine: whatever is found by these
		// paths would be the host's.
		mustWrite(t, filepath.Join(outside, "secret"), "the host's", 0o644)
		mustWrite(t, filepath.Join(outside, "victim"), "untouched", 0o644)
		up := strings.Repeat("../", 20)
		sh(t, m, `cd /data
			ln -s `+outside+`/secret abs; ln -s `+up+outside+`/secret rel; ln -s `+outside+` dir; ln -s `+up+outside+` reldir
			ln -s /proc/self/root`+outside+` magic; ln -s /proc/1/cwd/../../`+outside+` magic2; ln -s loop loop
			ln -s `+outside+`/victim victim; mkdir d; ln -s `+outside+` d/x; mkfifo fifo
			mkdir tree; ln -s `+outside+`/secret tree/s; mkdir -p etc`)

		for _, path := range []string{"abs", "rel", "dir/secret", "reldir/secret", "magic/secret", "magic2/secret", "loop",
			up + outside + "/secret", "../" + up + outside + "/secret"} {
			if b, err := m.ReadFile(t.Context(), "/data/"+path); err == nil {
				t.Errorf("read %s: %q", path, b)
			}
			if ok, err := m.Exists(t.Context(), "/data/"+path); ok && err == nil {
				t.Errorf("%s is there", path)
			}
			if err := m.CopyOut(t.Context(), "/data/"+path, filepath.Join(t.TempDir(), "x")); err == nil && path != "abs" && path != "rel" && path != "loop" {
				t.Errorf("copied %s out", path)
			}
		}
		for _, path := range []string{"/proc/1/root/etc/passwd", "/proc/self/exe", "/proc/self/fd/0"} {
			if b, err := m.ReadFile(t.Context(), path); err == nil {
				t.Errorf("read by a magic link, %s: %d bytes", path, len(b))
			}
		}
		for _, path := range []string{"dir/new", "reldir/new", "magic/new", "d/x/new"} {
			if err := m.WriteFile(t.Context(), "/data/"+path, []byte("x"), 0o644); err == nil {
				t.Errorf("wrote %s", path)
			}
			if err := m.CopyIn(t.Context(), "/etc/passwd", "/data/"+path); err == nil {
				t.Errorf("copied to %s", path)
			}
		}
		// A link in the place of the file is replaced, not followed.
		if err := m.WriteFile(t.Context(), "/data/victim", []byte("mine"), 0o644); err != nil {
			t.Error(err)
		}
		want(t, "in its place", "regular file", run(t, m, "stat", "-c", "%F", "/data/victim"))

		// What is no file cannot be read for ever, nor written.
		if b, err := m.ReadFile(t.Context(), "/data/fifo"); err == nil && len(b) > 0 {
			t.Errorf("a FIFO: %q", b)
		}
		for _, path := range []string{"/data/fifo", "/dev/null", "/data/d"} {
			if err := m.WriteFile(t.Context(), path, []byte("x"), 0o644); err == nil {
				t.Errorf("wrote to %s", path)
			}
		}
		if err := m.CopyOut(t.Context(), "/data/fifo", filepath.Join(t.TempDir(), "x")); err == nil {
			t.Error("copied a FIFO")
		}
		if err := m.CopyOut(t.Context(), "/dev", filepath.Join(t.TempDir(), "x")); err == nil {
			t.Error("copied devices")
		}

		// A link that is copied out stays one, and none is followed on the way in.
		dst := t.TempDir()
		if err := m.CopyOut(t.Context(), "/data/tree", dst); err != nil {
			t.Fatal(err)
		}
		if to, err := os.Readlink(filepath.Join(dst, "tree/s")); err != nil || to != outside+"/secret" {
			t.Errorf("the link: %q, %v", to, err)
		}
		mustWrite(t, filepath.Join(dst, "tree2/x/new"), "new", 0o644)
		if err := m.CopyIn(t.Context(), filepath.Join(dst, "tree2/x"), "/data/d"); err == nil {
			t.Error("copied a directory onto a link")
		}
		names, err := os.ReadDir(outside)
		if err != nil || len(names) != 2 || read(t, filepath.Join(outside, "victim")) != "untouched" {
			t.Errorf("outside: %v, %v", names, err)
		}
	})
}

// The machine changes directories into links while msh copies.
func TestFilesRace(t *testing.T) {
	roots(t, func(t *testing.T, m *Machine, root string) {
		outside := t.TempDir()
		p := spawn(t, m, "mkdir /data/d; cd /data; while :; do mv d e; ln -s "+outside+" d; rm d; mv e d; done")
		for range 200 {
			m.WriteFile(t.Context(), "/data/d/file", []byte("x"), 0o644)
			m.CopyIn(t.Context(), "/etc/hostname", "/data/d/copy")
		}
		p.Kill(unix.SIGKILL)
		if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
			t.Errorf("escaped: %v, %v", names, err)
		}
	})
}

// A machine without a root of its own has the host's files.
func TestFilesShared(t *testing.T) {
	l := newLab(t)
	m := fork(t, l)
	path := filepath.Join(t.TempDir(), "x")
	if err := m.WriteFile(t.Context(), path, []byte("both's"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, "outside", "both's", read(t, path))
	b, err := l.Host().ReadFile(t.Context(), path)
	if err != nil || string(b) != "both's" {
		t.Errorf("host.read_file: %q, %v", b, err)
	}
}
