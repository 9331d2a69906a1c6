package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// entered is the files of a machine with ids of its own, as its root user finds
// them: each call is made by a process that has entered the machine. What it
// opens msh takes over:
//
//	msh                              the machine's root: stage0
//	───                              ──────────────────────────
//	clone into group ──────────────> enter the machine
//	                                 openat2
//	read line <───────────────────── write line
//	pidfd_getfd of what it has       read line
//	kill, reap                       .
//
// Paths are the process's own, so its root is theirs. The machine's root may stop
// the process: msh waits no longer than its context. It cannot trace it.
type entered struct{ m *Machine }

const (
	lineFD stage0.FD = "line" // to msh: a byte says that the file is open
	dirFD  stage0.FD = "dir"  // the directory that a name is in
	fileFD stage0.FD = "file"
)

func (entered) close() {}

func (e entered) open(ctx context.Context, dir int, path string, flags int, mode uint32) (int, error) {
	how := openHow(flags, mode)
	return again(ctx, func() (int, error) { return e.tryOpen(ctx, dir, path, how) })
}

func (e entered) tryOpen(ctx context.Context, dir int, path string, how *unix.OpenHow) (int, error) {
	line, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(line[0])
	var text []byte // struct open_how
	for _, v := range []uint64{how.Flags, how.Mode, how.Resolve} {
		text = binary.NativeEndian.AppendUint64(text, v)
	}
	files := map[stage0.FD]int{lineFD: line[1]}
	var at any = dirFD
	if dir == atRoot {
		at = stage0.AtCwd
		if path != "" { // which is ENOENT
			path = "/" + strings.TrimLeft(path, "/")
		}
	} else {
		files[dirFD] = dir
	}
	var opened stage0.Ref
	p, err := e.begin(files, func(s *Steps) {
		opened = s.Call("open "+path, 0, unix.SYS_OPENAT2, at, path, text, len(text))
		s.Call("tell msh", 0, unix.SYS_WRITE, lineFD, "o", 1)
		s.Call("wait for msh", stage0.Positive, unix.SYS_READ, lineFD, stage0.Buffer(8), 1)
	})
	unix.Close(line[1])
	if err != nil {
		return -1, err
	}
	defer p.close()
	defer p.kill()
	if err := await(ctx, line[0]); err != nil {
		return -1, err
	}
	var said [1]byte
	if n, _ := unix.Read(line[0], said[:]); n == 0 {
		return -1, e.explain(p, opened, "open", path)
	}
	n, err := p.result(opened)
	if err != nil {
		return -1, err
	}
	fd, err := unix.PidfdGetfd(p.pidfd, int(n), 0) // which is closed on exec
	if err != nil {
		return -1, fmt.Errorf("take over %s: %w", path, err)
	}
	return fd, nil
}

func (e entered) mkdir(ctx context.Context, dir int, name string, mode uint32) error {
	return e.call(ctx, "mkdir", name, map[stage0.FD]int{dirFD: dir}, unix.SYS_MKDIRAT, dirFD, name, int(mode))
}

func (e entered) symlink(ctx context.Context, text string, dir int, name string) error {
	return e.call(ctx, "symlink", name, map[stage0.FD]int{dirFD: dir}, unix.SYS_SYMLINKAT, text, dirFD, name)
}

func (e entered) rename(ctx context.Context, dir int, from, to string) error {
	return e.call(ctx, "rename", to, map[stage0.FD]int{dirFD: dir}, unix.SYS_RENAMEAT2, dirFD, from, dirFD, to, 0)
}

func (e entered) unlink(ctx context.Context, dir int, name string) error {
	return e.call(ctx, "unlink", name, map[stage0.FD]int{dirFD: dir}, unix.SYS_UNLINKAT, dirFD, name, 0)
}

func (e entered) chmod(ctx context.Context, fd int, name string, mode uint32) error {
	return e.call(ctx, "chmod", name, map[stage0.FD]int{fileFD: fd}, unix.SYS_FCHMOD, fileFD, int(mode))
}

// call has a process of the machine's make one system call.
func (e entered) call(ctx context.Context, op, name string, files map[stage0.FD]int, nr int, args ...any) error {
	var at stage0.Ref
	p, err := e.begin(files, func(s *Steps) { at = s.Call(op+" "+name, 0, nr, args...) })
	if err != nil {
		return err
	}
	defer p.close()
	if err := await(ctx, p.pidfd); err != nil {
		p.kill()
		return err
	}
	st, err := reap(p.pidfd)
	if err != nil || st == (status{true, 0}) {
		return err
	}
	return e.explain(p, at, op, name)
}

// begin starts a process of the machine's root. It is out of reach of ptrace(2),
// even of a root that has the host's ids (Steps.enter): msh believes what it says.
func (e entered) begin(files map[stage0.FD]int, steps func(*Steps)) (*process, error) {
	return e.m.begin(files, func(s *Steps) error {
		s.fenced()
		if err := s.shed(s.Plan.Confined, true, s.Plan.Under.Space); err != nil {
			return err
		}
		steps(s)
		return nil
	})
}

// explain tells why a process has not done what it was started for: because the
// machine's root may not, or because it has not come that far.
func (e entered) explain(p *process, at stage0.Ref, op, path string) error {
	err := p.failure()
	var step *stepError
	if errors.As(err, &step) && step.at == int(at) {
		return pathError(op, path, step.errno)
	}
	if dead := e.m.alive(); dead != nil {
		return dead
	}
	if err == nil {
		err = errors.New("the process that was to do it was killed")
	}
	return fmt.Errorf("%s %s: %w", op, path, err)
}

// await waits until a descriptor is readable or closed.
func await(ctx context.Context, fd int) error {
	c, err := newCanceller(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.await(ctx, time.Time{}, fd)
	return err
}

// begin starts a process of the machine's that makes some system calls and ends.
func (m *Machine) begin(files map[stage0.FD]int, steps func(*Steps) error) (*process, error) {
	b, s, done, err := m.entry()
	if err != nil {
		return nil, err
	}
	defer done()
	if err := steps(s); err != nil {
		return nil, err
	}
	s.Exit(0)
	null, err := openNull(m.self.Root)
	if err != nil {
		return nil, err
	}
	defer unix.Close(null)
	b.stdio = [3]int{null, null, null}
	if b.fault > s.Len() {
		b.fault = 0 // of a longer program, which this one is to prepare
	}
	maps.Copy(b.files, files)
	return b.start()
}
