package stage0

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestRebuild holds the ELFs in the repository to their sources.
func TestRebuild(t *testing.T) {
	prefix := map[string]string{"amd64": "x86_64-linux-gnu-", "arm64": "aarch64-linux-gnu-"}
	if _, ok := prefix[runtime.GOARCH]; !ok {
		t.Skipf("build.sh knows no cross assembler for %s", runtime.GOARCH)
	}
	prefix[runtime.GOARCH] = ""

	dir := t.TempDir()
	log, _ := exec.Command("sh", "build.sh", dir).CombinedOutput() // judged by the files it leaves
	os.Stat("build.sh")                                            // so that go test's cache sees it change
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			os.Stat("stage0_" + arch + ".S")
			for _, tool := range []string{"as", "ld", "objcopy"} {
				if _, err := exec.LookPath(prefix[arch] + tool); err != nil {
					lacks(t, "binutils for "+arch+": "+err.Error())
				}
			}
			got, err := os.ReadFile(filepath.Join(dir, "stage0_"+arch+".elf"))
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			want, err := os.ReadFile("stage0_" + arch + ".elf")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("stage0_%s.elf is not what its source gives: go generate", arch)
			}
			if len(want) >= 1024 {
				t.Errorf("%d bytes, want less than 1 KiB", len(want))
			}
			if arch == runtime.GOARCH && !bytes.Equal(Image(), want) {
				t.Error("Image is another file")
			}
		})
	}
}

