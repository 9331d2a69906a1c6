package checkpoint

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestOverlay packs what the kernel's overlay wrote, and puts what was unpacked
// over the same lower layer, in a mount table of its own.
func TestOverlay(t *testing.T) {
	needRoot(t)
	dir := os.Getenv("CHECKPOINT_TEST_OVERLAY")
	if dir == "" {
		c := exec.Command(os.Args[0], "-test.run=^TestOverlay$", "-test.v")
		c.Env = append(os.Environ(), "CHECKPOINT_TEST_OVERLAY="+t.TempDir())
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	check(t, unix.Mount("msh-test", dir, "tmpfs", 0, ""))
	check(t, os.Chdir(dir))
	for _, d := range []string{"lower/gone/deep", "lower/replaced/old", "lower/kept", "upper", "work", "merged", "out", "work2"} {
		check(t, os.MkdirAll(d, 0o755))
	}
	for _, f := range []string{"lower/file", "lower/deleted", "lower/gone/deep/f", "lower/replaced/old/f", "lower/kept/f"} {
		check(t, os.WriteFile(f, pages(5000), 0o640))
	}
	mount := func(upper, work string) []string {
		t.Helper()
		check(t, unix.Mount("msh-test", "merged", "overlay", 0, "lowerdir=lower,upperdir="+upper+",workdir="+work))
		lines := walk(t, "merged")
		for i, l := range lines { // reading and copying up change times of last access
			before, after, _ := strings.Cut(l, " atime ")
			lines[i] = before + after[strings.Index(after, " mtime"):]
		}
		return lines
	}
	mount("upper", "work")
	check(t, os.Remove("merged/deleted"))
	check(t, os.RemoveAll("merged/gone"))
	check(t, os.RemoveAll("merged/replaced"))
	check(t, os.Mkdir("merged/replaced", 0o700)) // opaque
	check(t, os.WriteFile("merged/replaced/new", []byte("new"), 0o600))
	check(t, os.Chmod("merged/file", 0o4755)) // copied up
	check(t, os.WriteFile("merged/added", pages(100_000), 0o644))
	check(t, os.Link("merged/added", "merged/kept/added2"))
	check(t, unix.Unmount("merged", 0))
	want := mount("upper", "work")
	check(t, unix.Unmount("merged", 0))

	upper := strings.Join(walk(t, "upper"), "\n")
	if !strings.Contains(upper, `"deleted" 020000`) || !strings.Contains(upper, `"trusted.overlay.opaque"="y"`) {
		t.Fatalf("no whiteout or no opaque directory in\n%s", upper)
	}
	check(t, readAll(bytes.NewReader(write(t, Options{}, "upper", "")), "out", UnpackOptions{}))
	got := mount("out/m/upper", "work2")
	check(t, unix.Unmount("merged", 0))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, `"deleted"`) || strings.Contains(l, "old") }) {
		t.Errorf("what was deleted is back:\n%s", strings.Join(got, "\n"))
	}
}
