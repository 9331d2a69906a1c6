package criu_test

import (
	"os"
	"strings"
	"testing"
)

// Memory that fills huge pages is restored into such and holds what it held, and what was
// not used stays so. Where a child may share it criu has its own way, page by page. How
// many pages are huge ones is a matter of how fast this host gives them; the first are.
func TestHugePages(t *testing.T) {
	c := need(t)
	if b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled"); err != nil || strings.Contains(string(b), "[never]") {
		t.Skipf("this host gives no huge pages: %s, %v", b, err)
	}
	try := func(t *testing.T, family bool) {
		m := fork(t, newLab(t), spaces())
		program, files := `
import hashlib, mmap, os, time
MiB = 1 << 20
most = mmap.mmap(-1, 33 * MiB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
most.madvise(mmap.MADV_DONTDUMP) # or others would be one mapping with it
some = os.urandom(16 * MiB)
most[: 16 * MiB] = most[17 * MiB :] = some
digest, name = hashlib.sha256(some).hexdigest(), "/tmp/ok"
del some
`, map[string]string{"/tmp/ok": ""}
		if family {
			program += "if os.fork() == 0: name = '/tmp/child'\n"
			files["/tmp/child"] = ""
		}
		write(t, m, "/map.py", program+`
while True:
    ok = all(hashlib.sha256(most[at : at + 16 * MiB]).hexdigest() == digest for at in (0, 17 * MiB))
    open(name, "w").write("ok %s\n" % ok)
    time.sleep(0.01)
`)
		start(t, m, "exec python3 /map.py")
		for name := range files {
			eventually(t, m.Pid(), name, "ok True")
		}
		d := dumpOf(t, m)
		dump(t, c, d)
		files["/map.py"] = ""
		pid := restore(t, c, restoreOf(t, d, files))
		for name := range files {
			if name != "/map.py" {
				eventually(t, pid, name, "ok True")
			}
		}
		huge, resident := ofMapping(t, pid, 33<<10, "AnonHugePages:"), ofMapping(t, pid, 33<<10, "Rss:")
		if resident > 32<<10 {
			t.Errorf("%d KiB are there, of which 32 MiB were used", resident)
		}
		if family != (huge == 0) || !family && huge < 8<<10 {
			t.Errorf("%d KiB of 32 MiB are huge pages", huge)
		}
	}
	t.Run("alone", func(t *testing.T) { try(t, false) })
	t.Run("family", func(t *testing.T) { try(t, true) })
}