func TestSealedFile(t *testing.T) {
	fd, err := SealedFile("test", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err != unix.EPERM {
		t.Errorf("write: %v, want EPERM", err)
	}
	if err := unix.Ftruncate(fd, 0); err != unix.EPERM {
		t.Errorf("truncate: %v, want EPERM", err)
	}
	if _, err := unix.Mmap(fd, 0, 7, unix.PROT_WRITE, unix.MAP_SHARED); err != unix.EPERM {
		t.Errorf("map for writing: %v, want EPERM", err)
	}
	got := make([]byte, 8)
	if n, err := unix.Pread(fd, got, 0); err != nil || string(got[:n]) != "content" {
		t.Errorf("read %q, %v", got[:n], err)
	}
}

func TestCalls(t *testing.T) {
	eachTarget(t, func(t *testing.T, m target) {
		dir := t.TempDir()
		out, copied := filepath.Join(dir, "out"), filepath.Join(dir, "copy")
		const create = unix.O_CREAT | unix.O_EXCL | unix.O_RDWR

		p := New()
		missing := func(flags Flags) Ref {
			return p.Call("open what is not there", flags, unix.SYS_OPENAT, AtCwd, dir+"/none", unix.O_RDONLY, 0)
		}
		fd := p.Call("create out", 0, unix.SYS_OPENAT, AtCwd, out, create, 0o600)
		n := p.Call("write five bytes", 0, unix.SYS_WRITE, fd, "hello", 5)
		may := missing(MayFail)
		skip := missing(SkipNext)
		over := p.Call("pass this over", 0, unix.SYS_WRITE, fd, "BAD", 3)
		p.Call("succeed", SkipNext, unix.SYS_LSEEK, fd, 0, unix.SEEK_END)
		p.Call("perform this", 0, unix.SYS_WRITE, fd, []byte(" world"), 6)
		p.Call("write as much as before", 0, unix.SYS_WRITE, fd, "again!!", n)
		// Every argument is the result of a step.
		zero := p.Call("rewind", 0, unix.SYS_LSEEK, fd, 0, unix.SEEK_SET)
		to := p.Call("create copy", 0, unix.SYS_OPENAT, AtCwd, copied, create, 0o600)
		p.Call("copy as much", 0, unix.SYS_COPY_FILE_RANGE, fd, zero, to, zero, n, zero)
		p.Exit(7)

		r := start(t, m, p, nil)
		r.exits(7)
		if step, errno, failed := Failed(r.blob); failed {
			t.Fatalf("failed at %q: %v", p.Steps()[step].Words, errno)
		}
		wantFile(t, out, "hello worldagain")
		wantFile(t, copied, "hello")
		for _, w := range []struct {
			name string
			step Ref
			want int64
		}{
			{"write", n, 5}, {"MayFail", may, -int64(unix.ENOENT)}, {"SkipNext", skip, -int64(unix.ENOENT)}, {"skipped", over, 0}, {"rewind", zero, 0},
		} {
			if got := Result(r.blob, w.step); got != w.want {
				t.Errorf("result of %s: %d, want %d", w.name, got, w.want)
			}
		}
	})
}

func TestFailure(t *testing.T) {
	tests := []struct {
		name  string
		call  func(p *Program)
		errno unix.Errno // 0: end of file
		ok    bool       // it goes on
	}{
		{"open", func(p *Program) { p.Call("open", 0, unix.SYS_OPENAT, AtCwd, "/none/none", 0, 0) }, unix.ENOENT, false},
		{"exec", func(p *Program) { p.Exec([]string{"/dev/null"}, nil) }, unix.EACCES, false},
		{"call", func(p *Program) { p.Call("no such call", 0, noSuchCall) }, unix.ENOSYS, false},
		// The two flags make no sense together without CLONE_VM: clone(2).
		{"fork", func(p *Program) {
			p.Fork("clone", unix.CLONE_THREAD|unix.CLONE_SIGHAND, 0, func(p *Program, _ Ref) { p.Exit(1) })
		}, unix.EINVAL, false},
		{"zero", func(p *Program) { p.Call("read", 0, unix.SYS_READ, FD("eof"), Buffer(1), 1) }, 0, true},
		{"Positive", func(p *Program) { p.Call("read", Positive, unix.SYS_READ, FD("eof"), Buffer(1), 1) }, 0, false},
		{"Positive with a result", func(p *Program) { p.Call("write", Positive, unix.SYS_WRITE, FD("w"), "x", 1) }, 0, true},
		{"Positive MayFail", func(p *Program) { p.Call("read", Positive|MayFail, unix.SYS_READ, FD("eof"), Buffer(1), 1) }, 0, true},
		{"Positive SkipNext", func(p *Program) {
			p.Call("read", Positive|SkipNext, unix.SYS_READ, FD("eof"), Buffer(1), 1)
			p.Exit(1)
		}, 0, true},
	}
	eachTarget(t, func(t *testing.T, m target) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				eof, w := pipe(t)
				w.Close()
				_, w = pipe(t)
				path := filepath.Join(t.TempDir(), "behind")

				p := New()
				p.Call("succeed", 0, unix.SYS_GETPID)
				at := p.Len()
				tt.call(p)
				p.Call("go on", 0, unix.SYS_OPENAT, AtCwd, path, unix.O_CREAT, 0o600)
				p.Exit(0)

				r := start(t, m, p, map[FD]*os.File{"eof": eof, "w": w})
				code := r.wait()
				step, errno, failed := Failed(r.blob)
				_, err := os.Stat(path)
				if tt.ok {
					if failed || code != 0 || err != nil {
						t.Errorf("failed %v at step %d with %v, exit code %d, step behind: %v", failed, step, errno, code, err)
					}
					return
				}
				if !failed || int(step) != at || errno != tt.errno {
					t.Errorf("failed %v at step %d with %d, want step %d with %d", failed, step, int(errno), at, int(tt.errno))
				}
				if code != 126 {
					t.Errorf("exit code %d, want 126", code)
				}
				if err == nil {
					t.Error("the step behind was performed")
				}
			})
		}
	})
}

func TestFork(t *testing.T) {
	eachTarget(t, func(t *testing.T, m target) {
		// Each process writes to the same list: who is first differs.
		for range 20 {
			dir := t.TempDir()
			p := New()
			var wait Ref
			child := p.Fork("fork", uint64(unix.SIGCHLD), 0, func(p *Program, child Ref) {
				wait = p.Call("wait for it", 0, unix.SYS_WAITID, unix.P_PID, child, Buffer(128), unix.WEXITED, 0)
				p.Call("old", 0, unix.SYS_OPENAT, AtCwd, dir+"/old", unix.O_CREAT, 0o600)
				p.Exit(5)
			})
			pid := p.Call("who am I", 0, unix.SYS_GETPID)
			p.Call("new", 0, unix.SYS_OPENAT, AtCwd, dir+"/new", unix.O_CREAT|unix.O_EXCL, 0o600)
			p.Exit(3)

			r := start(t, m, p, nil)
			code := r.wait()
			if step, errno, failed := Failed(r.blob); failed || code != 5 {
				t.Fatalf("failed %v at step %d with %v, exit code %d, want 5", failed, step, errno, code)
			}
			info := r.blob[dataOffset(r.blob, wait, 2):]
			waited, status := int64(binary.NativeEndian.Uint32(info[16:])), binary.NativeEndian.Uint32(info[24:])
			if got, self := Result(r.blob, child), Result(r.blob, pid); got <= 0 || got != self || got != waited {
				t.Fatalf("fork returned %d, in process %d, and %d was waited for", got, self, waited)
			}
			if status != 3 {
				t.Errorf("the new process's exit code: %d, want 3", status)
			}
			wantFile(t, dir+"/old", "")
			wantFile(t, dir+"/new", "")
		}
	})
}

