package stage0

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain closes to the tests' processes what the tests were started with.
func TestMain(m *testing.M) {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		panic(err)
	}
	m.Run()
}

// limit is when a test gives up on a process that should have ended or spoken.
const limit = 30 * time.Second

// A target is a stage0 and what runs it: this kernel, or qemu in user mode.
type target struct {
	arch string
	nr   map[int]int // its number for a system call of this architecture; nil: the same
	qemu string      // path; "" for this kernel
	elf  string      // path, for qemu
}

// noSuchCall is the number of no system call.
const noSuchCall = 0xffff

// arm64 has the system calls that the tests make.
var arm64 = map[int]int{
	unix.SYS_CLONE:           220,
	unix.SYS_CLOSE:           57,
	unix.SYS_COPY_FILE_RANGE: 285,
	unix.SYS_DUP3:            24,
	unix.SYS_EXECVE:          221,
	unix.SYS_EXIT_GROUP:      94,
	unix.SYS_GETPID:          172,
	unix.SYS_KILL:            129,
	unix.SYS_LSEEK:           62,
	unix.SYS_OPENAT:          56,
	unix.SYS_READ:            63,
	unix.SYS_READLINKAT:      78,
	unix.SYS_RT_SIGACTION:    134,
	unix.SYS_RT_SIGPROCMASK:  135,
	unix.SYS_RT_SIGTIMEDWAIT: 137,
	unix.SYS_WAITID:          95,
	unix.SYS_WRITE:           64,
	noSuchCall:               noSuchCall,
}

// eachTarget runs f for this architecture, and for arm64 under qemu.
func eachTarget(t *testing.T, f func(t *testing.T, m target)) {
	t.Run(runtime.GOARCH, func(t *testing.T) { f(t, native(t)) })
	if runtime.GOARCH == "arm64" {
		return
	}
	t.Run("arm64", func(t *testing.T) {
		qemu, err := exec.LookPath("qemu-aarch64")
		if err != nil {
			lacks(t, "qemu-user: "+err.Error())
		}
		image, err := os.ReadFile("stage0_arm64.elf")
		if err != nil {
			t.Fatal(err)
		}
		elf := filepath.Join(t.TempDir(), "stage0") // for qemu it must be executable
		if err := os.WriteFile(elf, image, 0o755); err != nil {
			t.Fatal(err)
		}
		f(t, target{arch: "arm64", nr: arm64, qemu: qemu, elf: elf})
	})
}

func native(t *testing.T) target { return target{arch: runtime.GOARCH} }

// lacks skips a test; in CI, where all is installed, it fails.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI lacks %s", what)
	}
	t.Skipf("needs %s", what)
}

// A process performs a list.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	blob []byte // the list, shared with it
}

// start has m perform p, with the descriptors that p names.
func start(t *testing.T, m target, p *Program, files map[FD]*os.File, cloneFlags ...uintptr) *process {
	t.Helper()
	list, err := unix.MemfdCreate("list", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	extra := []*os.File{os.NewFile(uintptr(list), "list")}
	defer extra[0].Close()
	number := map[FD]int{}
	for i, name := range p.FDs() {
		number[name] = BlobFD + 1 + i
		extra = append(extra, files[name])
	}
	if m.nr != nil {
		for i, s := range p.Steps() {
			nr, ok := m.nr[s.Nr]
			if !ok {
				t.Fatalf("%s: the table has no number for system call %d", s.Words, s.Nr)
			}
			p.Steps()[i].Nr = nr
		}
	}
	b, err := p.Assemble(number)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeAll(list, b); err != nil {
		t.Fatal(err)
	}
	shared, err := unix.Mmap(list, 0, len(b), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(shared) })

	ctx, cancel := context.WithTimeout(context.Background(), limit)
	cmd := exec.CommandContext(ctx, m.qemu, "-0", Name, m.elf)
	if m.qemu == "" {
		image, err := imageOf()
		if err != nil {
			t.Fatal(err)
		}
		cmd = exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", image))
		cmd.Args = []string{Name}
	}
	cmd.Env = []string{}
	cmd.ExtraFiles = extra
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	for _, f := range cloneFlags {
		cmd.SysProcAttr.Cloneflags |= f
	}
	if cmd.SysProcAttr.Cloneflags != 0 && os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	err = cmd.Start()
	if errors.Is(err, unix.EPERM) && cmd.SysProcAttr.Cloneflags != 0 {
		cancel()
		lacks(t, "root or user namespaces: "+err.Error())
	}
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		cancel()
	})
	return &process{t, cmd, shared}
}

// imageOf returns stage0's descriptor, at a number that ExtraFiles leave alone:
// they are put in place before execve(2) looks it up.
var imageOf = sync.OnceValues(func() (int, error) {
	fd, err := Executable()
	if err != nil {
		return -1, err
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 200)
})

// dataOffset is where in the list the data is that an argument points to.
func dataOffset(list []byte, step Ref, arg int) int {
	return int(binary.NativeEndian.Uint64(list[headerSize+stepSize*int(step)+8+8*arg:])) - Base
}

// wait returns the exit code, or -1 after a signal.
func (r *process) wait() int {
	r.cmd.Wait()
	return r.cmd.ProcessState.ExitCode()
}

func (r *process) exits(want int) {
	r.t.Helper()
	if got := r.wait(); got != want {
		step, errno, failed := Failed(r.blob)
		r.t.Fatalf("%v, want exit code %d; failed: %v, at step %d with %v", r.cmd.ProcessState, want, failed, step, errno)
	}
}

func (r *process) signal(s unix.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// wantLines reads as many lines as it wants, in any order.
func wantLines(t *testing.T, r *os.File, want ...string) {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(limit))
	var got []string
	var line []byte
	for b := make([]byte, 1); len(got) < len(want); {
		if _, err := r.Read(b); err != nil {
			t.Fatalf("read %q and %q, want %q: %v", got, line, want, err)
		}
		if b[0] == '\n' {
			got, line = append(got, string(line)), nil
		} else {
			line = append(line, b[0])
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("read %q, want %q", got, want)
	}
}

// field returns what /proc/PID/status says behind name.
func field(t *testing.T, pid int, name string) string {
	t.Helper()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if v, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return string(bytes.TrimSpace(v))
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, name)
	return ""
}
