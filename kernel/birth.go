package kernel

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
	"msh/kernel/stage0"
)

// birth is how a process is started: stage0, with a program, descriptors, and
// what clone(2) itself must do. Files are named by the program.
type birth struct {
	program *stage0.Program
	stdio   [3]int
	files   map[stage0.FD]int // descriptors of msh's that the program names
	flags   uintptr           // CLONE_NEW*
	ids     *IDs
	oneID   bool     // setgroups(2) is closed: see Under.OneID
	cgroup  int      // descriptor of a v2 group to be born in, -1 for none
	line    int      // to who answers uname for the machine, of Machine.entry's; -1 for none
	pidns   int      // pidfd of a machine in whose PID namespace to be born, -1 for msh's own
	fault   int      // the step that is to fail
	image   int      // a copy of stage0 to execute, 0 for the one that all have
	in      *Machine // whose group it is born in, nil for none
}

// process is a running stage0, and whatever it has executed since.
type process struct {
	pid   int
	pidfd int
	blob  int // the memory file with the program and its results
	steps []stage0.Step

	shepherd *herder // who waits for it in msh's place, nil for nobody
}

// imageNumber is the descriptor that stage0's own image has in every child, and
// stage0Path what is executed. It must be among those handed over: on its way to
// exec the Go runtime puts descriptors of its own on numbers just above the
// highest of them, and would overwrite any other. syncNumber is the line to msh,
// where there is one: the first that a program holds.
const (
	imageNumber = stage0.BlobFD + 1
	syncNumber  = imageNumber + 1
	stage0Path  = "/proc/self/fd/4"
)

// markInherited has descriptors that whoever started msh left open to it closed on
// exec. stage0 closes what it finds, but stands in the machine by then.
var markInherited = sync.OnceFunc(func() {
	unix.CloseRange(3, math.MaxUint32, closeOnExec)
})

// start starts it. The caller closes the process.
func (b *birth) start() (*process, error) {
	markInherited()
	if b.in != nil {
		defer b.in.hold()()
		if err := b.in.awake(); err != nil {
			return nil, err
		}
	}
	image, err := b.image, error(nil)
	if image == 0 {
		image, err = stage0.Executable()
	}
	if err != nil {
		return nil, err
	}
	names := b.program.FDs()
	number := map[stage0.FD]int{imageFD: imageNumber}
	files := make([]uintptr, imageNumber+1, imageNumber+1+len(names))
	for i, fd := range b.stdio {
		files[i] = uintptr(fd)
	}
	files[imageNumber] = uintptr(image)
	for _, name := range names {
		if name == imageFD {
			continue
		}
		fd, ok := b.files[name]
		if !ok {
			return nil, fmt.Errorf("start: no descriptor %q", name)
		}
		if number[name] = len(files); name == syncFD && len(files) != syncNumber {
			return nil, fmt.Errorf("start: the line to msh is descriptor %d, want %d", len(files), syncNumber)
		}
		files = append(files, uintptr(fd))
	}
	if b.fault == 0 && !ignoring() && !peculiar() {
		b.program.PassOver()
	}
	code, err := b.program.Assemble(number)
	if err != nil {
		return nil, err
	}
	if b.fault > 0 && b.fault <= b.program.Len() {
		stage0.Sabotage(code, stage0.Ref(b.fault-1))
	}
	blob, err := unix.MemfdCreate("msh-program", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	if _, err := unix.Pwrite(blob, code, 0); err != nil {
		unix.Close(blob)
		return nil, fmt.Errorf("write the program: %w", err)
	}
	files[stage0.BlobFD] = uintptr(blob)

	p := &process{pidfd: -1, blob: blob, steps: b.program.Steps()}
	attr := &syscall.ProcAttr{Files: files, Sys: &syscall.SysProcAttr{Cloneflags: b.flags, PidFD: &p.pidfd}}
	if b.cgroup >= 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, b.cgroup
	}
	if b.flags&unix.CLONE_NEWUSER != 0 {
		maps := b.ids.sysProcIDMap()
		attr.Sys.UidMappings, attr.Sys.GidMappings, attr.Sys.GidMappingsEnableSetgroups = maps, maps, !b.oneID
		attr.Sys.Credential = &syscall.Credential{NoSetGroups: b.oneID}
	}
	fork := func() (err error) {
		p.pid, err = syscall.ForkExec(stage0Path, []string{stage0.Name}, attr)
		return err
	}
	if b.flags&unix.CLONE_NEWUSER != 0 && peculiar() {
		fork = unhurried(fork)
	}
	if b.pidns >= 0 {
		err = inPidSpace(b.pidns, fork)
	} else {
		err = fork()
	}
	if err != nil {
		unix.Close(blob)
		if errors.Is(err, unix.ESRCH) && b.pidns >= 0 {
			return nil, fmt.Errorf("machine %s: %w", b.in.Name(), ErrDead) // its init is ending
		}
		return nil, explainClone(err, b.flags)
	}
	return p, nil
}

