package criu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel"
	"msh/kernel/criu"
)

// kinds are programs, each with something of its own that has to come through: what
// it makes, and a check that is made every now and then.
var kinds = []struct{ name, program string }{
	{"inotify", `
i = libc.inotify_init()
libc.inotify_add_watch(i, b"/etc", 2)
libc.inotify_add_watch(i, b"/dev/shm", 2)
def check(): assert select.select([i], [], [], 0)[0] is not None`},
	{"unlinked", `
f = open("/tmp/gone", "w+"); f.write("x" * 100000); f.flush(); os.unlink("/tmp/gone")
def check(): f.seek(0); assert f.read() == "x" * 100000`},
	{"locks", `
import fcntl
f = open("/dev/shm/lock", "w"); fcntl.flock(f, fcntl.LOCK_EX)
def check():
    try: fcntl.flock(open("/dev/shm/lock", "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: return
    assert False, "the lock is free"`},
	{"terminal", `
import fcntl
m, s = os.openpty()
if os.fork() == 0:
    os.setsid(); fcntl.ioctl(s, 0x540e, 0)
    while True: os.write(s, os.read(s, 100))
def check():
    os.write(m, b"hello\n")
    while b"hello" not in os.read(m, 100): pass`},
	{"timers", `
import signal
rang = []
signal.signal(signal.SIGALRM, lambda *a: rang.append(1)); signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
def check():
    rang.clear(); time.sleep(0.1); assert rang`},
	{"threads", `
import threading
k = [0] * 4
def run(i):
    while True: k[i] += 1; time.sleep(0.001)
for i in range(4): threading.Thread(target=run, args=(i,), daemon=True).start()
def check(): a = list(k); time.sleep(0.1); assert all(x < y for x, y in zip(a, k))`},
	{"unix", `
s = socket.socket(socket.AF_UNIX); s.bind("/dev/shm/sock"); s.listen()
u = socket.socket(socket.AF_UNIX); u.connect("/dev/shm/sock"); v, _ = s.accept()
def check(): u.send(b"abc"); assert v.recv(3) == b"abc"`},
	{"datagrams", `
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind("/dev/shm/syslog")
u = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); u.connect("/dev/shm/syslog")
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
def check(): u.send(b"abc"); assert s.recv(3) == b"abc"; a.send(b"de"); assert b.recv(9) == b"de"`},
	{"udp", `
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("127.0.0.1", 5353))
r = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); p = socket.socket(17, socket.SOCK_RAW, 0x300)
nl = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); nl.bind((0, 1))
def check(): s.sendto(b"abc", ("127.0.0.1", 5353)); assert s.recv(10) == b"abc"`},
	{"zombie", `
child = os.fork()
if child == 0: os._exit(7)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
def check(): assert " Z " in open("/proc/%d/stat" % child).read()`},
	{"memory", `
import mmap
a = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); b = mmap.mmap(-1, 1 << 20)
fd = os.memfd_create("data", 0); os.ftruncate(fd, 65536); c = mmap.mmap(fd, 65536)
for m in a, b, c: m[5:8] = b"abc"
if os.fork() == 0:
    while True: b[0] = (b[0] + 1) % 256; time.sleep(0.001)
def check():
    assert all(m[5:8] == b"abc" for m in (a, b, c))
    x = b[0]; time.sleep(0.05); assert b[0] != x`},
	{"sysv", `
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(call(29, 1234, 4096, 0o1600), None, 0); ctypes.memmove(at, b"abc", 3)
def check(): assert ctypes.string_at(at, 3) == b"abc"`},
	{"files", `
f = open("/proc/self/status"); d = os.open("/proc", 0); e = open("/etc/passwd"); first = e.readline(); at = e.tell()
def check(): assert e.tell() == at; f.seek(0); assert "python3" in f.read()`},
	{"mounts", `
call(165, b"none", b"/mnt", b"tmpfs", 0, 0); open("/mnt/a", "w").write("hello"); call(165, b"/etc", b"/srv", b"none", 4096, 0)
def check(): assert open("/mnt/a").read() == "hello" and os.path.exists("/srv/passwd")`},
	{"filter", `
call(157, 38, 1, 0, 0, 0)
code = struct.pack("HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, 83, 6, 0, 0, 0x50001, 6, 0, 0, 0x7fff0000) # no mkdir
buf = ctypes.create_string_buffer(code)
call(317, 1, 0, struct.pack("HxxxxxxQ", 4, ctypes.addressof(buf)))
def check():
    try: call(83, b"/dev/shm/dir", 0o755)
    except PermissionError: return
    assert False, "the filter is gone"`},
	{"stopped", `
import signal
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)
os.waitpid(child, os.WUNTRACED)
def check():
    while " T " not in open("/proc/%d/stat" % child).read(): time.sleep(0.01) # t, while criu is at it`},
	{"epoll", `
p = os.pipe(); e = select.epoll(); e.register(p[0], select.EPOLLIN)
def check(): assert not e.poll(0); os.write(p[1], b"x"); assert e.poll(0); os.read(p[0], 1)`},
	{"scheduler", `
os.nice(5) # which CPUs it may run on is not saved
def check(): assert os.nice(0) == 5`},
	{"caps", `
libc.prctl(24, 21, 0, 0, 0) # PR_CAPBSET_DROP
def check(): assert libc.prctl(23, 21, 0, 0, 0) == 0`},
}

