package kernel

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSpawn(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	p := spawn(t, m, "echo out; echo err >&2; read x; exec sleep 600")
	contains(t, read(t, fmt.Sprintf("/proc/%d/cgroup", p.Pid())), m.group.Path)
	eventually(t, "its log", func() bool { b, _ := p.Log(); return string(b) == "out\nerr\n" })
	want(t, "alive", true, p.Alive())
	if _, ok := p.Code(); ok {
		t.Error("it has a code")
	}
	if err := p.Kill(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context(), long); err != nil || code != 143 {
		t.Errorf("%d, %v", code, err)
	}
	want(t, "alive", false, p.Alive())
	if err := p.Kill(unix.SIGTERM); err != nil {
		t.Errorf("killed twice: %v", err)
	}

	log := filepath.Join(t.TempDir(), "log")
	q, err := m.Spawn(t.Context(), &Command{Argv: []string{"echo", "mine"}}, log, RestartNo)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := q.Wait(t.Context(), long); err != nil || code != 0 {
		t.Errorf("%d, %v", code, err)
	}
	want(t, "a log of its own", "mine", read(t, log))
	if _, err := m.Spawn(t.Context(), &Command{Argv: []string{"/not/there"}}, "", RestartNo); err == nil {
		t.Error("started what is not there")
	} else {
		contains(t, err.Error(), "/not/there", "no such file")
	}
	if _, err := m.Spawn(t.Context(), &Command{Argv: []string{"true"}}, "", "sometimes"); err == nil {
		t.Error("an unknown policy")
	}
	if _, err := m.Spawn(t.Context(), &Command{Argv: []string{"true"}}, "/not/there/log", RestartNo); err == nil {
		t.Error("a log in no directory")
	}
}

func TestSpawnRestart(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	start := func(policy Restart, script string) *Process {
		p, err := m.Spawn(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", script}}, "", policy)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	times := func(p *Process) int { b, _ := p.Log(); return strings.Count(string(b), "go\n") }

	no, ok := start(RestartNo, "echo go; exit 1"), start(RestartOnFailure, "echo go")
	failing, always := start(RestartOnFailure, "echo go; exit 1"), start(RestartAlways, "echo go")
	for _, p := range []*Process{no, ok} {
		if _, err := p.Wait(t.Context(), long); err != nil {
			t.Error(err)
		}
		want(t, "starts", 1, times(p))
	}
	for _, p := range []*Process{failing, always} {
		eventually(t, "three starts", func() bool { return times(p) >= 3 })
		want(t, "alive", true, p.Alive())
		if err := p.Kill(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if _, err := p.Wait(t.Context(), long); err != nil {
			t.Errorf("after kill: %v", err)
		}
	}
	// With its machine ends what is always restarted.
	last := start(RestartAlways, "exec sleep 600")
	destroy(t, m)
	if _, err := last.Wait(t.Context(), long); err != nil {
		t.Errorf("after its machine's end: %v", err)
	}
}

func TestShell(t *testing.T) {
	l := newLab(t)
	for _, rs := range [][]Resource{{space("pidspace"), overlay()}, {space("pidspace"), &Uidspace{}, overlay()}} {
		m := fork(t, l, rs...)
		term, err := m.OpenTerminal()
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetWinsize(int(term.Master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 101}); err != nil {
			t.Fatal(err)
		}
		host, err := os.ReadDir("/dev/pts")
		if err != nil {
			t.Fatal(err)
		}
		out := make(chan string)
		go func() {
			b, _ := io.ReadAll(term.Master) // EIO at its end
			out <- string(b)
		}()
		code, err := m.Shell(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "tty; stty size; ls -1 /dev/pts; [ -t 0 ] && [ -t 2 ] && : > /dev/tty && echo terminal; exit 5"}}, term)
		if err != nil || code != 5 {
			t.Errorf("%d, %v", code, err)
		}
		text := strings.ReplaceAll(<-out, "\r", "")
		want(t, "what it said", "/dev/pts/0\n33 101\n0\nptmx\nterminal\n", text)
		now, err := os.ReadDir("/dev/pts")
		if err != nil || len(now) != len(host) {
			t.Errorf("the host's /dev/pts: %v, then %v, %v", host, now, err)
		}
		term.Close()
	}
}

func TestShellHangup(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), overlay())
	term, err := m.OpenTerminal()
	if err != nil {
		t.Fatal(err)
	}
	type end struct {
		code int
		err  error
	}
	ended := make(chan end)
	go func() {
		code, err := m.Shell(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "echo up; exec sleep 600"}}, term)
		ended <- end{code, err}
	}()
	var buf [64]byte
	if _, err := term.Master.Read(buf[:]); err != nil {
		t.Fatal(err)
	}
	term.Close()
	if e := <-ended; e.err != nil || e.code != 129 {
		t.Errorf("hung up: %+v", e)
	}
}

// What a script has started on the host ends with it, restarts included.
func TestSpawnOnHost(t *testing.T) {
	l := newLab(t)
	log := filepath.Join(t.TempDir(), "log")
	p, err := l.Host().Spawn(t.Context(), &Command{Argv: []string{"sh", "-c", "echo started; exec sleep 600"}}, log, RestartAlways)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs", func() bool { b, _ := p.Log(); return string(b) == "started\n" })
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("it outlives the lab")
	}
}

// A machine's root whose ids are the host's makes of its log a program with the
// set-user-ID bit. Nobody outside gets to it; to one in a directory of the caller's, yes.
func TestLogsApart(t *testing.T) {
	l := newLab(t)
	const make = `cat /usr/bin/id && chmod 4755 /proc/self/fd/1`
	m := forkIn(t, l, l.Host(), &Spec{Init: []string{"/bin/sh", "-c", make + " && exec sleep 600"}})
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	given := filepath.Join(dir, "given.log")
	for _, log := range []string{"", given} {
		p, err := m.Spawn(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", make}}, log, RestartNo)
		if err != nil {
			t.Fatal(err)
		}
		if code, err := p.Wait(t.Context(), long); err != nil || code != 0 {
			t.Fatal(code, err)
		}
	}
	asNobody := func(path string) string {
		cmd := exec.Command(path, "-u")
		cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		return fmt.Sprintf("%s%v", out, err)
	}
	want(t, "where everybody goes", "0\n<nil>", asNobody(given))
	files, err := m.LogFiles()
	if err != nil {
		t.Fatal(err)
	}
	want(t, "logs", 2, len(files))
	for _, f := range files {
		eventually(t, "it has the bit", func() bool { st, err := os.Stat(f); return err == nil && st.Mode()&os.ModeSetuid != 0 })
		contains(t, asNobody(f), "permission denied")
	}
}