func explainClone(err error, flags uintptr) error {
	text := "clone"
	if flags != 0 {
		text += " with new spaces " + spaceWords(flags)
	}
	switch {
	case errors.Is(err, unix.ENOSPC):
		return withHint(fmt.Errorf("%s: %w", text, err), "the limit on namespaces is reached: see /proc/sys/user/max_*_namespaces")
	case errors.Is(err, unix.EPERM):
		return withHint(fmt.Errorf("%s: %w", text, err), explainPermission())
	case errors.Is(err, unix.EACCES) && InSpace():
		return withHint(fmt.Errorf("%s into its control group: %w", text, err), "the group is delegated elsewhere than where this msh runs: start this one in the same way, systemd-run --user --scope -p Delegate=yes msh …")
	case errors.Is(err, unix.EAGAIN):
		return withHint(fmt.Errorf("%s: %w", text, err), "a limit on processes is reached: pids(max) of a parent, or ulimit -u")
	case errors.Is(err, unix.EINVAL):
		return unsupported("the kernel was built without one of these namespaces; `msh doctor` tells which", "%s", text)
	}
	return fmt.Errorf("%s: %w", text, err)
}

// result is what a step has returned.
func (p *process) result(step stage0.Ref) (int64, error) {
	var b [8]byte
	_, err := unix.Pread(p.blob, b[:], stage0.ResultOffset(step))
	return stage0.Int64(b[:]), err
}

// failure is the error of the step at which the program gave up, nil if it has not.
func (p *process) failure() error {
	var head [64]byte
	if _, err := unix.Pread(p.blob, head[:], 0); err != nil {
		return fmt.Errorf("read the program back: %w", err)
	}
	step, errno, failed := stage0.Failed(head[:])
	if !failed {
		return nil
	}
	return &stepError{p.steps[step], int(step), errno}
}

// stepError is a system call that failed in the child.
type stepError struct {
	step  stage0.Step
	at    int
	errno unix.Errno
}

func (e *stepError) Error() string {
	if e.errno == 0 {
		return Short(e.step.Words) + ": msh is gone"
	}
	return Short(e.step.Words) + ": " + e.errno.Error()
}

func (e *stepError) Unwrap() error { return e.errno }

// Hint translates an errno that misleads.
func (e *stepError) Hint() string {
	switch nr := e.step.Nr; {
	case nr == unix.SYS_PIVOT_ROOT && e.errno == unix.EINVAL:
		return "the caller's root is an initramfs, out of which pivot_root(2) does not lead: switch_root to a real one first"
	case nr == unix.SYS_MOUNT && e.errno == unix.EINVAL:
		return "the kernel says more in dmesg; for an overlay: the lower directory is itself an overlay's upper, or on a file system that cannot be a layer"
	case (nr == unix.SYS_MOUNT || nr == unix.SYS_FSMOUNT) && e.errno == unix.EPERM:
		return "the kernel gives a machine with ids of its own no /proc or /sys that shows more than its parent's (mount_too_revealing): in a machine at security level 2, or with another uname, leave out uidspace() or pidspace()"
	case nr == unix.SYS_MOUNT && e.errno == unix.ENODEV:
		return "the kernel has no such file system (see /proc/filesystems)"
	case nr == unix.SYS_OPENAT2 && e.errno == unix.ELOOP:
		return "a link that would lead out of the machine's root, or a mount point of every root that is a link"
	case nr == unix.SYS_OPENAT2 && e.errno == unix.ENOENT:
		return "the mount point is not in the machine's root, and msh makes none in a root that is not the machine's own"
	case nr == unix.SYS_MOUNT_SETATTR && e.errno == unix.EINVAL:
		return "the file system there cannot have its owners shifted (idmapped mounts): ext4, xfs, btrfs and, since 6.3, tmpfs can"
	case nr == unix.SYS_PRLIMIT64 && e.errno == unix.EPERM:
		return "only CAP_SYS_RESOURCE can raise a hard limit above its own"
	case nr == unix.SYS_WRITE && e.errno == unix.ERANGE:
		return "the offset would set the clock below zero"
	case nr == unix.SYS_EXECVE && e.errno == unix.ENOENT:
		return "the program, its interpreter or its dynamic loader is not in the machine's root"
	case nr == unix.SYS_EXECVE && e.errno == unix.ENOEXEC:
		return "not a program for this machine: a script needs #! in its first line"
	}
	return ""
}

// close lets the process go on by itself.
func (p *process) close() {
	unix.Close(p.pidfd)
	unix.Close(p.blob)
}

// kill ends the process and reaps it.
func (p *process) kill() {
	unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
	reap(p.pidfd)
}

// openProcess returns a pidfd of the process that had that number and start time;
// ESRCH where it is gone, and the number free, or another process's or thread's.
func openProcess(pid int, start uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case err == unix.EINVAL || err == unix.ENOENT: // the number of a thread: before and since 6.9
		return -1, unix.ESRCH
	case err != nil:
		return -1, err
	case startTime(pid) != start:
		unix.Close(fd)
		return -1, unix.ESRCH
	}
	return fd, nil
}

// startTime is the field of /proc/PID/stat that, with the pid, names a process
// for ever; 0 when there is none.
func startTime(pid int) uint64 {
	b, err := rawfile.Read(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return statField(b, 19)
}
