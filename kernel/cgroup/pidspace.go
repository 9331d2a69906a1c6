package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
)

// Init is the first process of a PID namespace. Where a user has no control group
// to make others in, it stands for the machine's processes: none of them gets out
// of the namespace, and with its init the kernel ends them all (pid_namespaces(7)).
// A nil Init has none: it is not born yet, or not known to whoever asks.
type Init struct {
	Pid   int
	Start uint64 // with Pid it names the process for ever
}

// pids lists the processes in the namespace and in those below it.
func (i *Init) pids() ([]int, error) {
	mine, err := i.namespace()
	if mine == 0 {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var all []int
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil && inSpace(pid, mine) {
			all = append(all, pid)
		}
	}
	return all, nil
}

// has tells whether a process is in the namespace or below.
func (i *Init) has(pid int) bool {
	mine, err := i.namespace()
	return err == nil && mine != 0 && inSpace(pid, mine)
}

// namespace is the number of the PID namespace; 0 when its init has ended.
func (i *Init) namespace() (uint64, error) {
	if i == nil || startOf(i.Pid) != i.Start {
		return 0, nil
	}
	var st unix.Stat_t
	err := unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", i.Pid), &st)
	if err == unix.ENOENT || err == unix.ESRCH {
		return 0, nil // it is ending
	}
	return st.Ino, err
}

// inSpace tells whether a process is in that PID namespace or one below it. Of one
// that the caller may not look into the answer is no: it is another user's.
func inSpace(pid int, namespace uint64) bool {
	fd, err := rawfile.Open(fmt.Sprintf("/proc/%d/ns/pid", pid), unix.O_RDONLY, 0)
	for err == nil {
		var st unix.Stat_t
		if e := unix.Fstat(fd, &st); e != nil || st.Ino == namespace {
			unix.Close(fd)
			return e == nil
		}
		var up int
		up, err = unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		unix.Close(fd)
		fd = up
	}
	return false
}

// kill ends the namespace; it does not wait.
func (i *Init) kill() error {
	fd, err := i.open()
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w", i.Pid, err)
	}
	return nil
}

// open returns a pidfd of the init; -1 when it has ended.
func (i *Init) open() (int, error) {
	if i == nil {
		return -1, nil
	}
	fd, err := unix.PidfdOpen(i.Pid, 0)
	switch {
	case err == unix.ESRCH || err == unix.EINVAL || err == unix.ENOENT:
		return -1, nil
	case err != nil:
		return -1, fmt.Errorf("open process %d: %w", i.Pid, err)
	case startOf(i.Pid) != i.Start:
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// end kills the namespace and waits until no process of it is left: an init's
// pidfd is readable once all others are gone (zap_pid_ns_processes).
func (i *Init) end(ctx context.Context) error {
	fd, err := i.open()
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w", i.Pid, err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 100)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", i.Pid, err)
		case n > 0:
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("process %d has been killed and is not gone yet: %w", i.Pid, ctx.Err())
		}
	}
}

// stats adds up what the living processes tell of themselves: what has ended is
// counted by nobody.
func (i *Init) stats() (*Stats, error) {
	pids, err := i.pids()
	if err != nil {
		return nil, err
	}
	out := &Stats{}
	var rss uint64
	for _, pid := range pids {
		n, pages := tasksAndPages(pid)
		out.Pids += n
		rss += pages * uint64(os.Getpagesize())
		out.CPUSeconds += cpuSeconds(pid)
	}
	out.Memory = &rss
	return out, nil
}

// cpuSeconds is what a process has used, and those that it has waited for.
func cpuSeconds(pid int) (s float64) {
	const perSecond = 100 // USER_HZ, on every architecture that msh knows
	for n := 11; n < 15; n++ {
		s += float64(statField(pid, n)) / perSecond
	}
	return s
}

func startOf(pid int) uint64 { return statField(pid, 19) }

// statField is a field of /proc/PID/stat, counted from 0 behind the name, which may
// hold anything; 0 where there is no such process.
func statField(pid, n int) uint64 {
	b, err := rawfile.Read(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if n >= len(f) {
		return 0
	}
	v, _ := strconv.ParseUint(f[n], 10, 64)
	return v
}
