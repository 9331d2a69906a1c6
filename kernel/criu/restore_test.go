package criu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"msh/kernel"
	"msh/kernel/criu"
)

// A program with memory and an open file goes on where it was: its counter, the
// place in the file, its number, the name of the machine.
func TestCounter(t *testing.T) {
	c, l := need(t), newLab(t)
	m := fork(t, l, spaces())
	write(t, m, "/count.py", `
import os, time
memory = [bytes([i % 256]) * 4096 for i in range(2000)]
log = open("/tmp/out", "w")
n = 0
while True:
    n += 1
    assert all(memory[i][0] == i % 256 for i in range(0, 2000, 100))
    log.write("%d %d %s\n" % (n, os.getpid(), os.uname().nodename))
    log.flush()
    time.sleep(0.01)
`)
	start(t, m, "exec python3 /count.py")
	eventually(t, m.Pid(), "/tmp/out", "\n20 ")
	d := dumpOf(t, m)
	var saved string
	var names []string
	d.Hook = func(e criu.Event) error {
		names = append(names, e.Name)
		if e.Name == criu.PostDump { // frozen: file and memory are of one instant
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/tmp/out", m.Pid()))
			saved = string(b)
			return err
		}
		return nil
	}
	s := dump(t, c, d)
	if s.Frozen <= 0 || s.PagesWritten < 2000 {
		t.Errorf("stats %+v, want at least the 2000 pages of the list", s)
	}
	if want := "pre-dump network-lock query-ext-files post-dump"; strings.Join(names, " ") != want {
		t.Errorf("events %v, want %s", names, want)
	}
	if m.State() != "dead" {
		t.Errorf("state %s after a dump that leaves it dead", m.State())
	}
	lines := strings.Split(strings.TrimSpace(saved), "\n")
	last := strings.Fields(lines[len(lines)-1])
	var n int
	fmt.Sscan(last[0], &n)

	r := restoreOf(t, d, map[string]string{"/tmp/out": saved, "/count.py": ""})
	pid := restore(t, c, r)
	next := fmt.Sprintf("\n%d %s saved\n%d %s saved\n", n, last[1], n+1, last[1])
	eventually(t, pid, "/tmp/out", next)
	if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); exe != "/dev/.init" {
		t.Errorf("init runs from %s", exe)
	}
	if ps := inside(t, pid, "ls", "/proc"); !strings.Contains(ps, "\n"+last[1]+"\n") {
		t.Errorf("no process %s in its /proc: %s", last[1], ps)
	}
}

// A dump that leaves the tree running, and a second copy of it beside.
func TestLeaveRunning(t *testing.T) {
	c, l := need(t), newLab(t)
	m := fork(t, l, spaces())
	start(t, m, "i=0; while sleep 0.01; do i=$((i+1)); echo $i; done | while read i; do echo $i >/tmp/count; done")
	eventually(t, m.Pid(), "/tmp/count", "5")
	d := dumpOf(t, m)
	d.Leave = criu.LeaveRunning
	d.Hook = func(e criu.Event) error {
		if e.Name == criu.PostDump {
			write(t, m, "/tmp/count", "")
		}
		return nil
	}
	dump(t, c, d)
	eventually(t, m.Pid(), "/tmp/count", "\n")
	if m.State() != "running" {
		t.Errorf("state %s", m.State())
	}
	for range 2 { // twice from the same images
		pid := restore(t, c, restoreOf(t, d, nil))
		eventually(t, pid, "/tmp/count", "\n")
	}
}

// connected is a server and its client, on the loopback: each line that comes back
// is counted.
const connected = `
import socket, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", 7000))
s.listen(5)
a = socket.create_connection(("127.0.0.1", 7000))
b, _ = s.accept()
n = 0
while True:
    n += 1
    try:
        a.sendall(b"x" * 1000)
        got = 0
        while got < 1000:
            d = b.recv(1000 - got)
            if not d:
                raise OSError("end of file")
            got += len(d)
        text = "count %d" % n
    except OSError as e:
        text = "closed: %s" % e
        a = socket.create_connection(("127.0.0.1", 7000))
        b, _ = s.accept()
    open("/tmp/tcp", "a").write(text + "\n")
    time.sleep(0.01)
`

// A connection goes on in another network; or is closed there, and the listener
// goes on.
func TestTCP(t *testing.T) {
	for _, tcp := range []criu.TCP{criu.TCPKeep, criu.TCPClose} {
		t.Run(fmt.Sprint(tcp), func(t *testing.T) {
			c, l := need(t), newLab(t)
			m := fork(t, l, spaces())
			write(t, m, "/tcp.py", connected)
			start(t, m, "exec python3 /tcp.py")
			eventually(t, m.Pid(), "/tmp/tcp", "count 10\n")
			d := dumpOf(t, m)
			dump(t, c, d)
			r := restoreOf(t, d, nil)
			r.TCP = tcp
			pid := restore(t, c, r)
			eventually(t, pid, "/tmp/tcp", map[criu.TCP]string{criu.TCPKeep: "count", criu.TCPClose: "closed"}[tcp])
			eventually(t, pid, "/tmp/tcp", "count")
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root/tmp/tcp", pid))
			if closed := strings.Contains(string(b), "closed"); closed != (tcp == criu.TCPClose) {
				t.Errorf("closed: %v: %s", closed, b)
			}
		})
	}
}

