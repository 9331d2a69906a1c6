package kernel

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// A spawned program has its parent outside the machine, where msh waits for it; but
// criu saves an init and its descendants. So in a machine that could be saved it has
// a shepherd: a process of stage0's inside, which waits for the program and hands its
// status on. When the machine is saved the shepherd is killed, and the program is
// init's, as those are that a shell there has started in the background.

// shepherds tells whether programs that are spawned in the machine have one. It
// stands inside without the machine's confinement, so none of those that have any.
func (m *Machine) shepherds() bool {
	s := m.Spec()
	return !m.isHost() && m.parent.isHost() && s.Has("pidspace") && s.Has("root") && !s.Has("security") && !InSpace()
}

// shepherd has the process at hand clone the one that goes on, and wait for it.
func (s *Steps) shepherd() (wait stage0.Ref) {
	all := binary.NativeEndian.AppendUint64(nil, everySignal)
	s.Call("block signals", 0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, all, 0, sigsetSize)
	s.Fork("clone the program", uint64(unix.SIGCHLD), 0, func(in *stage0.Program, child stage0.Ref) {
		in.Call("shepherd: let go of all descriptors", 0, unix.SYS_CLOSE_RANGE, 3, uint64(^uint32(0)), 0)
		wait = in.Call("shepherd: wait for the program", 0, unix.SYS_WAIT4, child, stage0.Buffer(8), unix.WALL, 0)
		in.Exit(0)
	})
	return wait
}

// herder is a shepherd as msh sees it, which is its parent.
type herder struct {
	pid    int
	pidfd  int
	status int64 // where in the memory file it puts the program's status
}

// herd makes of a process that is a shepherd the one that it waits for. Where that
// has ended already it stays as it is.
func (p *process) herd(wait stage0.Ref) error {
	at, err := p.argument(wait, 1)
	if err != nil {
		return err
	}
	f := &herder{p.pid, p.pidfd, at}
	if p.pidfd, err = unix.FcntlInt(uintptr(f.pidfd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		p.pidfd = f.pidfd
		return err
	}
	p.shepherd = f
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", f.pid))
	if err != nil {
		return nil // both have ended
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil
	}
	fd, err := unix.PidfdOpen(child, 0)
	if err != nil {
		return nil
	}
	unix.Close(p.pidfd)
	p.pid, p.pidfd = child, fd
	return nil
}

// reapShepherd reaps one that has ended; adopted tells that it was killed, and the
// program left to init.
func (p *process) reapShepherd() (st status, adopted bool) {
	own, _ := reap(p.shepherd.pidfd)
	unix.Close(p.shepherd.pidfd)
	if own != (status{true, 0}) {
		return status{}, true
	}
	var word [4]byte
	if _, err := unix.Pread(p.blob, word[:], p.shepherd.status); err != nil {
		return status{}, false
	}
	return waitStatus(uint32(stage0.Int32(word[:]))), false
}

// waitStatus reads what wait4(2) tells.
func waitStatus(word uint32) status {
	w := unix.WaitStatus(word)
	if w.Exited() {
		return status{true, w.ExitStatus()}
	}
	return status{false, int(w.Signal())}
}

// statusOf is how somebody else's child has ended: the kernel tells since Linux 6.15
// (PIDFD_INFO_EXIT); before, it is taken for killed.
func statusOf(pidfd int) status {
	const (
		getInfo  = 0xc040ff0b // _IOWR(0xff, 11, struct pidfd_info), 64 bytes
		infoExit = 1 << 3
		exitCode = 60
	)
	var info [64]byte
	binary.NativeEndian.PutUint64(info[:], infoExit)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), getInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || binary.NativeEndian.Uint64(info[:])&infoExit == 0 {
		return status{false, int(unix.SIGKILL)}
	}
	return waitStatus(binary.NativeEndian.Uint32(info[exitCode:]))
}

// dismissShepherds kills those of a machine, whoever has started them, and returns
// when their programs are init's.
func dismissShepherds(pids []int) error {
	for _, pid := range pids {
		if !isShepherd(pid) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if isShepherd(pid) { // and not another of that number
			err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		if err == nil || err == unix.ESRCH {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(teardown.Milliseconds()))
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("dismiss the shepherd %d: %w", pid, err)
		}
	}
	return nil
}

// isShepherd tells one by its program, which nothing else in a machine runs from.
func isShepherd(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && strings.HasPrefix(exe, "/memfd:"+stage0.ImageName)
}
