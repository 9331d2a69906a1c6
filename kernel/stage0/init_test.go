package stage0

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// becomeInit appends what ends a machine's first list: every signal is blocked,
// and stage0 executed once more.
func becomeInit(p *Program, m target) {
	blockAll(p)
	p.Call("say so", 0, unix.SYS_WRITE, FD("out"), "init\n", 5)
	if m.qemu != "" {
		p.Exec([]string{m.qemu, "-0", "init", m.elf}, nil)
	} else {
		p.Call("become init", 0, unix.SYS_EXECVEAT, FD("stage0"), "", []string{"init"}, []string{}, unix.AT_EMPTY_PATH)
	}
}

func blockAll(p *Program) {
	p.Call("block every signal", 0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, bytes.Repeat([]byte{0xff}, 8), 0, 8)
}

// onChild sets what becomes of SIGCHLD: 0, SIG_DFL, or 1, SIG_IGN.
func onChild(p *Program, handler byte) {
	action := make([]byte, 32) // struct sigaction as the kernel has it
	binary.NativeEndian.PutUint64(action, uint64(handler))
	p.Call("handle SIGCHLD", 0, unix.SYS_RT_SIGACTION, int(unix.SIGCHLD), action, 0, 8)
}

func stage0File(t *testing.T) *os.File {
	t.Helper()
	image, err := imageOf()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(uintptr(image), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "stage0")
	t.Cleanup(func() { f.Close() })
	return f
}

// startInit starts a machine of two: an init as PID 1, and another process,
// that performs what life appends.
func startInit(t *testing.T, m target, files map[FD]*os.File, life func(p *Program)) *process {
	p := New()
	onChild(p, 1) // before there is one: a zombie from before would stay for ever
	p.Fork("fork", uint64(unix.SIGCHLD), 0, func(p *Program, _ Ref) { becomeInit(p, m) })
	life(p)
	files["stage0"] = stage0File(t)
	return start(t, m, p, files, unix.CLONE_NEWPID)
}

func TestInit(t *testing.T) {
	eachTarget(t, func(t *testing.T, m target) {
		signals := []unix.Signal{unix.SIGUSR1, unix.SIGHUP}
		if m.qemu == "" {
			signals = append(signals, 34, 47, 64) // qemu moves these about
		}
		signals = append(signals, unix.SIGTERM)
		mask := make([]byte, 8)
		for _, s := range signals {
			mask[(s-1)/8] |= 1 << ((s - 1) % 8)
		}

		outR, outW := pipe(t)
		gateR, gateW := pipe(t)
		say := func(p *Program, line string) {
			p.Call("say "+line, 0, unix.SYS_WRITE, FD("out"), line+"\n", len(line)+1)
		}
		var got []Ref
		r := startInit(t, m, map[FD]*os.File{"out": outW, "gate": gateR}, func(p *Program) {
			blockAll(p)
			onChild(p, 0)
			p.Fork("fork one that nobody waits for", uint64(unix.SIGCHLD), 0, func(p *Program, _ Ref) {
				say(p, "ready")
				for range signals {
					got = append(got, p.Call("wait for a signal", 0, unix.SYS_RT_SIGTIMEDWAIT, mask, 0, 0, 8))
					say(p, "got it")
				}
				p.Call("wait for the test", 0, unix.SYS_READ, FD("gate"), Buffer(1), 1)
				say(p, "bye")
				p.Exit(0)
			})
			p.Exit(0) // a zombie, until its parent ends and init has to reap it
		})
		wantLines(t, outR, "init", "ready")
		for i, s := range signals {
			r.signal(s)
			wantLines(t, outR, "got it")
			if got := Result(r.blob, got[i]); got != int64(s) {
				t.Errorf("signal %d came as %d", s, got)
			}
		}
		asleepIn(t, r.cmd.Process.Pid, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP) // as qemu has it
		gateW.WriteString("x")
		wantLines(t, outR, "bye")
		r.exits(143)
	})
}

// TestInitEnds sends each signal that asks init to end.
func TestInitEnds(t *testing.T) {
	eachTarget(t, func(t *testing.T, m target) {
		for _, s := range []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPWR} {
			t.Run(unix.SignalName(s), func(t *testing.T) {
				outR, outW := pipe(t)
				r := startInit(t, m, map[FD]*os.File{"out": outW}, func(p *Program) {
					p.Exec([]string{"/bin/sleep", "1000"}, nil)
				})
				wantLines(t, outR, "init")
				r.signal(s)
				r.exits(128 + int(s))
			})
		}
		t.Run("alone", func(t *testing.T) {
			outR, outW := pipe(t)
			r := startInit(t, m, map[FD]*os.File{"out": outW}, func(p *Program) { p.Exit(0) })
			wantLines(t, outR, "init")
			r.signal(unix.SIGTERM)
			r.exits(143)
		})
	})
}

