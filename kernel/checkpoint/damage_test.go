package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// small is a snapshot with all that one has, of a few KiB.
func small(t testing.TB) []byte {
	t.Helper()
	src, images := t.TempDir(), t.TempDir()
	check(t, os.WriteFile(src+"/f", []byte("contents"), 0o644))
	check(t, os.Symlink("f", src+"/l"))
	check(t, os.WriteFile(images+"/pages-1.img", pages(2000), 0o644))
	return write(t, Options{}, src, images)
}

// refused tells whether an error says that a snapshot is not to be used.
func refused(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNewer) || errors.Is(err, ErrHostile)
}

// drain reads a snapshot and keeps nothing.
func drain(in io.Reader) error {
	r, err := NewReader(in)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		if _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// entries counts what is in a directory, all the way down.
func entries(t testing.TB, dir string) int {
	t.Helper()
	n := -1
	check(t, filepath.WalkDir(dir, func(string, os.DirEntry, error) error { n++; return nil }))
	return n
}

func TestEveryByteCounts(t *testing.T) {
	file := small(t)
	check(t, drain(bytes.NewReader(file)))
	dst := t.TempDir()
	path := filepath.Join(t.TempDir(), "s.msh")
	for i := range file {
		for _, flip := range []byte{1, 0x80} {
			file[i] ^= flip
			if err := drain(bytes.NewReader(file)); !refused(err) {
				t.Errorf("byte %d of %d, ^%#x: got %v", i, len(file), flip, err)
			}
			if flip == 1 && i%7 == 0 {
				check(t, os.WriteFile(path, file, 0o600))
				if _, err := Verify(context.Background(), path); !refused(err) {
					t.Errorf("byte %d of %d in a file: got %v", i, len(file), err)
				}
				if err := readAll(bytes.NewReader(file), dst, UnpackOptions{}); !refused(err) {
					t.Errorf("byte %d of %d, unpacked: got %v", i, len(file), err)
				}
				check(t, os.RemoveAll(dst))
			}
			file[i] ^= flip
		}
	}
}

// TestDamagedChunk damages the second chunk of a layer whose first is unpacked
// by then: nothing of it may be left.
func TestDamagedChunk(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	check(t, os.MkdirAll(src+"/a/b/c", 0o755))
	check(t, os.WriteFile(src+"/a/b/c/f", pages(100_000), 0o444))
	check(t, os.WriteFile(src+"/z", pages(3<<20), 0o644))
	check(t, os.Chmod(src+"/a/b", 0o555))
	file := write(t, Options{Level: LevelNone}, src, "")
	file[2<<20] ^= 4
	r, err := NewReader(bytes.NewReader(file))
	check(t, err)
	_, err = r.Next()
	check(t, err)
	err = r.UnpackUpper(context.Background(), dirFD(t, dst), UnpackOptions{})
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
	if n := entries(t, dst); n != 0 {
		t.Errorf("%d files are left", n)
	}
	if _, again := r.Next(); again == nil || again == io.EOF {
		t.Errorf("after an error Next gives %v", again)
	}
}

func TestTruncated(t *testing.T) {
	file := small(t)
	path := filepath.Join(t.TempDir(), "s.msh")
	for n := range file {
		if err := drain(bytes.NewReader(file[:n])); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d of %d bytes: got %v", n, len(file), err)
		}
		if n%blockSize > 1 && n%61 != 0 {
			continue
		}
		check(t, os.WriteFile(path, file[:n], 0o600))
		if _, err := Open(path); !errors.Is(err, ErrCorrupt) { // before anything is read
			t.Errorf("%d of %d bytes in a file: got %v", n, len(file), err)
		}
	}
	check(t, os.WriteFile(path, append(file, 0), 0o600))
	if _, err := Open(path); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte too many: got %v", err)
	}
}

func TestNotASnapshot(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "text": "hello\n", "zeros": string(zeros[:10240]), "long": string(pages(1 << 20))} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		if _, err := Inspect(filepath.Join(dir, name)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "want a regular file") {
		t.Errorf("a directory: got %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
}

// failing reads like a line that breaks.
type failing struct {
	io.Reader
	err error
}

func (f failing) Read(b []byte) (int, error) {
	n, err := f.Reader.Read(b)
	if err == io.EOF {
		err = f.err
	}
	return n, err
}

// TestReadErrorIsNotDamage tells a line that broke from a file that is wrong.
func TestReadErrorIsNotDamage(t *testing.T) {
	file := small(t)
	for _, n := range []int{0, 100, 3000, len(file) / 2, len(file) - 1} {
		err := drain(failing{bytes.NewReader(file[:n]), syscall.ECONNRESET})
		if !errors.Is(err, syscall.ECONNRESET) || refused(err) {
			t.Errorf("after %d bytes: got %v", n, err)
		}
	}
}

// TestCancelled ends packing to a pipe that nobody reads any more.
func TestCancelled(t *testing.T) {
	src := t.TempDir()
	check(t, os.WriteFile(src+"/f", pages(30<<20), 0o644))
	pr, pw, err := os.Pipe()
	check(t, err)
	defer pr.Close()
	defer pw.Close()
	w, err := NewWriter(pw, Options{})
	check(t, err)
	check(t, w.Manifest(manifest("m")))
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("enough")
	done := make(chan error)
	fd := dirFD(t, src)
	go func() { done <- w.Upper(ctx, "m", fd) }()
	_, err = NewReader(pr)
	check(t, err)
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("packing: got %v", err)
	}
	if _, err := w.Commit(); !errors.Is(err, why) {
		t.Errorf("commit: got %v", err)
	}
}

