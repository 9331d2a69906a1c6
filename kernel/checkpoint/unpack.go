package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// unpacking is a section on its way into a directory.
type unpacking struct {
	ctx     context.Context
	in      *source
	options UnpackOptions
	images  bool
	stack   []*openDir // from the tree's root to the directory that is being filled
	bytes   int64
	files   int64
	pax     []byte // room
}

// openDir is a directory that is being filled. What it is to be like is set when
// it is full: its times would change, its mode could forbid, and its default ACL
// would show in what is made in it.
type openDir struct {
	fd   int
	path string // with a trailing slash; "" is the root's
	e    *entry
}

// tree unpacks all into an empty directory, or leaves it empty.
func (u *unpacking) tree(dir int) (err error) {
	root, err := openBelow(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return failAt("open", "the directory", err)
	}
	names, err := readNames(root)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("want an empty directory: it has %q in it", short(names[0]))
	}
	if err != nil {
		unix.Close(root)
		return err
	}
	u.stack = []*openDir{{fd: root}}
	defer func() {
		for len(u.stack) > 1 {
			unix.Close(u.top().fd)
			u.stack = u.stack[:len(u.stack)-1]
		}
		if err != nil {
			err = errors.Join(err, empty(root))
		}
		unix.Close(root)
	}()
	for {
		if err := u.ctx.Err(); err != nil {
			return context.Cause(u.ctx)
		}
		e, stored, err := u.next()
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		if err := u.entry(e, stored); err != nil {
			return err
		}
	}
	if err := u.in.more(); err == nil {
		return hostile("something stands behind the tree's end")
	} else if err != io.EOF {
		return err
	}
	if err := u.leave(1); err != nil {
		return err
	}
	if e := u.stack[0].e; e == nil {
		return hostile("the tree has no root")
	} else if !u.images {
		return u.describe(root, true, e)
	}
	return nil
}

func (u *unpacking) top() *openDir { return u.stack[len(u.stack)-1] }

// next reads the next member's headers; nil is the end.
func (u *unpacking) next() (*entry, int64, error) {
	var b [blockSize]byte
	if err := u.in.full(b[:]); err != nil {
		return nil, 0, err
	}
	if b == [blockSize]byte{} {
		if err := u.in.full(b[:]); err != nil {
			return nil, 0, err
		}
		if b != [blockSize]byte{} {
			return nil, 0, hostile("half an end of the tree")
		}
		return nil, 0, nil
	}
	u.pax = u.pax[:0]
	if b[156] == kindPax {
		var ext ustar
		if err := ext.parse(b[:]); err != nil {
			return nil, 0, hostile("%v", err)
		}
		if ext.size > maxPax {
			return nil, 0, hostile("a pax header of %d bytes", ext.size)
		}
		for n := ext.size + pad(ext.size); n > 0; {
			p, err := u.in.take(n)
			if err != nil {
				return nil, 0, err
			}
			u.pax = append(u.pax, p...)
			n -= int64(len(p))
		}
		u.pax = u.pax[:ext.size]
		if err := u.in.full(b[:]); err != nil {
			return nil, 0, err
		}
	}
	return parseEntry(b[:], u.pax)
}

