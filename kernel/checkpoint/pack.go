package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// packing is a tree on its way into a section.
type packing struct {
	ctx     context.Context
	out     *stream
	images  bool             // CRIU's: neither owners, attributes nor hard links matter
	covered bool             // what has something mounted on it is packed as if it were empty
	links   map[inode]string // files with several names, and the first of them
	head    []byte           // room
	attr    attrReader
}

// inode is what a file is, whatever its names.
type inode struct{ dev, ino uint64 }

// resolve is how every name is opened: links are not followed, nothing leads up,
// and what is mounted below is no part of the tree.
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// openBelow opens a name in a directory.
func openBelow(dir int, name string, flags int, mode uint32) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW), Mode: uint64(mode), Resolve: resolve}
	for {
		fd, err := unix.Openat2(dir, name, how)
		// EAGAIN: something was renamed meanwhile, somewhere; openat2(2).
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// openQuiet opens to read without a trace in the time of last access, where the
// caller may do that.
func openQuiet(dir int, name string, flags int) (int, error) {
	fd, err := openBelow(dir, name, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = openBelow(dir, name, flags, 0)
	}
	return fd, err
}

var errMounted = errors.New("something is mounted there")

func failAt(verb, path string, err error) error {
	if err == unix.EXDEV {
		err = errMounted
	}
	return fmt.Errorf("%s %s: %w", verb, path, err)
}

// tree packs all below a directory, and ends the tar.
func (p *packing) tree(dir int) error {
	fd, err := openQuiet(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return failAt("open", ".", err)
	}
	defer unix.Close(fd)
	p.links = map[inode]string{}
	if err := p.dir(fd, ".", 0); err != nil {
		return err
	}
	_, err = p.out.Write(zeros[:endSize])
	return err
}

// dir packs a directory that is open, and what is in it by the order of names.
func (p *packing) dir(fd int, at string, depth int) error {
	if depth > maxDepth {
		return failAt("pack", at, fmt.Errorf("more than %d directories deep", maxDepth))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failAt("stat", at, err)
	}
	if err := p.entry(fd, at, &st, kindDir); err != nil {
		return err
	}
	names, err := readNames(fd)
	if err != nil {
		return failAt("read", at, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := p.ctx.Err(); err != nil {
			return context.Cause(p.ctx)
		}
		err := p.name(fd, name, path.Join(at, name), depth)
		if errors.Is(err, errMounted) && p.covered {
			err = p.empty(fd, name, path.Join(at, name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readNames lists a directory.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// name packs one name of a directory.
func (p *packing) name(dir int, name, at string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failAt("stat", at, err)
	}
	// A device is not opened just to look at it: that could rewind a tape.
	flags, kind := unix.O_PATH, kindOf(&st)
	switch kind {
	case 0:
		return failAt("pack", at, fmt.Errorf("a file of type %#o", st.Mode&unix.S_IFMT))
	case kindDir:
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	case kindFile:
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			flags = unix.O_RDONLY | unix.O_NONBLOCK // a lease on it does not hold us
		}
	}
	var fd int
	var err error
	if flags == unix.O_PATH {
		fd, err = openBelow(dir, name, flags, 0)
	} else {
		fd, err = openQuiet(dir, name, flags)
	}
	if err != nil {
		return failAt("open", at, err)
	}
	defer unix.Close(fd)
	was := inode{uint64(st.Dev), st.Ino}
	if err := unix.Fstat(fd, &st); err != nil {
		return failAt("stat", at, err)
	}
	if was != (inode{uint64(st.Dev), st.Ino}) {
		return failAt("pack", at, errChanged)
	}
	if kind == kindDir {
		return p.dir(fd, at, depth+1)
	}
	return p.entry(fd, at, &st, kind)
}

// empty packs a place that something is mounted on. What is below cannot be seen.
func (p *packing) empty(dir int, name, at string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failAt("stat", at, err)
	}
	e := &entry{path: at, kind: kindFile, mode: st.Mode & 0o7777, atime: st.Atim, mtime: st.Mtim}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		e.kind = kindDir
	}
	p.head = e.appendHead(p.head[:0], 0)
	_, err := p.out.Write(p.head)
	return err
}

var errChanged = errors.New("it was changed meanwhile")

// kindOf is the kind of tar member for a file; a socket is an empty file, and 0
// is none.
func kindOf(st *unix.Stat_t) byte {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFSOCK:
		return kindFile
	case unix.S_IFLNK:
		return kindLink
	case unix.S_IFDIR:
		return kindDir
	case unix.S_IFIFO:
		return kindFifo
	case unix.S_IFCHR:
		return kindChar
	case unix.S_IFBLK:
		return kindBlock
	}
	return 0
}

// entry packs a file that is open, and its contents.
func (p *packing) entry(fd int, at string, st *unix.Stat_t, kind byte) error {
	e := &entry{path: at, kind: kind, mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, atime: st.Atim, mtime: st.Mtim}
	regular := st.Mode&unix.S_IFMT == unix.S_IFREG
	switch {
	case regular:
		e.size = st.Size
	case kind == kindFile:
		e.socket = true
	case kind == kindChar || kind == kindBlock:
		e.major, e.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case kind == kindLink:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			return failAt("readlink", at, err)
		}
		e.link = string(buf[:n])
	}
	if p.images {
		if err := imageFits(e); err != nil {
			return failAt("pack", at, err)
		}
		e.uid, e.gid = 0, 0
	} else {
		// An overlay makes all its whiteouts links of one inode; they need not be.
		if st.Nlink > 1 && kind != kindDir && !e.isWhiteout() {
			id := inode{uint64(st.Dev), st.Ino}
			if first, ok := p.links[id]; ok {
				p.head = (&entry{path: at, kind: kindHard, link: first, mode: e.mode, uid: e.uid, gid: e.gid}).appendHead(p.head[:0], 0)
				_, err := p.out.Write(p.head)
				return err
			}
			p.links[id] = at
		}
		var err error
		if e.xattrs, err = p.attr.read(fd, regular || kind == kindDir); err != nil {
			return failAt("read the attributes of", at, err)
		}
	}
	if !regular {
		p.head = e.appendHead(p.head[:0], 0)
		_, err := p.out.Write(p.head)
		return err
	}
	return p.file(fd, e, st)
}

// imageFits tells what is not among CRIU's images. Their "parent" links lead
// from the images of one round to those of the round before.
func imageFits(e *entry) error {
	switch {
	case e.kind == kindFile && !e.socket || e.kind == kindDir:
		return nil
	case e.kind == kindLink && path.Base(e.path) == "parent":
		to := path.Join(path.Dir(e.path), e.link)
		name := strings.TrimPrefix(e.link, "../")
		if !path.IsAbs(e.link) && isPath(to) && isPath(name) && path.Base(to) != "parent" && !strings.Contains(name, "/") {
			return nil
		}
		// Of a round that is a section of its own, to the section before.
		if e.path == "parent" && name != e.link && isImages(name) && isSection(name) {
			return nil
		}
		return fmt.Errorf("its parent is %q: want NAME or ../NAME, among the images", short(e.link))
	}
	return errors.New("no image: want regular files and directories")
}

// file packs a regular file and its contents.
func (p *packing) file(fd int, e *entry, st *unix.Stat_t) error {
	whole := []span{{0, e.size}}
	parts := whole
	if st.Blocks*512 < e.size {
		spans, err := findSpans(fd, e.size)
		if err != nil {
			return failAt("find the holes of", e.path, err)
		}
		if !slices.Equal(spans, whole) {
			parts, e.spans, e.sparse = spans, spans, true
		}
	}
	var table []byte
	if e.sparse {
		table = appendSpans(nil, e.spans, e.size)
	}
	stored := int64(len(table))
	for _, s := range parts {
		stored += s.size
	}
	p.head = append(e.appendHead(p.head[:0], stored), table...)
	if _, err := p.out.Write(p.head); err != nil {
		return err
	}
	for _, s := range parts {
		if err := p.contents(fd, e.path, s); err != nil {
			return err
		}
	}
	_, err := p.out.Write(zeros[:pad(stored)])
	return err
}

// contents reads a part of a file right into the chunks.
func (p *packing) contents(fd int, at string, s span) error {
	for s.size > 0 {
		room, err := p.out.room()
		if err != nil {
			return err
		}
		n, err := unix.Pread(fd, room[:min(int64(len(room)), s.size)], s.off)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = errChanged // shorter than it was
		}
		if err != nil {
			return failAt("read", at, err)
		}
		p.out.filled(n)
		s.off += int64(n)
		s.size -= int64(n)
	}
	return nil
}

// attrReader reads extended attributes; it has room for the largest list and
// value that Linux has (XATTR_LIST_MAX, XATTR_SIZE_MAX).
type attrReader struct{ list, value []byte }

// read lists a file's attributes by name. fgetxattr(2) does not take a
// descriptor that was opened with O_PATH; the same by its name in /proc does.
func (a *attrReader) read(fd int, readable bool) ([]xattr, error) {
	if a.list == nil {
		a.list, a.value = make([]byte, 64<<10), make([]byte, 64<<10)
	}
	var n int
	var err error
	name := ""
	if readable {
		n, err = unix.Flistxattr(fd, a.list)
	} else {
		name = procName(fd)
		n, err = unix.Listxattr(name, a.list)
	}
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []xattr
	for _, attr := range bytes.Split(bytes.TrimSuffix(a.list[:n], []byte{0}), []byte{0}) {
		if readable {
			n, err = unix.Fgetxattr(fd, string(attr), a.value)
		} else {
			n, err = unix.Getxattr(name, string(attr), a.value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", attr, err)
		}
		all = append(all, xattr{string(attr), string(a.value[:n])})
	}
	slices.SortFunc(all, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

func procName(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