const ticking = `
import ctypes, os, select, socket, struct, sys, time, traceback
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    r = libc.syscall(*a)
    if r < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r
n = 0
def tell(text): os.write(tick, text); os.lseek(tick, 0, 0)
tick = os.open("/dev/shm/tick." + sys.argv[1], os.O_RDWR | os.O_CREAT)
try:
    exec(open("/dev/shm/" + sys.argv[1]).read())
    while True:
        check()
        n += 1
        tell(b"%d\n" % n)
        time.sleep(0.02)
except BaseException:
    tell(traceback.format_exc().encode())
    time.sleep(1000)
`

// Every kind of program at once, in one machine.
func TestKinds(t *testing.T) {
	c, l := need(t), newLab(t)
	m := fork(t, l, spaces())
	write(t, m, "/dev/shm/main.py", ticking)
	script := ""
	for _, k := range kinds {
		write(t, m, "/dev/shm/"+k.name, k.program)
		script += fmt.Sprintf("setsid python3 /dev/shm/main.py %s &\n", k.name)
	}
	start(t, m, script+"wait")
	for _, k := range kinds {
		goesOn(t, m.Pid(), k.name, 0)
	}
	all := pids(t, m)
	if problems := criu.Check(all, bounds(all)); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	d := dumpOf(t, m)
	dump(t, c, d)
	pid := restore(t, c, restoreOf(t, d, nil))
	for _, k := range kinds {
		goesOn(t, pid, k.name, ticks(t, pid, k.name))
	}
	// What was restored can be saved again.
	all = tree(t, pid)
	if problems := criu.Check(all, bounds(all)); len(problems) > 0 {
		t.Errorf("problems after it was restored: %v", problems)
	}
	again := &criu.Dump{Pid: pid, Images: images(t), Nets: []criu.Net{{Label: "net", NS: netOf(t, pid)}}, Files: bounds(all).Files, Leave: criu.LeaveStopped, Place: d.Place}
	dump(t, c, again)
	for _, pid := range all {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil || !strings.Contains(string(b), "\tT (stopped)") && !strings.Contains(string(b), "\tZ (zombie)") {
			t.Errorf("process %d is not stopped: %v: %s", pid, err, b)
		}
	}
	pid = restore(t, c, restoreOf(t, again, nil))
	for _, k := range kinds {
		goesOn(t, pid, k.name, ticks(t, pid, k.name))
	}
}

// tree are the processes of a PID space, its init first.
func tree(t *testing.T, root int) []int {
	all := []int{root}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == root {
			continue
		}
		if s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && s == space(t, root, "pid") {
			all = append(all, pid)
		}
	}
	return all
}

// ticks is how often a program has checked itself.
func ticks(t *testing.T, pid int, name string) (n int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/dev/shm/tick.%s", pid, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &n); err != nil && len(b) > 0 {
		t.Fatalf("%s: %s", name, b)
	}
	return n
}

func goesOn(t *testing.T, pid int, name string, last int) {
	t.Helper()
	for end := time.Now().Add(long); ticks(t, pid, name) < last+3; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not go on after %d", name, last)
		}
	}
}