// A dump that cannot be leaves the tree as it was, and says which process and why.
func TestDumpFails(t *testing.T) {
	c, l := need(t), newLab(t)
	m := fork(t, l, spaces())
	write(t, m, "/uffd.py", uring)
	start(t, m, "exec python3 /uffd.py")
	eventually(t, m.Pid(), "/tmp/ready", "yes")
	d := dumpOf(t, m)
	_, err := c.Dump(t.Context(), d)
	var e *criu.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "io_uring") || e.Name != "python3" {
		t.Errorf("error %v, want one of python3's io_uring", err)
	}
	if m.State() != "running" {
		t.Errorf("state %s after a dump that failed", m.State())
	}
	r, err := m.Run(t.Context(), &kernel.Command{Argv: []string{"cat", "/tmp/ready"}}, nil, long)
	if err != nil || string(r.Stdout) != "yes\n" {
		t.Error(r, err)
	}
}

// uring is a program with an io_uring.
const uring = `
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(425, 8, (ctypes.c_char * 120)())
open("/tmp/ready", "w").write("yes\n" if fd >= 0 else "errno %d\n" % ctypes.get_errno())
time.sleep(1000)
`

// A hook that fails makes criu give up: at each event of a dump, where the tree
// goes on, and of a restore, of which nothing is left.
func TestHookFails(t *testing.T) {
	c, l := need(t), newLab(t)
	m := fork(t, l, spaces())
	start(t, m, "i=0; while sleep 0.01; do i=$((i+1)); echo $i >/tmp/count; done")
	eventually(t, m.Pid(), "/tmp/count", "5")
	stop := errors.New("stop here")
	for _, at := range []string{criu.PreDump, criu.NetworkLock, criu.PostDump} {
		d := dumpOf(t, m)
		d.Hook = func(e criu.Event) error {
			if e.Name == at {
				return stop
			}
			return nil
		}
		if _, err := c.Dump(t.Context(), d); !errors.Is(err, stop) {
			t.Errorf("%s: error %v", at, err)
		}
		write(t, m, "/tmp/count", "")
		eventually(t, m.Pid(), "/tmp/count", "\n")
	}
	d := dumpOf(t, m)
	dump(t, c, d)
	for _, at := range []string{criu.PreRestore, criu.SetupNamespaces, criu.NamespacesSetUp, criu.PostRestore} {
		r := restoreOf(t, d, nil)
		pid := 0
		r.Hook = func(e criu.Event) error {
			if e.Pid != 0 {
				pid = e.Pid
			}
			if e.Name == at {
				return stop
			}
			return nil
		}
		if _, err := c.Restore(t.Context(), r); !errors.Is(err, stop) {
			t.Errorf("%s: error %v", at, err)
		}
		if pid == 0 {
			continue
		}
		// Its zombie is this process's to reap, as it is a sister of criu.
		if _, err := unix.Wait4(pid, nil, 0, nil); err != nil && err != unix.ECHILD {
			t.Errorf("%s: reap %d: %v", at, pid, err)
		}
		if unix.Kill(pid, 0) == nil {
			t.Errorf("%s: process %d is left", at, pid)
		}
	}
}

// What criu restores is born in its own control groups: those of the machine,
// where it was put at its start, without the wait that moving a process takes.
func TestGroupsV2(t *testing.T) {
	c, l := need(t), newLab(t)
	limit := int64(256 << 20)
	m := fork(t, l, spaces(&kernel.Memory{Max: &limit}, &kernel.Pids{Max: 100}))
	start(t, m, "while sleep 0.01; do echo tick >/tmp/tick; done")
	eventually(t, m.Pid(), "/tmp/tick", "tick")
	d := dumpOf(t, m)
	want := groups(t, m.Pid())
	dump(t, c, d)
	r := restoreOf(t, d, nil)
	for _, dir := range m.Groups() {
		if f := filepath.Join(dir, "tasks"); unix.Access(f, unix.F_OK) == nil {
			r.Place.Joins = append(r.Place.Joins, f)
		} else {
			r.Place.Group = open(t, dir)
		}
	}
	pid := restore(t, c, r)
	if got := groups(t, pid); got != want {
		t.Errorf("groups\n%s\nwant\n%s", got, want)
	}
	eventually(t, pid, "/tmp/tick", "tick")
}

func groups(t *testing.T, pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The end of a context ends a dump at its next event, and the tree goes on.
func TestCancel(t *testing.T) {
	c, l := need(t), newLab(t)
	m := fork(t, l, spaces())
	start(t, m, "while sleep 0.01; do echo tick >/dev/shm/tick; done")
	eventually(t, m.Pid(), "/dev/shm/tick", "tick")
	ctx, cancel := context.WithCancel(t.Context())
	d := dumpOf(t, m)
	d.Hook = func(e criu.Event) error {
		if e.Name == criu.NetworkLock {
			cancel()
		}
		return nil
	}
	if _, err := c.Dump(ctx, d); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	write(t, m, "/dev/shm/tick", "")
	eventually(t, m.Pid(), "/dev/shm/tick", "tick")
	if _, err := c.Dump(ctx, d); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v of a call that was too late", err)
	}
}