// The steps that are not needed are passed over, and keep their numbers.
func TestSpare(t *testing.T) {
	eachTarget(t, func(t *testing.T, m target) {
		for _, passed := range []bool{false, true} {
			out := filepath.Join(t.TempDir(), "out")
			p := New()
			fd := p.Call("create", 0, unix.SYS_OPENAT, AtCwd, out, unix.O_CREAT|unix.O_WRONLY, 0o600)
			write := Step{Words: "write", Nr: unix.SYS_WRITE, Args: []any{fd, "spare ", 6}}
			p.Spare(Step{Words: "return 0", Nr: unix.SYS_RT_SIGACTION, Args: []any{Signals(1<<(unix.SIGINT-1) | 1<<(unix.SIGUSR1-1)), Zeros, 0, 8}}, write, write)
			n := p.Call("write on", 0, unix.SYS_WRITE, fd, "needed", 6)
			p.Exit(3)
			text := "spare spare needed"
			if passed {
				p.PassOver()
				text = "needed"
			}
			r := start(t, m, p, nil)
			r.exits(3)
			wantFile(t, out, text)
			if got := Result(r.blob, n); n != 4 || got != 6 {
				t.Errorf("step %d returned %d, want step 4 to return 6", n, got)
			}
		}
	})
}

// A step for each bit of a word is performed for those that are set, and up to the first
// that fails.
func TestBits(t *testing.T) {
	eachTarget(t, func(t *testing.T, m target) {
		out := filepath.Join(t.TempDir(), "out")
		p := New()
		fd := p.Call("create", 0, unix.SYS_OPENAT, AtCwd, out, unix.O_CREAT|unix.O_WRONLY, 0o600)
		last := p.Call("copy", 0, unix.SYS_DUP3, fd, Bits(1<<20|1<<33|1<<63), 0)
		for _, n := range []int{20, 33, 63} {
			p.Call("write", 0, unix.SYS_WRITE, n, "x", 1)
		}
		p.Call("write elsewhere", MayFail, unix.SYS_WRITE, 21, "y", 1)
		ignore := append(binary.NativeEndian.AppendUint64(nil, 1), make([]byte, 24)...)
		p.Call("ignore", 0, unix.SYS_RT_SIGACTION, Signals(1<<(unix.SIGHUP-1)|1<<(unix.SIGUSR1-1)|1<<(40-1)|1<<63), ignore, 0, 8)
		pid := p.Call("who am I", 0, unix.SYS_GETPID)
		for _, sig := range []int{int(unix.SIGHUP), int(unix.SIGUSR1), 40} {
			p.Call("kill", 0, unix.SYS_KILL, pid, sig)
		}
		bad := p.Call("ignore what cannot be ignored", 0, unix.SYS_RT_SIGACTION, Signals(1<<(unix.SIGHUP-1)|1<<(unix.SIGKILL-1)), ignore, 0, 8)
		p.Exit(3)
		r := start(t, m, p, nil)
		r.exits(126)
		wantFile(t, out, "xxx")
		if got := Result(r.blob, last); got != 63 {
			t.Errorf("the last copy is %d, want 63", got)
		}
		if step, errno, ok := Failed(r.blob); !ok || step != bad || errno != unix.EINVAL {
			t.Errorf("it failed at step %d, %v, %v; want %d, EINVAL", step, errno, ok, bad)
		}
	})
}

