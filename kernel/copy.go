package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CopyIn copies a file, a link or a directory with all below it from the host
// into the machine, where it belongs to root. As with cp -a, dst that is a
// directory takes src under its own name; the root has none, and is copied into
// dst itself.
func (m *Machine) CopyIn(ctx context.Context, src, dst string) error {
	src, err := filepath.Abs(src)
	if err != nil {
		return err
	}
	return m.withFiles(ctx, func(files filesystem) error {
		host, err := hostFiles()
		if err != nil {
			return err
		}
		defer host.close()
		return copyPath(ctx, host, src, files, dst)
	})
}

// CopyOut copies from the machine to the host, where it belongs to the caller.
func (m *Machine) CopyOut(ctx context.Context, src, dst string) error {
	dst, err := filepath.Abs(dst)
	if err != nil {
		return err
	}
	return m.withFiles(ctx, func(files filesystem) error {
		host, err := hostFiles()
		if err != nil {
			return err
		}
		defer host.close()
		return copyPath(ctx, files, src, host, dst)
	})
}

// copyPath copies src of one file system to dst of another.
func copyPath(ctx context.Context, from filesystem, src string, to filesystem, dst string) error {
	src, dst = clean(src), clean(dst)
	if src != "/" {
		if d, err := to.open(ctx, atRoot, dst, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
			unix.Close(d)
			dst = filepath.Join(dst, filepath.Base(src))
		}
	}
	srcDir, name, err := locate(ctx, from, src)
	if err != nil {
		return fmt.Errorf("copy from %s: %w", src, err)
	}
	defer unix.Close(srcDir)
	dstDir, as, err := locate(ctx, to, dst)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", dst, err)
	}
	defer unix.Close(dstDir)
	c := &copying{ctx: ctx, from: from, to: to}
	if c.above, err = above(ctx, dstDir); err == nil {
		err = c.entry(srcDir, name, dstDir, as, 0)
	}
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", src, dst, err)
	}
	return nil
}

// copying is a copy on its way.
type copying struct {
	ctx      context.Context
	from, to filesystem
	above    map[inode]bool // the directories that the copy is in
}

// inode is what a file is, whatever its names.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

// deepest is how many directories below each other are copied: as many as a path
// could name with names of three letters.
const deepest = 1024

// entry copies one name of a directory to another, never following a link.
func (c *copying) entry(from int, name string, to int, as string, depth int) error {
	// A device is not opened just to look at it: that could rewind a tape.
	node, err := c.from.open(c.ctx, from, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(node, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		defer unix.Close(node)
		return c.link(node, name, to, as)
	}
	unix.Close(node) // before going deeper
	if err != nil {
		return pathError("stat", name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(from, name, to, as)
	case unix.S_IFDIR:
		return c.dir(from, name, to, as, depth)
	}
	return pathError("copy", name, errors.New("neither file, link nor directory"))
}

func (c *copying) file(from int, name string, to int, as string) error {
	fd, st, err := openRegular(c.ctx, c.from, from, name, unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return putFile(c.ctx, c.to, to, as, st.Mode&0o777, func(w io.Writer) error {
		_, err := io.CopyBuffer(w, stream{c.ctx, fd, name}, make([]byte, 256<<10))
		return err
	})
}

func (c *copying) link(node int, name string, to int, as string) error {
	buf := make([]byte, unix.PathMax) // the length that stat tells is 0 in /proc
	n, err := unix.Readlinkat(node, "", buf)
	if err != nil {
		return pathError("readlink", name, err)
	}
	return put(c.ctx, c.to, to, as, func(tmp string) error {
		return c.to.symlink(c.ctx, string(buf[:n]), to, tmp)
	})
}

func (c *copying) dir(from int, name string, to int, as string, depth int) error {
	if depth == deepest {
		return pathError("copy", name, fmt.Errorf("more than %d directories deep", deepest))
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	in, err := c.from.open(c.ctx, from, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	var st, made unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return pathError("stat", name, err)
	}
	intoItself := pathError("copy", name, errors.New("a directory into itself"))
	if c.above[inodeOf(&st)] {
		return intoItself
	}
	if err := c.to.mkdir(c.ctx, to, as, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	out, err := c.to.open(c.ctx, to, as, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	if err := unix.Fstat(out, &made); err != nil {
		return pathError("stat", as, err)
	}
	if inodeOf(&made) == inodeOf(&st) {
		return intoItself
	}
	if depth == 0 {
		c.above[inodeOf(&made)] = true
	}
	names, err := readdir(c.ctx, in, name)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := c.entry(in, n, out, n, depth+1); err != nil {
			return err
		}
	}
	return c.to.chmod(c.ctx, out, as, st.Mode&0o7777)
}

func readdir(ctx context.Context, fd int, name string) ([]string, error) {
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := stream{ctx, fd, name}.try("read", unix.ReadDirent, buf)
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// above are a directory and those above it, as the host's root finds them: only
// their numbers are read. A source among them would be copied into itself.
func above(ctx context.Context, dir int) (map[inode]bool, error) {
	ids := map[inode]bool{}
	var last unix.Statx_t
	for fd := dir; ; {
		// With the mount: a directory can be mounted on one in itself.
		var at unix.Statx_t
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		if err == nil {
			err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &at)
		}
		parent := -1
		top := len(ids) > 0 && at.Ino == last.Ino && at.Dev_major == last.Dev_major && at.Dev_minor == last.Dev_minor && at.Mnt_id == last.Mnt_id
		if err == nil && !top {
			if err = ctx.Err(); err == nil {
				parent, err = unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			}
		}
		if fd != dir {
			unix.Close(fd)
		}
		if err != nil || top {
			return ids, err
		}
		ids[inodeOf(&st)] = true
		fd, last = parent, at
	}
}