// Machines with other spaces of their own, with a program of their own for init,
// and one that was frozen before.
func TestSpaces(t *testing.T) {
	c := need(t)
	for _, k := range []struct {
		name string
		more []kernel.Resource
		init []string
	}{
		{"time", []kernel.Resource{&kernel.Timespace{Boottime: 1000 * time.Hour, Monotonic: 1000 * time.Hour}}, nil},
		{"cgroup", []kernel.Resource{&kernel.Space{Name: "cgroupspace"}}, nil},
		{"uid", []kernel.Resource{&kernel.Uidspace{}}, nil},
		{"init", nil, []string{"sh", "-c", "echo started; while sleep 0.01; do echo tick; echo tick >/dev/shm/tick; done"}},
		{"frozen", nil, nil},
	} {
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t)
			spec := spaces(k.more...)
			spec.Init = k.init
			if k.name == "uid" && os.Getenv("MSH_VM") != "" {
				t.Skip("owners cannot be shifted on the VM's root, a ramfs")
			}
			m := fork(t, l, spec)
			if k.init == nil {
				start(t, m, "while sleep 0.01; do echo tick >/dev/shm/tick; done")
			}
			eventually(t, m.Pid(), "/dev/shm/tick", "tick")
			log := ""
			outside := criu.FilesOutside(pids(t, m))
			d := &criu.Dump{Pid: m.Pid(), Images: images(t), Leave: criu.LeaveRunning, Place: criu.Place{Mounts: true}}
			// criu makes its network, as of one with a user namespace, or stands in it.
			if d.NewNet = k.name == "uid" || k.name == "cgroup"; !d.NewNet {
				d.Place.Net = netOf(t, m.Pid())
			}
			for _, f := range outside {
				d.Files = append(d.Files, f.Key)
				if f.Path != "/dev/null" {
					log = f.Key
					if f.Flags&unix.O_APPEND == 0 || !strings.HasSuffix(f.Path, "/init.log") {
						t.Errorf("outside: %+v, want init.log, opened to append", f)
					}
				}
			}
			if (log != "") != (k.init != nil) {
				t.Errorf("outside: %v", outside)
			}
			if k.name == "uid" {
				for _, n := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
					d.Mounts = append(d.Mounts, criu.Mount{Label: n, Path: "/dev/" + n})
				}
			}
			state := "running"
			if k.name == "frozen" {
				dirs := m.Groups()
				d.Group = dirs[max(0, slices.IndexFunc(dirs, func(d string) bool { return strings.Contains(d, "/freezer/") }))]
				freeze(t, m, d.Group)
				state = "frozen"
			}
			dump(t, c, d)
			if got := m.State(); got != state {
				t.Errorf("%s after a dump that leaves it running, want %s", got, state)
			}
			r := restoreOf(t, d, nil)
			r.NewNet, r.Place.NewNet, r.Nets = d.NewNet, !d.NewNet, nil
			r.Mounts = d.Mounts
			plugged := false
			r.Hook = func(e criu.Event) error {
				if e.Name == criu.SetupNamespaces { // its network is there, and empty
					plugged = netOf(t, e.Pid) != nil
				}
				return nil
			}
			if log != "" {
				f, err := os.OpenFile(t.TempDir()+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				r.Inherit[log] = f
			}
			pid := restore(t, c, r)
			if err := os.WriteFile(tickOf(pid), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			eventually(t, pid, "/dev/shm/tick", "tick")
			if !plugged {
				t.Error("no network at setup-namespaces")
			}
			if log != "" {
				b, err := os.ReadFile(r.Inherit[log].Name())
				if err != nil || !strings.Contains(string(b), "tick") || strings.Contains(string(b), "started") {
					t.Errorf("its log: %q, %v", b, err)
				}
			}
			if net := space(t, pid, "net"); net == space(t, os.Getpid(), "net") || net == space(t, m.Pid(), "net") {
				t.Error("no network of its own")
			}
			if own := space(t, pid, "user") != space(t, os.Getpid(), "user"); own != (k.name == "uid") {
				t.Errorf("a user namespace of its own: %v", own)
			}
			// For its clocks to go on, criu gives every tree a time namespace.
			if space(t, pid, "time") == space(t, os.Getpid(), "time") {
				t.Error("no time namespace of its own")
			}
		})
	}
}

func space(t *testing.T, pid int, kind string) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tickOf(pid int) string { return fmt.Sprintf("/proc/%d/root/dev/shm/tick", pid) }

// freeze freezes the machine, but not in the middle of a vfork(2), where a process
// cannot be stopped.
func freeze(t *testing.T, m *kernel.Machine, group string) {
	t.Helper()
	for {
		if err := m.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		pids, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(strings.Fields(string(pids)), func(pid string) bool {
			at, _ := os.ReadFile("/proc/" + pid + "/wchan")
			return string(at) == "kernel_clone"
		}) {
			return
		}
		if err := m.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
