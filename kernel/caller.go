package kernel

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/rawfile"
	"msh/kernel/stage0"
)

// What a process has of whoever started msh, and its children after it, is no part of
// a machine: a machine runs on the CPUs, at the priority and under the limits that its
// resources name, however and from wherever it is entered. So each process begins with
// the steps below. They are seldom needed, and passed over where msh itself has
// nothing of the sort (Program.PassOver).
//
// What the kernel lets nobody put back stays: filters of system calls, no_new_privs,
// fences of Landlock, the bounding set, the audit user. What it lets only the host's
// root put back, an ordinary user keeps: a nice value, a score for the OOM killer.

// How the kernel starts its first process.
const (
	timerSlack = 50000 // ns
	oomFile    = "/proc/self/oom_score_adj"
)

// leaveCaller comes first, where the process has msh's rights yet.
func (s *Steps) leaveCaller() {
	const words = "leave the caller's priority, CPUs and modes"
	var steps []stage0.Step
	call := func(flags stage0.Flags, nr int, args ...any) stage0.Ref {
		steps = append(steps, stage0.Step{Words: words, Flags: flags, Nr: nr, Args: args})
		return stage0.Ref(s.Len() + len(steps) - 1)
	}
	call(0, unix.SYS_PERSONALITY, 0)
	call(stage0.MayFail, unix.SYS_SCHED_SETATTR, 0, binary.NativeEndian.AppendUint32(make([]byte, 0, unix.SizeofSchedAttr), unix.SizeofSchedAttr)[:unix.SizeofSchedAttr], 0)
	call(stage0.MayFail, unix.SYS_IOPRIO_SET, ioprioProcess, 0, 0)
	call(stage0.MayFail, unix.SYS_SCHED_SETAFFINITY, 0, uint64(unsafe.Sizeof(unix.CPUSet{})), bytes.Repeat([]byte{0xff}, int(unsafe.Sizeof(unix.CPUSet{}))))
	call(stage0.MayFail, unix.SYS_SET_MEMPOLICY, 0, 0, 0)
	call(stage0.MayFail, unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0)
	call(stage0.MayFail, unix.SYS_PRCTL, unix.PR_SET_THP_DISABLE, 0, 0, 0, 0)
	call(stage0.MayFail, unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 0, 0, 0, 0)
	// Ambient ones go with those that are inherited. In a user space just made there are none.
	if own, err := selfCaps(); err == nil && (s.Plan.Flags&unix.CLONE_NEWUSER == 0 || s.Plan.relayed()) {
		call(stage0.MayFail, unix.SYS_CAPSET, capHeader(), capData(own.permitted()))
	}
	fd := call(stage0.SkipNext, unix.SYS_OPENAT, stage0.AtCwd, oomFile, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	call(stage0.MayFail, unix.SYS_WRITE, fd, "0", 1)
	s.Spare(steps...)
}

const ioprioProcess = 1 // IOPRIO_WHO_PROCESS

// unhurried has f called on a thread of usual priority. A process that is born into a
// user space of its own has no right any more to set its own.
func unhurried(f func() error) func() error {
	return func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		was, err := unix.SchedGetAttr(0, 0)
		if err != nil || unix.SchedSetAttr(0, &unix.SchedAttr{}, 0) != nil {
			return f() // a user may not
		}
		defer unix.SchedSetAttr(0, was, 0)
		return f()
	}
}

// selfCaps are this process's own.
func selfCaps() (c capWords, err error) {
	err = unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &c[0])
	return c, err
}

type capWords [2]unix.CapUserData

func (c capWords) permitted() capSet {
	return capSet(c[0].Permitted) | capSet(c[1].Permitted)<<32
}

// peculiar tells whether a child of this process would have some of it.
var peculiar = sync.OnceValue(func() bool {
	const ask = 0xffffffff
	if p, _, _ := unix.RawSyscall(unix.SYS_PERSONALITY, ask, 0, 0); p != 0 {
		return true
	}
	if a, err := unix.SchedGetAttr(0, 0); err == nil && (a.Policy != 0 || a.Nice != 0 || a.Flags != 0) {
		return true
	}
	// None is told as what it comes to, which is best effort at 4.
	const bestEffort = 2<<13 | 4
	if p, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_GET, ioprioProcess, 0, 0); errno == 0 && p != 0 && p != bestEffort {
		return true
	}
	var mode int32
	if _, _, errno := unix.RawSyscall6(unix.SYS_GET_MEMPOLICY, uintptr(unsafe.Pointer(&mode)), 0, 0, 0, 0, 0); errno == 0 && mode != 0 {
		return true
	}
	for option, usual := range map[int]int{unix.PR_GET_TIMERSLACK: timerSlack, unix.PR_GET_THP_DISABLE: 0, unix.PR_GET_SECUREBITS: 0} {
		if v, err := unix.PrctlRetInt(option, 0, 0, 0, 0); err == nil && v != usual {
			return true
		}
	}
	if own, err := selfCaps(); err == nil && own[0].Inheritable|own[1].Inheritable != 0 {
		return true
	}
	if b, err := rawfile.Read(oomFile); err == nil && strings.TrimSpace(string(b)) != "0" {
		return true
	}
	foreign := func(gid int) bool { return gid != 0 } // a log-in of root's gives 0
	if groups, err := unix.Getgroups(); err == nil && slices.ContainsFunc(append(groups, unix.Getegid()), foreign) {
		return true
	}
	return !onEveryCPU()
})

// onEveryCPU tells whether this process may run on all CPUs; not where a control group
// keeps it from some either.
func onEveryCPU() bool {
	var set unix.CPUSet
	b, err := rawfile.Read("/sys/devices/system/cpu/online")
	if err != nil || unix.SchedGetaffinity(0, &set) != nil {
		return false
	}
	all, err := cgroup.ParseCPUs(string(b))
	return err == nil && set.Count() == len(all)
}

// leaveGroups are the steps by which the process is in no group but the root user's, in
// a machine whose ids are its parent's.
func leaveGroups() []stage0.Step {
	const words = "leave the caller's groups"
	return []stage0.Step{
		{Words: words, Flags: stage0.MayFail, Nr: unix.SYS_SETGROUPS, Args: []any{0, 0}}, // closed where a user has one id
		{Words: words, Flags: stage0.MayFail, Nr: unix.SYS_SETRESGID, Args: []any{0, 0, 0}},
	}
}
