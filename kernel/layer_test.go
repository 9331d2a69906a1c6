package kernel

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Two layers that ls -lR tells the same of are two, where what is in their files, or
// their attributes, differs.
func TestLayerDigest(t *testing.T) {
	dir := t.TempDir()
	small, large := filepath.Join(dir, "passwd"), filepath.Join(dir, "lib.so")
	for path, b := range map[string][]byte{small: []byte("root:x:0:0"), large: bytes.Repeat([]byte("abcdefgh"), 100<<10)} {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	digest := func() string {
		t.Helper()
		d, err := layerDigest(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	was := digest()
	want(t, "looked at again", was, digest())
	change := func(path string, at int64) {
		t.Helper()
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		f.ReadAt(b[:], at)
		b[0] ^= 1
		if _, err := f.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path string
		at   int64
	}{{small, 5}, {large, 10}, {large, 800<<10 - 5}} {
		change(c.path, c.at)
		if digest() == was {
			t.Errorf("byte %d of %s is another one, and the digest is the same", c.at, c.path)
		}
		change(c.path, c.at)
		want(t, "changed back", was, digest())
	}
	if err := unix.Lsetxattr(small, "user.x", []byte("y"), 0); err == unix.ENOTSUP {
		t.Log("no attributes here")
	} else if err != nil {
		t.Fatal(err)
	} else if digest() == was {
		t.Error("an attribute more, and the digest is the same")
	}
	if d, err := layerDigest(t.Context(), "/"); d != "" || err != nil {
		t.Errorf("the host's own root: %q, %v", d, err)
	}
}
