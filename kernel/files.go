package kernel

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileMax is the most that ReadFile reads. A machine can make a file of any size
// out of nothing, and it is msh's memory that it would fill.
const fileMax = 1 << 30

// ReadFile reads a regular file of the machine's, of at most 1 GiB.
func (m *Machine) ReadFile(ctx context.Context, path string) ([]byte, error) {
	return m.readFile(ctx, path, fileMax)
}

func (m *Machine) readFile(ctx context.Context, path string, limit int64) ([]byte, error) {
	var b []byte
	err := m.withFiles(ctx, func(files filesystem) (err error) {
		b, err = readFile(ctx, files, path, limit)
		return err
	})
	if err != nil { // and b may still be written to
		return nil, m.named(err)
	}
	return b, nil
}

// named says in whose files something is wrong.
func (m *Machine) named(err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return fmt.Errorf("%s: %w", m.Name(), err)
	}
	return err
}

func readFile(ctx context.Context, files filesystem, path string, limit int64) ([]byte, error) {
	fd, _, err := openRegular(ctx, files, atRoot, path, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b, err := io.ReadAll(io.LimitReader(stream{ctx, fd, path}, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = pathError("read", path, fmt.Errorf("more than %d bytes: %w", limit, unix.EFBIG))
	}
	return b, err
}

var errNoFile = errors.New("not a regular file")

// openRegular opens a file to read it, and looks only then at what it is: before,
// it could be changed for something else. O_NONBLOCK does not wait for the writer
// of a FIFO, and stays on: for the few regular files that can make a reader wait
// (/proc/kmsg) having nothing to read is an error.
func openRegular(ctx context.Context, files filesystem, dir int, path string, flags int) (int, *unix.Stat_t, error) {
	fd, err := files.open(ctx, dir, path, unix.O_RDONLY|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return -1, nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			return fd, &st, nil
		case unix.S_IFDIR:
			err = unix.EISDIR
		default:
			err = errNoFile
		}
	}
	unix.Close(fd)
	return -1, nil, pathError("read", path, err)
}

// stream reads or writes an open file until the context ends.
type stream struct {
	ctx  context.Context
	fd   int
	name string
}

// Read implements io.Reader.
func (s stream) Read(b []byte) (int, error) {
	n, err := s.try("read", unix.Read, b)
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

// Write implements io.Writer.
func (s stream) Write(b []byte) (int, error) {
	for done := 0; ; {
		n, err := s.try("write", unix.Write, b[done:])
		if done += n; err != nil || done == len(b) {
			return done, err
		}
	}
}

func (s stream) try(op string, f func(int, []byte) (int, error), b []byte) (int, error) {
	const block = 1 << 20 // between two looks at the context
	for {
		if err := s.ctx.Err(); err != nil {
			return 0, err
		}
		n, err := f(s.fd, b[:min(len(b), block)])
		if err != unix.EINTR {
			return max(n, 0), pathError(op, s.name, err)
		}
	}
}

// Exists tells whether a path is there in the machine.
func (m *Machine) Exists(ctx context.Context, path string) (bool, error) {
	err := m.withFiles(ctx, func(files filesystem) error {
		fd, err := files.open(ctx, atRoot, path, unix.O_PATH, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// WriteFile writes a file of the machine's, owned by the machine's root. Whoever
// reads it meanwhile sees the old one or the new one: it is put in place whole.
// A file that is there keeps nothing, not even its mode.
func (m *Machine) WriteFile(ctx context.Context, path string, data []byte, mode os.FileMode) error {
	return m.named(m.withFiles(ctx, func(files filesystem) error {
		dir, name, err := locate(ctx, files, path)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return putFile(ctx, files, dir, name, modeBits(mode), func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		})
	}))
}

// locate opens the directory that a path's last name is in. The root's name, in
// itself, is ".".
func locate(ctx context.Context, files filesystem, path string) (dir int, name string, err error) {
	path = clean(path)
	name = filepath.Base(path)
	if path == "/" { // a name that begins with a slash would be msh's own root
		name = "."
	}
	dir, err = files.open(ctx, atRoot, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	return dir, name, err
}

// putFile writes name in a directory by way of another name.
func putFile(ctx context.Context, files filesystem, dir int, name string, mode uint32, write func(io.Writer) error) error {
	return put(ctx, files, dir, name, func(tmp string) error {
		fd, err := files.open(ctx, dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		err = write(stream{ctx, fd, name})
		if err == nil {
			err = files.chmod(ctx, fd, name, mode) // at the end: what is written to loses its set-user-ID bit
		}
		if e := unix.Close(fd); err == nil {
			err = pathError("close", name, e)
		}
		return err
	})
}

// put makes something under a name that nobody uses and renames it. A symbolic
// link or file in its place is replaced, not followed; anything else is refused.
func put(ctx context.Context, files filesystem, dir int, name string, create func(tmp string) error) error {
	st, err := lstat(ctx, files, dir, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFLNK:
		return pathError("write", name, errors.New("there is something that is no file"))
	}
	var tmp string
	for err = fs.ErrExist; errors.Is(err, fs.ErrExist); {
		if e := ctx.Err(); e != nil {
			return e
		}
		tmp = ".msh-" + randomHex(4)
		err = create(tmp)
	}
	if err == nil {
		err = files.rename(ctx, dir, tmp, name)
	}
	if err == nil {
		return nil
	}
	var e *fs.PathError
	if errors.As(err, &e) && e.Path == tmp {
		e.Path = name // which the caller knows
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if e := files.unlink(late, dir, tmp); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // which never fails
	return hex.EncodeToString(b)
}

// lstat looks at a name without following it.
func lstat(ctx context.Context, files filesystem, dir int, name string) (*unix.Stat_t, error) {
	fd, err := files.open(ctx, dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return &st, pathError("stat", name, unix.Fstat(fd, &st))
}

func modeBits(mode os.FileMode) uint32 {
	bits := uint32(mode.Perm())
	if mode&os.ModeSetuid != 0 {
		bits |= unix.S_ISUID
	}
	if mode&os.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	if mode&os.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	return bits
}
