package criu_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"msh/kernel/criu"
)

// Memory that is mapped at once has what was in it, and what was mostly unused stays so.
func TestPopulate(t *testing.T) {
	c, l := need(t), newLab(t)
	m := fork(t, l, spaces())
	write(t, m, "/map.py", `
import hashlib, mmap, os, time
MiB = 1 << 20
def private(size):
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
full = private(8 * MiB)
full.madvise(mmap.MADV_DONTFORK) # or the two would be one mapping
sparse = private(64 * MiB)
full[:] = os.urandom(MiB) * 8
for i in range(64):
    sparse[i * MiB] = 1
digest = hashlib.sha256(full).hexdigest()
while True:
    ok = hashlib.sha256(full).hexdigest() == digest and all(sparse[i * MiB] for i in range(64))
    open("/tmp/ok", "w").write("ok %s\n" % ok)
    time.sleep(0.01)
`)
	start(t, m, "exec python3 /map.py")
	eventually(t, m.Pid(), "/tmp/ok", "ok True")
	d := dumpOf(t, m)
	dump(t, c, d)
	before := mmImages(t, d.Images)
	for range 2 { // what is done already stays
		if err := criu.Populate(d.Images); err != nil {
			t.Fatal(err)
		}
	}
	changed := 0
	for path, is := range mmImages(t, d.Images) {
		if !bytes.Equal(is, before[path]) {
			changed++
		}
	}
	if changed != 1 {
		t.Errorf("%d of %d images changed, want the program's alone", changed, len(before))
	}
	pid := restore(t, c, restoreOf(t, d, map[string]string{"/map.py": "", "/tmp/ok": ""}))
	eventually(t, pid, "/tmp/ok", "ok True")
	if kib := residentIn(t, pid, 64<<10); kib > 1024 {
		t.Errorf("the sparse mapping has %d KiB now, of which 256 are used", kib)
	}
}

func mmImages(t *testing.T, dir *os.File) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	paths, _ := filepath.Glob(dir.Name() + "/mm-*.img")
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[path] = b
	}
	return all
}

// residentIn tells how many KiB of a mapping of that size are there, in a process of
// the tree whose root is pid.
func residentIn(t *testing.T, pid, size int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for child := range strings.FieldsSeq(string(b)) {
		smaps, err := os.ReadFile("/proc/" + child + "/smaps")
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for line := range strings.Lines(string(smaps)) {
			f := strings.Fields(line)
			switch f[0] {
			case "Size:":
				found = f[1] == fmt.Sprint(size)
			case "Rss:":
				if found {
					fmt.Sscan(f[1], &kib)
					return kib
				}
			}
		}
	}
	t.Fatalf("no mapping of %d KiB", size)
	return 0
}

// FuzzPopulate is for images that criu has not written.
func FuzzPopulate(f *testing.F) {
	f.Add([]byte("12345678\x00\x00\x00\x00"), []byte("12345678"))
	f.Fuzz(func(t *testing.T, mm, pagemap []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{"mm-1.img": mm, "pagemap-1.img": pagemap} {
			if err := os.WriteFile(dir+"/"+name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := criu.Populate(open(t, dir)); err != nil {
			t.Fatal(err)
		}
	})
}
