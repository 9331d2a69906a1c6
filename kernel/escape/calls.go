package escape

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These reach for parts of the kernel that no machine has for itself. Each call has
// an argument that is refused after the question of who asks.

func loadModule(*Target) error {
	return reached(call(unix.SYS_INIT_MODULE, 0, 0, 0))
}

func loadKernel(*Target) error {
	const noSuchFlags = 0xff00
	return reached(call(unix.SYS_KEXEC_LOAD, 0, 0, 0, noSuchFlags))
}

func loadProgram(*Target) error {
	attr := struct{ kind, key, value, entries uint32 }{unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno == 0 {
		unix.Close(int(fd))
		return nil
	}
	return reached(errno)
}

// watchCPU counts what everybody does on a CPU.
func watchCPU(*Target) error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CONTEXT_SWITCHES, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	if err == unix.ENOSYS {
		return absent("no perf events")
	}
	return err
}

// holdFaults can hold the kernel inside a copy from user memory, for as long as it
// takes to win a race.
func holdFaults(*Target) error {
	r, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno == 0 {
		unix.Close(int(r))
		return nil
	}
	return reached(errno)
}

func ring(*Target) error { return reached(call(unix.SYS_IO_URING_SETUP, 0, 0)) }

func setClock(*Target) error {
	const adjTick = 0x4000
	t := unix.Timex{Modes: adjTick, Tick: 1} // which no clock may have
	_, err := unix.Adjtimex(&t)
	return reached(err)
}

func rawPorts(*Target) error {
	if runtime.GOARCH != "amd64" {
		return absent("no ports")
	}
	const delay = 0x80 // the port of nothing
	return reached(call(sysIoperm, delay, 1, 1))
}

const sysIoperm = 173 // of amd64

// memoryOfAll reads the kernel's memory, or the computer's.
func memoryOfAll(*Target) error {
	return anyOf(
		func() error { return readable("/proc/kcore") },
		func() error { return device(unix.S_IFCHR, unix.Mkdev(1, 1)) },
	)
}

func readable(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return absent("no %s", path)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	var b [4]byte
	if n, err := unix.Read(fd, b[:]); n < 1 {
		return fmt.Errorf("read %s: %d bytes, %v", path, n, err)
	}
	return nil
}

// device makes a node and opens it, to read.
func device(kind uint32, number uint64) error {
	for _, at := range []string{"/dev", "/dev/shm", "/tmp", "/run"} {
		node := at + "/escape-" + strconv.Itoa(os.Getpid())
		if err := unix.Mknod(node, kind|0o600, int(number)); err != nil {
			if at == "/run" {
				return fmt.Errorf("mknod: %w", err)
			}
			continue
		}
		fd, err := unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		unix.Unlink(node)
		if err == nil {
			unix.Close(fd)
			return nil
		}
		if err == unix.ENXIO {
			return absent("no device %d:%d", unix.Major(number), unix.Minor(number))
		}
		if at == "/run" {
			return fmt.Errorf("open the node: %w", err)
		}
	}
	return errors.New("no place for a node")
}

// disk opens the host's disk by a node of its own.
func disk(t *Target) error {
	if t.Disk == 0 {
		return absent("no disk is known here")
	}
	return device(unix.S_IFBLK, t.Disk)
}

// console opens the console, and with it the host's screen.
func console(*Target) error { return device(unix.S_IFCHR, unix.Mkdev(5, 1)) }

// gain executes a file of root's with the set-user-ID bit, as somebody else.
func gain(*Target) error {
	var held error = errors.New("no place for a program")
	for _, at := range []string{"/tmp", "/run", "/dev/shm"} {
		file := at + "/escape-id"
		b, err := os.ReadFile("/usr/bin/id")
		if err != nil {
			return absent("no id(1)")
		}
		if err := os.WriteFile(file, b, 0o755); err != nil {
			continue
		}
		defer os.Remove(file)
		if err := os.Chmod(file, 0o755|os.ModeSetuid); err != nil {
			held = err
			continue
		}
		cmd := exec.Command(file, "-u")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000, NoSetGroups: true}}
		cmd.Dir = "/"
		out, err := cmd.Output()
		if err == nil && string(out) == "0\n" {
			return nil
		}
		held = fmt.Errorf("it is user %.20q: %v", out, err)
	}
	return held
}

// newRights makes a user namespace, in which the process has every capability, and
// with them more of the kernel within its reach.
func newRights(*Target) error {
	cmd := exec.Command("/proc/self/exe", "attack-true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET}
	err := cmd.Run()
	if errors.Is(err, unix.ENOSPC) {
		return absent("no more user namespaces: %v", err)
	}
	return err
}

// mapAgain writes a map of ids where there is one: that of its own process, with
// the host's root in it.
func mapAgain(*Target) error {
	for _, text := range []string{"0 0 4294967295", "0 0 1"} {
		fd, err := unix.Open("/proc/self/uid_map", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, []byte(text))
		unix.Close(fd)
		if err == nil {
			return nil
		}
		if text == "0 0 1" {
			return fmt.Errorf("write uid_map: %w", err)
		}
	}
	return nil
}

// foreignGroup becomes a member of a group that is none of a machine's of 65536 ids.
func foreignGroup(*Target) error {
	if err := unix.Setgroups([]int{70000}); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	return nil
}

// realTime takes a CPU from everybody.
func realTime(*Target) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	err := unix.SchedSetAttr(0, &attr, 0)
	if err == nil {
		unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0)
	}
	return err
}

// kernelLog asks for the kernel's messages, with nowhere to put them.
func kernelLog(*Target) error {
	const readAll = 3
	return reached(call(unix.SYS_SYSLOG, readAll, 0, 0))
}