// TestForkPidfd has stage0 start a process as msh starts one in a living PID namespace.
func TestForkPidfd(t *testing.T) {
	m := native(t)
	p := New()
	child := p.Fork("fork", uint64(unix.SIGCHLD|unix.CLONE_PIDFD), Buffer(8), func(p *Program, child Ref) {
		p.Call("wait for it", 0, unix.SYS_WAITID, unix.P_PID, child, 0, unix.WEXITED, 0)
		p.Exit(0)
	})
	p.Exit(0)
	r := start(t, m, p, nil)
	r.exits(0)
	if fd := binary.NativeEndian.Uint32(r.blob[dataOffset(r.blob, child, 2):]); fd != 4 {
		t.Errorf("the pidfd is %d, want 4", fd)
	}
}

func TestExec(t *testing.T) {
	argv := []string{"/bin/sh", "-c", "echo ready; read x; exit 9", "", "a b", "Grüße\n"}
	env := []string{"A=1", "EMPTY=", "B=two words"}
	eachTarget(t, func(t *testing.T, m target) {
		inR, inW := pipe(t)
		outR, outW := pipe(t)
		p := New()
		p.Call("standard input", 0, unix.SYS_DUP3, FD("in"), 0, 0)
		p.Call("standard output", 0, unix.SYS_DUP3, FD("out"), 1, 0)
		for fd := BlobFD; fd < 6; fd++ {
			p.Call("close the rest", 0, unix.SYS_CLOSE, fd)
		}
		p.Exec(argv, env)
		r := start(t, m, p, map[FD]*os.File{"in": inR, "out": outW})
		wantLines(t, outR, "ready")

		proc := "/proc/" + strconv.Itoa(r.cmd.Process.Pid)
		wantFile(t, proc+"/cmdline", strings.Join(argv, "\x00")+"\x00")
		wantFile(t, proc+"/environ", strings.Join(env, "\x00")+"\x00")
		if diff := cmp.Diff([]string{"0", "1", "2"}, names(t, proc+"/fd")); diff != "" {
			t.Errorf("descriptors (-want +got):\n%s", diff)
		}
		inW.WriteString("\n")
		r.exits(9)
	})
}

// TestParked looks at a process on its way from outside: what it holds, that
// its results are there to see, and that msh can still fill in data.
func TestParked(t *testing.T) {
	m := native(t)
	gateR, gateW := pipe(t)
	outR, outW := pipe(t)
	p := New()
	pid := p.Call("who am I", 0, unix.SYS_GETPID)
	p.Call("say so", 0, unix.SYS_WRITE, FD("out"), "parked\n", 7)
	p.Call("wait for msh", Positive, unix.SYS_READ, FD("gate"), Buffer(1), 1)
	late := p.Call("write what msh filled in", 0, unix.SYS_WRITE, FD("out"), Buffer(5), 5)
	p.Exit(0)
	r := start(t, m, p, map[FD]*os.File{"gate": gateR, "out": outW})
	wantLines(t, outR, "parked")

	if got := Result(r.blob, pid); got != int64(r.cmd.Process.Pid) {
		t.Errorf("getpid gave %d, want %d", got, r.cmd.Process.Pid)
	}
	proc := "/proc/" + strconv.Itoa(r.cmd.Process.Pid)
	if diff := cmp.Diff([]string{"0", "1", "2", "3", "4", "5"}, names(t, proc+"/fd")); diff != "" {
		t.Errorf("descriptors (-want +got):\n%s", diff)
	}
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	var mapped []string
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 6 {
			t.Errorf("memory of its own: %s", line)
		} else if !strings.HasPrefix(f[5], "[v") { // vdso, vvar, vsyscall
			mapped = append(mapped, f[1]+" "+f[5])
		}
	}
	want := []string{"r-xp /memfd:msh-stage0", "rw-s /memfd:list", "rw-p [stack]"}
	if diff := cmp.Diff(want, mapped); diff != "" {
		t.Errorf("memory (-want +got):\n%s", diff)
	}

	copy(r.blob[dataOffset(r.blob, late, 1):], "late\n")
	gateW.WriteString("x")
	wantLines(t, outR, "late")
	r.exits(0)
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if string(got) != want {
		t.Errorf("%s: %q, want %q", path, got, want)
	}
}

// names lists a folder, sorted.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	slices.Sort(list)
	return list
}
