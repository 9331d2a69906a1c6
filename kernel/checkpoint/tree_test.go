package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot skips what makes devices, owners and trusted attributes.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("owners, devices and trusted.* attributes are for root to set")
	}
}

// dirFD opens a directory until the test ends.
func dirFD(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// check fails the test where something went wrong in setting it up.
func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pages is text that is not all alike, nor all different.
func pages(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := 0; i+8 <= n; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		if i/4096%3 > 0 {
			x &= 0xff00ff
		}
		for j := range 8 {
			b[i+j] = byte(x >> (8 * j))
		}
	}
	return b
}

// plant makes a tree with every kind of file that an overlay's upper directory
// can have, in dir.
func plant(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	file := func(name, text string) { t.Helper(); check(t, os.WriteFile(at(name), []byte(text), 0o644)) }
	attr := func(name, key, value string) {
		t.Helper()
		check(t, unix.Lsetxattr(at(name), key, []byte(value), 0))
	}
	for _, d := range []string{"etc", "etc/deep/er/est", "opaque", "shut", "empty", "acl"} {
		check(t, os.MkdirAll(at(d), 0o755))
	}
	file("etc/hosts", "127.0.0.1 localhost\n")
	file("etc/empty", "")
	file("etc/block", strings.Repeat("x", 512))
	file("etc/chunk", string(pages(chunkSize)))
	file("etc/large", string(pages(3*chunkSize+17)))
	file("etc/deep/er/est/zeros", string(make([]byte, 300_000)))
	file("shut/in", "a directory nobody may write to\n")
	check(t, os.Chmod(at("shut"), 0o500))
	file("setuid", "#!\n")
	check(t, os.Chown(at("setuid"), 1000, 4_000_000_000))
	check(t, os.Chmod(at("setuid"), 0o6755))
	check(t, os.Chmod(at("etc"), 0o1777))

	long := strings.Repeat("n", 255)
	check(t, os.MkdirAll(at("long/"+long+"/"+long), 0o755))
	file("long/"+long+"/"+long+"/"+long, "a path of more than a tar's 256 bytes")
	file("schön \n\x01\xff=%", "a name in no character set")
	check(t, os.Symlink("/etc/hosts", at("absolute")))
	check(t, os.Symlink("../../../etc", at("up")))
	check(t, os.Symlink(strings.Repeat("l", 300), at("long/link")))
	check(t, os.Lchown(at("up"), 7, 8))

	// Hard links: of a file, across directories, and of a link.
	check(t, os.Link(at("etc/hosts"), at("hosts2")))
	check(t, os.Link(at("etc/hosts"), at("long/hosts3")))
	check(t, os.Link(at("absolute"), at("etc/absolute2")))

	// Holes: at the beginning, within, at the end, and nothing else.
	sparse := func(name string, size int64, parts ...int64) {
		f, err := os.Create(at(name))
		check(t, err)
		for _, off := range parts {
			_, err := f.WriteAt(pages(8192), off)
			check(t, err)
		}
		check(t, f.Truncate(size))
		check(t, f.Close())
	}
	sparse("holes", 64<<20, 1<<20, 5<<20, 40<<20)
	sparse("hole", 1<<20)
	sparse("huge", 1<<40, 1<<39)
	sparse("holes-in-front", 1<<20+8192, 1<<20)

	check(t, unix.Mkfifo(at("fifo"), 0o620))
	check(t, unix.Mknod(at("socket"), unix.S_IFSOCK|0o755, 0))
	check(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, unix.Mknod(at("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	check(t, unix.Mknod(at("etc/whiteout"), unix.S_IFCHR, 0))
	check(t, os.Link(at("etc/whiteout"), at("whiteout2"))) // as overlayfs does
	check(t, unix.Lchown(at("fifo"), 33, 34))

	attr("opaque", "trusted.overlay.opaque", "y")
	attr("", "trusted.overlay.impure", "y")
	attr("etc/hosts", "user.plain", "value")
	attr("etc/hosts", "user.a=b%c", "a\x00b=\nc")
	attr("etc/large", "user.large", strings.Repeat("v", 3000))
	attr("absolute", "trusted.of-a-link", "x")
	attr("fifo", "trusted.of-a-fifo", "x")
	attr("etc/whiteout", "trusted.of-a-whiteout", "x")
	// cap_net_bind_service+ep, as linux/capability.h lays it out: VFS_CAP_REVISION_2.
	attr("etc/block", "security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	// u::rwx u:1000:rw- g::r-x m::rwx o::---, as linux/posix_acl_xattr.h does.
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\xe8\x03\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	file("acl/inherits not", "made before the directory's default ACL\n")
	attr("acl", "system.posix_acl_default", acl)
	file("acl/file", "")
	check(t, unix.Removexattr(at("acl/file"), "system.posix_acl_access")) // inherited
	attr("acl/file", "system.posix_acl_access", acl)

	// Times: before 1970, after 2242, and with nanoseconds.
	set := func(name string, atime, mtime unix.Timespec) {
		check(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(name), []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW))
	}
	set("etc/empty", unix.Timespec{Sec: -2, Nsec: 250_000_000}, unix.Timespec{Sec: -1000, Nsec: 0})
	set("fifo", unix.Timespec{Sec: 10_000_000_000, Nsec: 1}, unix.Timespec{Sec: 1, Nsec: 999_999_999})
	set("up", unix.Timespec{Sec: 77, Nsec: 7}, unix.Timespec{Sec: 88, Nsec: 8})
	set("etc/deep", unix.Timespec{Sec: 5, Nsec: 5}, unix.Timespec{Sec: 6, Nsec: 6})
	check(t, os.Chmod(dir, 0o711))
	set("", unix.Timespec{Sec: 3, Nsec: 3}, unix.Timespec{Sec: 4, Nsec: 4})
}

// walk describes a tree, a line or more for each file.
func walk(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	var visit func(path string)
	visit = func(path string) {
		var st unix.Stat_t
		full := filepath.Join(dir, path)
		check(t, unix.Lstat(full, &st))
		line := fmt.Sprintf("%q %#o %d:%d atime %d.%09d mtime %d.%09d", path, st.Mode, st.Uid, st.Gid, st.Atim.Sec, st.Atim.Nsec, st.Mtim.Sec, st.Mtim.Nsec)
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFDIR && !(kind == unix.S_IFCHR && st.Rdev == 0) {
			if first[st.Ino] == "" {
				first[st.Ino] = path
			}
			line += fmt.Sprintf(" links %d, of %q", st.Nlink, first[st.Ino])
		}
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(full, names)
		check(t, err)
		attrs := strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00")
		slices.Sort(attrs)
		for _, a := range attrs {
			if a == "" {
				continue
			}
			value := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(full, a, value)
			check(t, err)
			line += fmt.Sprintf(" %q=%q", a, value[:n])
		}
		switch kind {
		case unix.S_IFREG:
			line += fmt.Sprintf(" %d bytes", st.Size) + contents(t, full, st.Size)
		case unix.S_IFLNK:
			to, err := os.Readlink(full)
			check(t, err)
			check(t, unix.UtimesNanoAt(unix.AT_FDCWD, full, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)) // as they were before
			line += fmt.Sprintf(" -> %q", to)
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFDIR:
			entries, err := os.ReadDir(full)
			check(t, err)
			unix.UtimesNanoAt(unix.AT_FDCWD, full, []unix.Timespec{st.Atim, st.Mtim}, 0)
			lines = append(lines, line)
			for _, e := range entries {
				visit(filepath.Join(path, e.Name()))
			}
			return
		}
		lines = append(lines, line)
	}
	visit(".")
	return lines
}

// contents hashes what is in a file's data, and says where that is.
func contents(t testing.TB, path string, size int64) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOATIME, 0)
	check(t, err)
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	spans, err := findSpans(fd, size)
	check(t, err)
	hash := sha256.New()
	for _, s := range spans {
		_, err := io.Copy(hash, io.NewSectionReader(f, s.off, s.size))
		check(t, err)
	}
	return fmt.Sprintf(" data %v %x", spans, hash.Sum(nil)[:8])
}

// manifest is one of some machines.
func manifest(names ...string) *Manifest {
	m := &Manifest{Msh: "1.2.3", Lab: "lab", Host: Host{Arch: "x86_64", Kernel: "6.1.0", CPUFlags: []string{"sse2", "avx"}, Cgroup: 2}}
	for _, n := range names {
		m.Machines = append(m.Machines, Machine{Name: n, Mode: MemoryAndFiles, Spec: []byte(`{"Name":"` + n + `"}`),
			Needs: Needs{Bases: []Base{{Path: "/", Identity: "sha256:1234"}}, CRIU: "4.2.1"}})
	}
	return m
}

// write makes a snapshot of one machine, m, in memory.
func write(t testing.TB, o Options, upper, images string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, o)
	check(t, err)
	check(t, w.Manifest(manifest("m")))
	if upper != "" {
		check(t, w.Upper(context.Background(), "m", dirFD(t, upper)))
	}
	if images != "" {
		check(t, w.Images(context.Background(), "m", SectionMemory, dirFD(t, images)))
	}
	_, err = w.Commit()
	check(t, err)
	return out.Bytes()
}

// readAll unpacks all of a snapshot below a directory, as MACHINE/SECTION, and
// gives the first error.
func readAll(in io.Reader, dir string, o UnpackOptions) error {
	r, err := NewReader(in)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		s, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		at := filepath.Join(dir, s.Machine, s.Name)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		fd, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		switch {
		case s.Name == SectionUpper:
			err = r.UnpackUpper(context.Background(), fd, o)
		case isImages(s.Name):
			err = r.UnpackImages(context.Background(), fd, o)
		default:
			_, err = io.Copy(io.Discard, r)
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
}
