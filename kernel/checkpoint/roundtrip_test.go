package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestRoundTripOfEveryKindOfFile(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	plant(t, src)
	before := walk(t, src)
	for level := LevelFast; level <= LevelBetter; level++ {
		t.Run(fmt.Sprint(level), func(t *testing.T) {
			want := walk(t, src)
			file := write(t, Options{Level: level}, src, "")
			dst := t.TempDir()
			check(t, readAll(bytes.NewReader(file), dst, UnpackOptions{Devices: true}))
			if diff := cmp.Diff(want, walk(t, filepath.Join(dst, "m/upper"))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	// readlink(2) has no O_NOATIME.
	links := func(lines []string) []string {
		for i, l := range lines {
			if before, after, _ := strings.Cut(l, " atime "); strings.Contains(l, " -> ") {
				lines[i] = before + after[strings.Index(after, " mtime"):]
			}
		}
		return lines
	}
	if diff := cmp.Diff(links(before), links(walk(t, src))); diff != "" {
		t.Errorf("reading left a trace (-before +after)\n%s", diff)
	}
}

// TestOtherToolsReadIt unpacks both layers by hand, as doc.go says.
func TestOtherToolsReadIt(t *testing.T) {
	needRoot(t)
	for _, tool := range []string{"tar", "zstd", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	src, dir := t.TempDir(), t.TempDir()
	plant(t, src)
	os.Remove(filepath.Join(src, "socket")) // tar makes a file of it
	os.RemoveAll(filepath.Join(src, "acl")) // it has a notation of its own for these
	images := t.TempDir()
	check(t, os.WriteFile(filepath.Join(images, "pages-1.img"), pages(2_500_000), 0o600))
	for level := LevelFast; level <= LevelNone; level++ {
		check(t, os.RemoveAll(dir))
		check(t, os.MkdirAll(dir+"/out", 0o755))
		check(t, os.MkdirAll(dir+"/images", 0o755))
		check(t, os.WriteFile(dir+"/s.msh", write(t, Options{Level: level}, src, images), 0o600))
		script := `set -eu
			cd "$1"
			tar tf s.msh
			tar xOf s.msh m/upper | zstd -dc | tar x -C out --warning=no-timestamp --xattrs --xattrs-include='*' --acls --delay-directory-restore -p --numeric-owner
			tar xOf s.msh m/memory | zstd -dc | tar x -C images
			mkdir members
			tar xf s.msh -C members
			cd members
			sha256sum --quiet -c SHA256SUMS`
		out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput()
		if err != nil || strings.Contains(string(out), "tar:") {
			t.Fatalf("%v\n%s", err, out)
		}
		// What this tar does not do: times of last access, and attributes of what is
		// neither file nor directory.
		plain := func(lines []string) []string {
			for i, l := range lines {
				before, after, _ := strings.Cut(l, " atime ")
				_, after, _ = strings.Cut(after, " mtime ")
				for _, kind := range []string{"link", "fifo", "whiteout"} {
					after = strings.ReplaceAll(after, ` "trusted.of-a-`+kind+`"="x"`, "")
				}
				lines[i] = before + " mtime " + after
			}
			return lines
		}
		if diff := cmp.Diff(plain(walk(t, src)), plain(walk(t, dir+"/out"))); diff != "" {
			t.Errorf("level %d (-want +got)\n%s", level, diff)
		}
		got, _ := os.ReadFile(dir + "/images/pages-1.img")
		if !bytes.Equal(got, pages(2_500_000)) {
			t.Errorf("level %d: the image is another", level)
		}
	}
}

func TestImages(t *testing.T) {
	src := t.TempDir()
	page := pages(4096)
	mixed := make([]byte, 5<<20+100) // with zeros between
	copy(mixed[1<<20:], page)
	copy(mixed[3<<20-7:], page)
	check(t, os.MkdirAll(src+"/1", 0o700))
	check(t, os.MkdirAll(src+"/2", 0o700))
	check(t, os.WriteFile(src+"/1/pages-1.img", pages(1<<20), 0o600))
	check(t, os.WriteFile(src+"/2/pages-1.img", mixed, 0o600))
	check(t, os.WriteFile(src+"/2/zeros", make([]byte, 3<<20), 0o600))
	check(t, os.Symlink("../1", src+"/2/parent"))
	dst := t.TempDir()
	check(t, readAll(bytes.NewReader(write(t, Options{}, "", src)), dst, UnpackOptions{}))
	for _, name := range []string{"1/pages-1.img", "2/pages-1.img", "2/zeros", "2/parent/pages-1.img"} {
		want, err := os.ReadFile(filepath.Join(src, name))
		check(t, err)
		got, err := os.ReadFile(filepath.Join(dst, "m/memory", name))
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes that are not the %d that were packed", name, len(got), len(want))
		}
	}
	var st unix.Stat_t
	check(t, unix.Stat(filepath.Join(dst, "m/memory/2/zeros"), &st))
	if st.Blocks != 0 || st.Mode&0o777 != 0o600 {
		t.Errorf("zeros take %d blocks, mode %o", st.Blocks, st.Mode)
	}
	for name, to := range map[string]string{"a": "/", "b": "../..", "c/parent": "../../x", "d/parent": "/etc", "e/parent": "../e/parent", "parent": "../x"} {
		bad := t.TempDir()
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(bad, name)), 0o700))
		check(t, os.Symlink(to, filepath.Join(bad, name)))
		w, err := NewWriter(io.Discard, Options{})
		check(t, err)
		check(t, w.Manifest(manifest("m")))
		if err := w.Images(context.Background(), "m", SectionMemory, dirFD(t, bad)); err == nil {
			t.Errorf("images with a link %s to %s are packed", name, to)
		}
	}
}

// TestLabThroughPipe writes a lab of three machines to a pipe, with a stream in
// it, and something behind the snapshot, which the reader has to leave there.
func TestLabThroughPipe(t *testing.T) {
	src := t.TempDir()
	for i := range 50 {
		check(t, os.WriteFile(fmt.Sprintf("%s/f%d", src, i), pages(i*1000), 0o644))
	}
	images := t.TempDir()
	check(t, os.WriteFile(images+"/pages-1.img", pages(5<<20), 0o600))
	pr, pw, err := os.Pipe()
	check(t, err)
	defer pr.Close()
	var sent *Info
	done := make(chan error, 1)
	go func() {
		defer pw.Close()
		done <- func() error {
			w, err := NewWriter(pw, Options{})
			if err != nil {
				return err
			}
			m := manifest("a", "b", "c")
			m.WholeLab, m.Networks = true, []byte(`[{"name":"lan"}]`)
			if err := w.Manifest(m); err != nil {
				return err
			}
			for _, c := range m.Machines {
				fd, _ := unix.Open(src, unix.O_RDONLY, 0)
				defer unix.Close(fd)
				mem, _ := unix.Open(images, unix.O_RDONLY, 0)
				defer unix.Close(mem)
				s, err := w.Stream(context.Background(), c.Name, "log")
				if err != nil {
					return err
				}
				if _, err := io.Copy(s, bytes.NewReader(pages(2<<20+5))); err != nil {
					return err
				}
				if err := s.Close(); err != nil {
					return err
				}
				if err := w.Upper(context.Background(), c.Name, fd); err != nil {
					return err
				}
				if err := w.Images(context.Background(), c.Name, SectionRound(1), mem); err != nil {
					return err
				}
				if err := w.Images(context.Background(), c.Name, SectionMemory, mem); err != nil {
					return err
				}
			}
			if sent, err = w.Commit(); err != nil {
				return err
			}
			_, err = io.WriteString(pw, "behind")
			return err
		}()
	}()
	r, err := NewReader(pr)
	check(t, err)
	if m := r.Manifest(); !m.WholeLab || len(m.Machines) != 3 || m.Machine("b").Annotations[AnnotationContainer] != "b" ||
		m.Annotations[AnnotationCgroup] != "v2" || m.Machine("c").Annotations[AnnotationCRIU] != "4.2.1" {
		t.Errorf("manifest %+v", m)
	}
	var order []string
	for {
		s, err := r.Next()
		if err == io.EOF {
			break
		}
		check(t, err)
		order = append(order, s.Machine+"/"+s.Name)
		switch {
		case s.Machine == "b": // passed over
		case s.Name == "log":
			b, err := io.ReadAll(r)
			check(t, err)
			if !bytes.Equal(b, pages(2<<20+5)) {
				t.Error("the stream is another")
			}
		case s.Name == SectionUpper:
			dst := t.TempDir()
			check(t, r.UnpackUpper(context.Background(), dirFD(t, dst), UnpackOptions{}))
			if diff := cmp.Diff(walk(t, src), walk(t, dst)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		default:
			check(t, r.UnpackImages(context.Background(), dirFD(t, t.TempDir()), UnpackOptions{}))
		}
	}
	got, err := r.Info()
	check(t, err)
	check(t, <-done)
	if diff := cmp.Diff(sent, got); diff != "" {
		t.Errorf("what was written and what was read (-want +got)\n%s", diff)
	}
	if want := "a/log a/upper a/memory.1 a/memory b/log b/upper b/memory.1 b/memory c/log c/upper c/memory.1 c/memory"; strings.Join(order, " ") != want {
		t.Errorf("sections %v", order)
	}
	if rest, _ := io.ReadAll(pr); string(rest) != "behind" {
		t.Errorf("behind the snapshot is %q", rest)
	}
}

// TestSectionComesWhole reads a section to its end while its writer has not yet
// begun the next: who migrates answers in between.
func TestSectionComesWhole(t *testing.T) {
	src := t.TempDir()
	check(t, os.WriteFile(src+"/f", pages(chunkSize), 0o644))
	pr, pw := io.Pipe()
	unpacked := make(chan bool)
	done := make(chan error, 1)
	fd := dirFD(t, src)
	go func() {
		w, err := NewWriter(pw, Options{})
		if err == nil {
			err = w.Manifest(manifest("m"))
		}
		if err == nil {
			err = w.Upper(context.Background(), "m", fd)
		}
		<-unpacked
		if err == nil {
			_, err = w.Commit()
		}
		done <- err
	}()
	r, err := NewReader(pr)
	check(t, err)
	_, err = r.Next()
	check(t, err)
	check(t, r.UnpackUpper(context.Background(), dirFD(t, t.TempDir()), UnpackOptions{}))
	close(unpacked)
	if _, err := r.Next(); err != io.EOF {
		t.Error(err)
	}
	check(t, <-done)
}

func TestInspectAndVerify(t *testing.T) {
	dir, src := t.TempDir(), t.TempDir()
	check(t, os.WriteFile(src+"/f", pages(3<<20), 0o644))
	path := dir + "/s.msh"
	w, err := Create(path, Options{})
	check(t, err)
	m := manifest("a", "b")
	check(t, w.Manifest(m))
	if m.Format != 0 || m.Annotations != nil || m.Machines[0].Annotations != nil {
		t.Error("the caller's manifest was changed")
	}
	check(t, w.Upper(context.Background(), "a", dirFD(t, src)))
	check(t, w.Upper(context.Background(), "b", dirFD(t, t.TempDir())))
	want, err := w.Commit()
	check(t, err)
	check(t, w.Abort())
	got, err := Inspect(path)
	check(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-written +inspected)\n%s", diff)
	}
	got, err = Verify(context.Background(), path)
	check(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-written +verified)\n%s", diff)
	}
	st, err := os.Stat(path)
	check(t, err)
	if got.Size != st.Size() || st.Mode() != 0o600 {
		t.Errorf("%d bytes with mode %v, want %d", st.Size(), st.Mode(), got.Size)
	}
	if s := got.Sections; len(s) != 2 || s[0].Chunks != 4 || s[0].Size < 3<<20 || s[0].Size > 3<<20+8192 {
		t.Errorf("sections %+v", s)
	}
}