// entry makes a file. It goes into the directory made last, or one above that:
// so was it written, and so no name is ever looked up.
func (u *unpacking) entry(e *entry, stored int64) error {
	if u.files++; u.options.MaxFiles != 0 && u.files > u.options.MaxFiles {
		return hostile("more than the %d files that it may have", u.options.MaxFiles)
	}
	if err := u.allowed(e); err != nil {
		return err
	}
	if e.path == "." {
		if u.stack[0].e != nil || e.kind != kindDir {
			return hostile("the tree's root twice")
		}
		u.stack[0].e = e
		return nil
	}
	if u.stack[0].e == nil {
		return hostile("%q before the tree's root", short(e.path))
	}
	for !strings.HasPrefix(e.path, u.top().path) {
		if err := u.leave(len(u.stack) - 1); err != nil {
			return err
		}
	}
	name := e.path[len(u.top().path):]
	if strings.Contains(name, "/") {
		return hostile("%q is not in the directory before it", short(e.path))
	}
	var err error
	dir := u.top().fd
	switch {
	case e.kind == kindDir:
		return u.mkdir(dir, name, e)
	case e.kind == kindHard:
		return u.hardLink(dir, name, e)
	case e.kind == kindFile && !e.socket:
		return u.file(dir, name, e, stored)
	case e.kind == kindLink:
		err = unix.Symlinkat(e.link, dir, name)
	default:
		err = unix.Mknodat(dir, name, nodeType(e)|0o600, int(unix.Mkdev(e.major, e.minor)))
	}
	if err != nil {
		return made("make", e, err)
	}
	if u.images {
		return nil
	}
	fd, err := openBelow(dir, name, unix.O_PATH, 0)
	if err != nil {
		return failAt("open", e.path, err)
	}
	defer unix.Close(fd)
	if err := u.describe(fd, false, e); err != nil {
		return err
	}
	return u.times(dir, name, e)
}

// made translates the error of making a file.
func made(verb string, e *entry, err error) error {
	if err == unix.EEXIST {
		return hostile("%q twice", short(e.path))
	}
	return failAt(verb, short(e.path), err)
}

func nodeType(e *entry) uint32 {
	switch e.kind {
	case kindChar:
		return unix.S_IFCHR
	case kindBlock:
		return unix.S_IFBLK
	case kindFifo:
		return unix.S_IFIFO
	}
	return unix.S_IFSOCK
}

// allowed tells what the caller did not ask for.
func (u *unpacking) allowed(e *entry) error {
	if u.images {
		if err := imageFits(e); err != nil {
			return hostile("%q: %v", short(e.path), err)
		}
		return nil
	}
	if (e.kind == kindChar || e.kind == kindBlock) && !e.isWhiteout() && !u.options.Devices {
		return hostile("%q is a device, %d:%d", short(e.path), e.major, e.minor)
	}
	return nil
}

func (u *unpacking) mkdir(dir int, name string, e *entry) error {
	if len(u.stack) > maxDepth {
		return hostile("more than %d directories deep", maxDepth)
	}
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return made("mkdir", e, err)
	}
	fd, err := openBelow(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return failAt("open", e.path, err)
	}
	u.stack = append(u.stack, &openDir{fd, e.path + "/", e})
	return nil
}

// leave closes directories until n are left.
func (u *unpacking) leave(n int) error {
	for len(u.stack) > n {
		d := u.top()
		u.stack = u.stack[:len(u.stack)-1]
		err := error(nil)
		if !u.images {
			err = u.describe(d.fd, true, d.e)
		}
		unix.Close(d.fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// hardLink gives a file that was made before one name more.
func (u *unpacking) hardLink(dir int, name string, e *entry) error {
	at := u.stack[0].fd
	for rest := e.link; ; {
		part, below, more := strings.Cut(rest, "/")
		flags := unix.O_PATH
		if more {
			flags |= unix.O_DIRECTORY
		}
		fd, err := openBelow(at, part, flags, 0)
		if at != u.stack[0].fd {
			unix.Close(at)
		}
		if err != nil { // not there, or a link on the way
			return hostile("%q: a hard link to %q: %v", short(e.path), short(e.link), err)
		}
		at, rest = fd, below
		if !more {
			break
		}
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return failAt("stat", e.link, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return hostile("%q: a hard link to the directory %q", short(e.path), short(e.link))
	}
	err := unix.Linkat(at, "", dir, name, unix.AT_EMPTY_PATH)
	if err == unix.ENOENT { // without CAP_DAC_READ_SEARCH; open(2) has this way
		err = unix.Linkat(unix.AT_FDCWD, procName(at), dir, name, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		return made("link", e, err)
	}
	return nil
}
