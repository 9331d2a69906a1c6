package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// filesystem is the files of a machine, or of the host: each call is made with
// the rights of its root user, and no path leads out of it. A directory dir is a
// descriptor that open has returned, or atRoot for open; a name in it is one
// without a slash. Errors that are the file's own are *fs.PathError.
type filesystem interface {
	open(ctx context.Context, dir int, path string, flags int, mode uint32) (int, error)
	mkdir(ctx context.Context, dir int, name string, mode uint32) error
	symlink(ctx context.Context, text string, dir int, name string) error
	rename(ctx context.Context, dir int, from, to string) error
	unlink(ctx context.Context, dir int, name string) error
	chmod(ctx context.Context, fd int, name string, mode uint32) error
	close()
}

// atRoot is the directory that stands for the root.
const atRoot = -1

// files are the machine's files. The root user of a machine with ids of its own
// is nobody outside, and only the kernel knows what that user may do, in a
// directory it shares with the host above all: there processes of the machine's
// do the work, and where what runs in the machine is confined. Elsewhere the
// machine's root is the host's, as msh is.
func (m *Machine) files() (filesystem, error) {
	if m.self.IDs != nil || m.confinement() != nil {
		return entered{m}, m.alive()
	}
	root, err := m.openRoot()
	return rooted(root), err
}

// withFiles calls f with the machine's files. A file system may let a call wait
// for ever (FUSE, NFS), and no signal reaches a thread of Go's: when ctx ends and
// f does not, it is left behind, for the end of the machine to wake.
func (m *Machine) withFiles(ctx context.Context, f func(filesystem) error) error {
	done := make(chan error, 1)
	go func() {
		files, err := m.files()
		if err == nil {
			err = f(files)
			files.close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done: // it takes back what it has half done
		return err
	case <-time.After(grace):
		return ctx.Err()
	}
}

// grace is what a cancelled call has to take back what it has half done.
const grace = 2 * time.Second

// rooted is a file system below a directory, by msh's own rights: openat2(2)
// keeps every path inside, whatever links are on the way.
type rooted int

// hostFiles are the files of msh itself.
func hostFiles() (rooted, error) {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return rooted(fd), err
}

func (r rooted) close() { unix.Close(int(r)) }

func (r rooted) open(ctx context.Context, dir int, path string, flags int, mode uint32) (int, error) {
	if dir == atRoot {
		dir = int(r)
	}
	how := openHow(flags, mode)
	how.Resolve |= unix.RESOLVE_IN_ROOT
	return again(ctx, func() (int, error) {
		fd, err := unix.Openat2(dir, path, how)
		return fd, pathError("open", path, err)
	})
}

func (rooted) mkdir(_ context.Context, dir int, name string, mode uint32) error {
	return pathError("mkdir", name, unix.Mkdirat(dir, name, mode))
}

func (rooted) symlink(_ context.Context, text string, dir int, name string) error {
	return pathError("symlink", name, unix.Symlinkat(text, dir, name))
}

func (rooted) rename(_ context.Context, dir int, from, to string) error {
	return pathError("rename", to, unix.Renameat(dir, from, dir, to))
}

func (rooted) unlink(_ context.Context, dir int, name string) error {
	return pathError("unlink", name, unix.Unlinkat(dir, name, 0))
}

func (rooted) chmod(_ context.Context, fd int, name string, mode uint32) error {
	return pathError("chmod", name, unix.Fchmod(fd, mode))
}

// openHow is what both kinds ask of openat2(2). Magic links (/proc/PID/fd, exe,
// root) lead anywhere, and into the process that does the work.
func openHow(flags int, mode uint32) *unix.OpenHow {
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Mode: uint64(mode), Resolve: unix.RESOLVE_NO_MAGICLINKS}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NOCTTY
	}
	return how
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// leaseTime is longer than the holder of a lease has to give it up, which is 45 s
// by /proc/sys/fs/lease-break-time.
const leaseTime = time.Minute

// again repeats an open while the kernel asks for it: after a signal, when
// something on the way was renamed (openat2(2), EAGAIN), and while somebody has a
// lease on the file (fcntl(2), EWOULDBLOCK), since it is opened without waiting.
func again(ctx context.Context, open func() (int, error)) (int, error) {
	begin := time.Now()
	for try := 0; ; try++ {
		fd, err := open()
		var e *fs.PathError
		if !errors.As(err, &e) || e.Err != unix.EINTR && e.Err != unix.EAGAIN || time.Since(begin) > leaseTime {
			return fd, err
		}
		select {
		case <-ctx.Done():
			return -1, ctx.Err()
		case <-time.After(min(time.Duration(try)*100*time.Microsecond, 50*time.Millisecond)):
		}
	}
}

// openIn opens a path of a directory's that is there, and stays inside it.
func openIn(root int, path string, flags int) (*os.File, error) {
	fd, err := rooted(root).open(context.Background(), atRoot, path, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

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