// TestBecome has a process become an init as it is. Nothing of its list is left to it:
// neither the memory, nor a descriptor.
func TestBecome(t *testing.T) {
	eachTarget(t, func(t *testing.T, m target) {
		outR, outW := pipe(t)
		p := New()
		onChild(p, 1)
		blockAll(p)
		p.Call("say so", 0, unix.SYS_WRITE, FD("out"), "init\n", 5)
		p.Become("be init", unix.SYS_GETPID)
		r := start(t, m, p, map[FD]*os.File{"out": outW}, unix.CLONE_NEWPID)
		wantLines(t, outR, "init")
		outW.Close()
		if n, err := outR.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("read %d bytes, %v, want io.EOF: init has the pipe", n, err)
		}
		if m.qemu == "" {
			proc := "/proc/" + strconv.Itoa(r.cmd.Process.Pid)
			if b, err := os.ReadFile(proc + "/cmdline"); err != nil || string(b) != "init\x00" {
				t.Errorf("cmdline %q, %v, want init", b, err)
			}
			asleepIn(t, r.cmd.Process.Pid, unix.SYS_RT_SIGTIMEDWAIT)
			if b, err := os.ReadFile(proc + "/maps"); err != nil || !bytes.Contains(b, []byte(ImageName)) || bytes.Contains(b, []byte("list")) {
				t.Errorf("maps, %v, want no list:\n%s", err, b)
			}
		}
		asleepIn(t, r.cmd.Process.Pid, unix.SYS_RT_SIGTIMEDWAIT)
		r.signal(unix.SIGTERM)
		r.exits(143)
	})
}

// TestInitElsewhere runs init as somebody who is not PID 1: a machine that
// shares the host's processes. So that a fault harms nobody, the host here is
// a PID namespace too. In it are, all from one list:
//
//	PID 1    waits for init's end, then for the test
//	init     gets TERM from outside
//	witness  has blocked every signal: one sent to it would stay pending
func TestInitElsewhere(t *testing.T) {
	eachTarget(t, func(t *testing.T, m target) {
		outR, outW := pipe(t)
		gateR, gateW := pipe(t)
		p := New()
		// /proc is the real host's, and so is the number that self stands for.
		self := func(p *Program) Ref {
			return p.Call("who am I", 0, unix.SYS_READLINKAT, AtCwd, "/proc/self", Buffer(16), 15)
		}
		var wait, witness, init Ref
		p.Fork("fork init", uint64(unix.SIGCHLD), 0, func(p *Program, init Ref) {
			p.Fork("fork the witness", uint64(unix.SIGCHLD), 0, func(p *Program, _ Ref) {
				wait = p.Call("wait for init", 0, unix.SYS_WAITID, unix.P_PID, init, Buffer(128), unix.WEXITED, 0)
				p.Call("say so", 0, unix.SYS_WRITE, FD("out"), "ended\n", 6)
				p.Call("wait for the test", 0, unix.SYS_READ, FD("gate"), Buffer(1), 1)
				p.Exit(0)
			})
			witness = self(p)
			blockAll(p)
			p.Call("say so", 0, unix.SYS_WRITE, FD("out"), "witness\n", 8)
			p.Exec([]string{"/bin/sleep", "1000"}, nil)
		})
		init = self(p)
		becomeInit(p, m)
		r := start(t, m, p, map[FD]*os.File{"out": outW, "gate": gateR, "stage0": stage0File(t)}, unix.CLONE_NEWPID)
		wantLines(t, outR, "init", "witness")

		pid := func(step Ref) int {
			b := r.blob[dataOffset(r.blob, step, 2):][:Result(r.blob, step)]
			n, err := strconv.Atoi(string(b))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		asleepIn(t, pid(init), unix.SYS_PPOLL)
		if err := unix.Kill(pid(init), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		wantLines(t, outR, "ended")
		info := r.blob[dataOffset(r.blob, wait, 2):]
		code, status := binary.NativeEndian.Uint32(info[8:]), binary.NativeEndian.Uint32(info[24:])
		if code != 2 || unix.Signal(status) != unix.SIGTERM { // CLD_KILLED
			t.Errorf("init ended with si_code %d, si_status %d, want killed by TERM", code, status)
		}
		if got := field(t, pid(witness), "ShdPnd"); strings.Trim(got, "0") != "" {
			t.Errorf("the witness was sent signals: mask %s", got)
		}
		gateW.Close()
		r.exits(0)
	})
}

// asleepIn waits until the process is in one of these system calls.
func asleepIn(t *testing.T, pid int, calls ...int) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		call, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/syscall")
		if err != nil {
			t.Fatal(err)
		}
		nr, _, _ := strings.Cut(string(call), " ")
		if n, err := strconv.Atoi(nr); err == nil && slices.Contains(calls, n) {
			return
		}
	}
	t.Fatalf("process %d does not sleep", pid)
}