func TestXattrIsRenamed(t *testing.T) {
	needRoot(t)
	src, dst := t.TempDir(), t.TempDir()
	check(t, unix.Setxattr(src, "trusted.overlay.opaque", []byte("y"), 0))
	check(t, unix.Setxattr(src, "trusted.overlay.origin", []byte("z"), 0))
	o := UnpackOptions{Xattr: func(name string) string {
		if name == "trusted.overlay.origin" {
			return ""
		}
		return strings.Replace(name, "trusted.", "user.", 1)
	}}
	check(t, readAll(bytes.NewReader(write(t, Options{}, src, "")), dst, o))
	if got := walk(t, dst+"/m/upper")[0]; !strings.Contains(got, `"user.overlay.opaque"="y"`) || strings.Contains(got, "origin") {
		t.Error(got)
	}
}

// TestDeepTree has a path that is longer than the kernel takes in one go.
func TestDeepTree(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	fd := dirFD(t, src)
	name := strings.Repeat("d", 60)
	for range 100 {
		check(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY, 0)
		check(t, err)
		defer unix.Close(next)
		fd = next
	}
	f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	check(t, err)
	unix.Close(f)
	check(t, unix.Linkat(fd, "f", fd, "g", 0))
	file := write(t, Options{}, src, "")
	check(t, readAll(bytes.NewReader(file), dst, UnpackOptions{}))
	if again := write(t, Options{}, dst+"/m/upper", ""); len(again) != len(file) {
		t.Errorf("packed again it has %d bytes, not %d", len(again), len(file))
	}
}