// TestUnpackWaitsCancelled cancels while the sender is silent.
func TestUnpackWaitsCancelled(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	check(t, os.WriteFile(src+"/f", pages(5<<20), 0o644))
	file := write(t, Options{}, src, "")
	pr, pw := io.Pipe()
	defer pr.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		pw.Write(file[:len(file)/2])
		cancel()
	}()
	r, err := NewReader(pr)
	check(t, err)
	_, err = r.Next()
	check(t, err)
	if err := r.UnpackUpper(ctx, dirFD(t, dst), UnpackOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := entries(t, dst); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// TestFileAppearsWhole looks at the directory at every stage, for both ways of
// hiding a file, for a new one and for one to be replaced.
func TestFileAppearsWhole(t *testing.T) {
	for _, nameless := range []bool{true, false} {
		for _, old := range []string{"", "what was there"} {
			for _, end := range []string{"commit", "abort", "cancel", "write error", "sync error"} {
				t.Run(fmt.Sprintf("nameless=%v,old=%v,%s", nameless, old != "", end), func(t *testing.T) {
					testTarget(t, nameless, old, end)
				})
			}
		}
	}
}

func testTarget(t *testing.T, nameless bool, old, end string) {
	dir, src := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "s.msh")
	if old != "" {
		check(t, os.WriteFile(path, []byte(old), 0o644))
	}
	asBefore := func() {
		t.Helper()
		got, err := os.ReadFile(path)
		if old == "" && !errors.Is(err, os.ErrNotExist) || string(got) != old {
			t.Errorf("the file is %q, %v", short(string(got)), err)
		}
	}
	w, err := NewWriter(nil, Options{})
	check(t, err)
	f, err := newTarget(path, nameless)
	check(t, err)
	w.out, w.file = f, f
	check(t, os.WriteFile(src+"/f", pages(2<<20), 0o644))
	check(t, w.Manifest(manifest("m")))
	asBefore()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch end {
	case "cancel":
		cancel()
	case "write error":
		f.file.Close()
	}
	err = w.Upper(ctx, "m", dirFD(t, src))
	asBefore()
	if broken := end == "cancel" || end == "write error"; broken != (err != nil) {
		t.Errorf("upper: %v", err)
	}
	if end == "sync error" {
		f.file.Close()
	}
	if end != "abort" {
		_, err = w.Commit()
		if (end == "commit") != (err == nil) {
			t.Errorf("commit: %v", err)
		}
	}
	w.Abort()
	w.Abort()
	want := 0
	if end == "commit" {
		want = 1
		_, err := Verify(context.Background(), path)
		check(t, err)
	} else {
		asBefore()
		if old != "" {
			want = 1
		}
	}
	if n := entries(t, dir); n != want {
		t.Errorf("%d files, want %d", n, want)
	}
}

// TestKilled kills a writer in the middle.
func TestKilled(t *testing.T) {
	if path := os.Getenv("CHECKPOINT_TEST_WRITE"); path != "" {
		w, err := Create(path, Options{})
		check(t, err)
		check(t, w.Manifest(manifest("m")))
		s, err := w.Stream(context.Background(), "m", "log")
		check(t, err)
		for i := 0; ; i++ {
			_, err := s.Write(pages(chunkSize))
			check(t, err)
			if i == 5 {
				fmt.Println("writing")
			}
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "s.msh")
	check(t, os.WriteFile(path, []byte("what was there"), 0o644))
	c := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	c.Env = append(os.Environ(), "CHECKPOINT_TEST_WRITE="+path)
	out, err := c.StdoutPipe()
	check(t, err)
	check(t, c.Start())
	io.ReadFull(out, make([]byte, len("writing")))
	check(t, c.Process.Kill())
	c.Wait()
	if got, _ := os.ReadFile(path); string(got) != "what was there" {
		t.Errorf("the file is %q", short(string(got)))
	}
	if n := entries(t, dir); n != 1 {
		t.Errorf("%d files are there", n)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Create(dir, Options{}); err == nil {
		t.Error("a directory is replaced")
	}
	if _, err := Create("/dev/null", Options{}); err == nil {
		t.Error("a device is replaced")
	}
	if _, err := Create(dir+"/none/s.msh", Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: got %v", err)
	}
}
