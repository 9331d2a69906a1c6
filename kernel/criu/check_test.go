package criu_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel"
	"msh/kernel/criu"
)

// obstacles are programs that cannot be saved, and what Check says of each. A
// program that this kernel does not let do what it wants writes why.
var obstacles = []struct{ name, program, want string }{
	{"uring", `fd = call(425, 8, (ctypes.c_char * 120)())`, "has an io_uring (descriptor 3)"},
	{"uffd", `fd = call(323, 1)`, "has a userfaultfd (descriptor 3)"},
	{"mptcp", `
open("/proc/sys/net/mptcp/enabled", "w").write("1")
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); fd = s.fileno()`, "has a socket of protocol MPTCP (descriptor 3)"},
	{"sctp", `s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132); fd = s.fileno()`, "has a socket of protocol SCTP (descriptor 3)"},
	{"vsock", `s = socket.socket(40, socket.SOCK_STREAM); fd = s.fileno()`, "has a socket of protocol AF_VSOCK (descriptor 3)"},
	{"uts", `fd = call(272, 0x04000000)`, "has a uts namespace of its own inside the machine"},
	{"user", `fd = call(272, 0x10000000)`, "has a user namespace of its own inside the machine"},
	{"pid", `
fd = call(272, 0x20000000)
if os.fork() == 0: time.sleep(1000)`, "has a pid namespace of its own inside the machine"},
	{"listener", `
code = struct.pack("HBBI", 6, 0, 0, 0x7fff0000) # let every call go
buf = ctypes.create_string_buffer(code)
call(157, 38, 1, 0, 0, 0)
fd = call(317, 1, 8, struct.pack("HxxxxxxQ", 1, ctypes.addressof(buf)))`, "has a seccomp listener (descriptor 3)"},
	{"memfd", `
if len(sys.argv) == 2:
    fd = os.memfd_create("copy", 0)
    os.write(fd, open(sys.executable, "rb").read())
    os.execv("/proc/self/fd/%d" % fd, ["python3", sys.argv[0], sys.argv[1], "again"])
fd = 0`, "runs from a memory file (/memfd:copy)"},
	{"traced", `
child = os.fork()
if child == 0:
    call(101, 0, 0, 0, 0) # PTRACE_TRACEME
    done("yes")
fd = -1 if not wait_file() else 0`, "is traced by process "},
	{"fine", `
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
u, v = socket.socketpair()
n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
e = select.epoll()
p = os.pipe()
m, t = os.openpty()
d = os.memfd_create("data", 0)
f = open("/dev/null")
fd = s.fileno()`, ""},
}

const prologue = `
import ctypes, os, select, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    r = libc.syscall(*a)
    if r < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r
ready = "/tmp/ready." + sys.argv[1]
def done(text):
    open(ready + ".new", "w").write(text)
    os.rename(ready + ".new", ready)
    time.sleep(1000)
def wait_file():
    while not os.path.exists(ready): time.sleep(0.01)
    return True
try:
    exec(open("/dev/shm/" + sys.argv[1]).read())
    fd >= 0 or 1/0
except OSError as e:
    done("no: %s" % e)
done("yes")
`

// Each obstacle is named with its process; what can be saved is not.
func TestCheck(t *testing.T) {
	need(t)
	l := newLab(t)
	m := fork(t, l, spaces())
	write(t, m, "/dev/shm/main.py", prologue)
	script := ""
	for _, o := range obstacles {
		write(t, m, "/dev/shm/"+o.name, o.program)
		script += fmt.Sprintf("python3 /dev/shm/main.py %s &\n", o.name)
	}
	start(t, m, script+"wait")
	can := map[string]bool{}
	for _, o := range obstacles {
		path := "/tmp/ready." + o.name
		if err := m.WaitFile(t.Context(), path, long); err != nil {
			log, _ := m.ReadFile(t.Context(), "/dev/shm/log")
			t.Fatalf("%s: %v: %s", o.name, err, log)
		}
		b, err := m.ReadFile(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if can[o.name] = string(b) == "yes"; !can[o.name] {
			t.Logf("%s: this kernel cannot: %s", o.name, b)
		}
	}
	if !can["uring"] || !can["uffd"] || !can["uts"] || !can["listener"] || !can["memfd"] {
		t.Error("an obstacle that every kernel has could not be tried")
	}
	all := pids(t, m)
	problems := criu.Check(all, bounds(all))
	text := fmt.Sprint(problems)
	for _, o := range obstacles {
		pids := named(t, all, o.name)
		if len(pids) == 0 {
			t.Errorf("%s does not run", o.name)
		}
		found := ""
		for _, p := range problems {
			if slices.Contains(pids, p.Pid) {
				found += p.String() + "; "
				if p.Mend == "" {
					t.Errorf("%v: no mend", p)
				}
			}
		}
		switch {
		case o.want == "" && found != "":
			t.Errorf("%s: found %s", o.name, found)
		case can[o.name] && o.want != "" && !strings.Contains(found, o.want):
			t.Errorf("%s: found %q, want %q, in %s", o.name, found, o.want, text)
		}
	}
}

// named are the processes with an argument of that name.
func named(t *testing.T, all []int, name string) (found []int) {
	for _, pid := range all {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if slices.Contains(strings.Split(string(b), "\x00"), name) {
			found = append(found, pid)
		}
	}
	return found
}

// bounds let the /dev/null be that a machine's processes have of the outside.
func bounds(all []int) (b criu.Bounds) {
	for _, f := range criu.FilesOutside(all) {
		if f.Path == "/dev/null" {
			b.Files = append(b.Files, f.Key)
		}
	}
	return b
}

// What a process was handed from the outside: a terminal, a file, a socket.
func TestCheckOutside(t *testing.T) {
	need(t)
	l := newLab(t)
	m := fork(t, l, spaces())
	terminal, err := l.Host().OpenTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	file := open(t, t.TempDir())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		stdio := [3]int{int(file.Fd()), int(file.Fd()), pair[1]}
		m.Attach(t.Context(), &kernel.Command{Argv: []string{"sleep", "1000"}}, stdio, nil)
	}()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		m.Shell(t.Context(), &kernel.Command{Argv: []string{"tail", "-f", "/dev/null"}}, terminal)
	}()
	var all []int
	for end := time.Now().Add(long); len(named(t, all, "1000")) == 0 || len(named(t, all, "-f")) == 0; time.Sleep(5 * time.Millisecond) {
		if all = pids(t, m); time.Now().After(end) {
			t.Fatal("it does not run")
		}
	}
	text := fmt.Sprint(criu.Check(all, bounds(all)))
	for _, want := range []string{
		"(tail) has a terminal of the outside, /dev/pts/",
		"(sleep) has " + file.Name() + " of the outside open (descriptor 0)",
		"(sleep) has a unix socket joined with a process outside (descriptor 2)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s\nwant %q in it", text, want)
		}
	}
	if err := m.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Error(err)
	}
	<-ended
	<-shown
	if got := criu.Check(all, criu.Bounds{}); got != nil {
		t.Errorf("problems of processes that have ended: %v", got)
	}
}