func TestMisuse(t *testing.T) {
	ctx := context.Background()
	fd := dirFD(t, t.TempDir())
	w, err := NewWriter(io.Discard, Options{})
	check(t, err)
	fails := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
	}
	fails("a section first", w.Upper(ctx, "m", fd), "manifest comes first")
	_, err = w.Commit()
	fails("no manifest", err, "no manifest")
	fails("an empty manifest", w.Manifest(&Manifest{}), "no machine")
	fails("a bad name", w.Manifest(&Manifest{Machines: []Machine{{Name: "../x", Mode: FilesOnly}}}), "want a name")
	fails("no mode", w.Manifest(&Manifest{Machines: []Machine{{Name: "x"}}}), "mode")
	fails("twice", w.Manifest(&Manifest{Machines: []Machine{{Name: "x", Mode: FilesOnly}, {Name: "x", Mode: FilesOnly}}}), "twice")
	check(t, w.Manifest(manifest("m")))
	fails("a second manifest", w.Manifest(manifest("m")), "was written")
	fails("images as upper", w.Images(ctx, "m", SectionUpper, fd), "section")
	_, err = w.Stream(ctx, "m", SectionMemory)
	fails("a stream as memory", err, "section")
	s, err := w.Stream(ctx, "m", "log")
	check(t, err)
	fails("two sections at a time", w.Upper(ctx, "m", fd), "still open")
	_, err = w.Commit()
	fails("commit within a section", err, "still open")
	check(t, s.Close())
	check(t, w.Upper(ctx, "m", fd))
	fails("a section twice", w.Upper(ctx, "m", fd), "twice")
	fails("after an error", w.Upper(ctx, "m", fd), "twice")
	_, err = NewWriter(io.Discard, Options{Level: 9})
	fails("a level", err, "level 9")
}
