package kernel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// openRoot opens the machine's root directory.
func (m *Machine) openRoot() (int, error) {
	path := "/"
	if !m.isHost() {
		if err := m.alive(); err != nil {
			return -1, err
		}
		path = fmt.Sprintf("/proc/%d/root", m.pid)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if dead := m.alive(); dead != nil {
		if err == nil {
			unix.Close(fd) // the number may be another process's by now
		}
		return -1, dead
	}
	if !m.isHost() && (err == unix.ENOENT || err == unix.ESRCH) { // init is ending and has let go of its root
		return -1, fmt.Errorf("machine %s: %w", m.Name(), ErrDead)
	}
	if err != nil {
		return -1, fmt.Errorf("open the root of %s: %w", m.Name(), err)
	}
	return fd, nil
}

// openIn opens a path of the machine's that is there. Whatever links are on the
// way, it stays inside the machine's root (openat2(2), RESOLVE_IN_ROOT).
func openIn(root int, path string, flags int) (*os.File, error) {
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NOCTTY
	}
	for {
		fd, err := unix.Openat2(root, path, how)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN: // EAGAIN: renamed on the way
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// ReadFile reads a file of the machine's.
func (m *Machine) ReadFile(path string) ([]byte, error) {
	root, err := m.openRoot()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	// O_NONBLOCK: a FIFO without a writer must not hang msh.
	f, err := openIn(root, path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name(), err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name(), err)
	}
	return b, nil
}

// Exists tells whether a path is there in the machine.
func (m *Machine) Exists(path string) (bool, error) {
	root, err := m.openRoot()
	if err != nil {
		return false, err
	}
	defer unix.Close(root)
	f, err := openIn(root, path, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// WriteFile writes a file of the machine's, owned by the machine's root. Whoever
// reads it meanwhile sees the old one or the new one: it is put in place whole.
// A file that is there keeps nothing, not even its mode.
func (m *Machine) WriteFile(path string, data []byte, mode os.FileMode) error {
	return m.asRoot(func(root int) error {
		dir, err := openIn(root, filepath.Dir(clean(path)), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name(), err)
		}
		defer dir.Close()
		return putFile(int(dir.Fd()), filepath.Base(clean(path)), mode, func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		})
	})
}

// putFile writes name in a directory by way of another name. A symbolic link of
// that name is replaced, not followed; a device or FIFO is refused.
func putFile(dir int, name string, mode os.FileMode, write func(io.Writer) error) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG, unix.S_IFLNK:
		default:
			return &fs.PathError{Op: "write", Path: name, Err: errors.New("there is something that is no file")}
		}
	}
	var tmp string
	fd, err := -1, error(unix.EEXIST)
	for err == unix.EEXIST || err == unix.EINTR {
		tmp = fmt.Sprintf(".msh-%d-%d", os.Getpid(), written.Add(1))
		fd, err = unix.Openat(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, uint32(mode.Perm()))
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	err = write(f)
	if err == nil {
		err = unix.Fchmod(fd, modeBits(mode)) // past the umask
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = unix.Renameat(dir, tmp, dir, name)
	}
	if err != nil {
		unix.Unlinkat(dir, tmp, 0)
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// written counts files written, for names that no two of them have.
var written atomic.Uint64

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

// asRoot calls f with the machine's root directory, as the machine's root user:
// what f creates belongs to it. In a machine with ids of its own that takes a
// thread with another file-system user; the goroutine ends locked to it, so that
// it serves nobody else.
func (m *Machine) asRoot(f func(root int) error) error {
	root, err := m.openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	uid, ok := outward(m.self.IDs, 0, 1)
	if !ok || uid == 0 {
		return f(root)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := setFsuser(int(uid))
		if err == nil {
			err = f(root)
		}
		done <- err
	}()
	return <-done
}

// setFsuser makes this thread's new files belong to a user, and keeps the rights
// that leaving user 0 would take (credentials(7)).
func setFsuser(uid int) error {
	unix.Setfsgid(uid)
	unix.Setfsuid(uid)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for i := range data {
		data[i].Effective = data[i].Permitted
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// CopyIn copies a file, a link or a directory with all below it from the host
// into the machine, where it belongs to root. As with cp -a, dst that is a
// directory takes src under its own name.
func (m *Machine) CopyIn(src, dst string) error {
	return m.asRoot(func(root int) error {
		from, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		abs, err := filepath.Abs(src)
		if err != nil {
			return err
		}
		return copyPath(from, abs, root, dst)
	})
}

// CopyOut copies from the machine to the host, where it belongs to the caller.
func (m *Machine) CopyOut(src, dst string) error {
	from, err := m.openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	abs, err := filepath.Abs(dst)
	if err != nil {
		return err
	}
	return copyPath(from, src, to, abs)
}

// copyPath copies src under one root to dst under another.
func copyPath(from int, src string, to int, dst string) error {
	src, dst = clean(src), clean(dst)
	if d, err := openIn(to, dst, unix.O_PATH|unix.O_DIRECTORY); err == nil {
		d.Close()
		dst = filepath.Join(dst, filepath.Base(src))
	}
	srcDir, err := openIn(from, filepath.Dir(src), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("copy from %s: %w", src, err)
	}
	defer srcDir.Close()
	dstDir, err := openIn(to, filepath.Dir(dst), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", dst, err)
	}
	defer dstDir.Close()
	if err := copyEntry(int(srcDir.Fd()), filepath.Base(src), int(dstDir.Fd()), filepath.Base(dst)); err != nil {
		return fmt.Errorf("copy %s to %s: %w", src, dst, err)
	}
	return nil
}

// copyEntry copies one name of a directory to another, never following a link.
func copyEntry(from int, name string, to int, as string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		fd, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: name, Err: err}
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		return putFile(to, as, os.FileMode(st.Mode&0o777), func(w io.Writer) error {
			_, err := io.Copy(w, f)
			return err
		})
	case unix.S_IFLNK:
		buf := make([]byte, st.Size+1)
		n, err := unix.Readlinkat(from, name, buf)
		if err != nil {
			return &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		unix.Unlinkat(to, as, 0)
		if err := unix.Symlinkat(string(buf[:n]), to, as); err != nil {
			return &fs.PathError{Op: "symlink", Path: as, Err: err}
		}
		return nil
	case unix.S_IFDIR:
		return copyDir(from, name, to, as, st.Mode&0o7777)
	}
	return &fs.PathError{Op: "copy", Path: name, Err: errors.New("neither file, link nor directory")}
}

func copyDir(from int, name string, to int, as string, mode uint32) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW
	in, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	src := os.NewFile(uintptr(in), name)
	defer src.Close()
	if err := unix.Mkdirat(to, as, 0o700); err != nil && err != unix.EEXIST {
		return &fs.PathError{Op: "mkdir", Path: as, Err: err}
	}
	out, err := unix.Openat(to, as, flags, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: as, Err: err}
	}
	defer unix.Close(out)
	names, err := src.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := copyEntry(in, n, out, n); err != nil {
			return err
		}
	}
	return unix.Fchmod(out, mode)
}
