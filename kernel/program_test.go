package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRunCodes(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	for script, code := range map[string]int{
		"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -TERM $$": 143, "kill -KILL $$": 137, "kill -SEGV $$": 139, "not-there": 127,
	} {
		want(t, script, code, try(t, m, "/bin/sh", "-c", script).Code)
	}
	_, err := m.Run(t.Context(), &Command{Argv: []string{"not-there"}}, nil, 0)
	want(t, "no such program", 127, ExitCode(err))
	contains(t, err.Error(), "run not-there: not found", m.Name()+"'s PATH")
	_, err = m.Run(t.Context(), &Command{Argv: []string{"/etc/passwd"}}, nil, 0)
	want(t, "no program", 126, ExitCode(err))
	contains(t, err.Error(), "permission denied")
	_, err = m.Run(t.Context(), &Command{Argv: []string{"/not/" + strings.Repeat("x", 5000)}}, nil, 0)
	want(t, "a name too long", 126, ExitCode(err))
	if len(err.Error()) > 300 {
		t.Errorf("an error of %d bytes: %.100s…", len(err.Error()), err)
	}
	want(t, "not even tried", 1, ExitCode(fmt.Errorf("enter m: %w", unix.ENOENT)))
	want(t, "dead", 1, ExitCode(fmt.Errorf("machine m: %w", ErrDead)))
	_, err = m.Run(t.Context(), &Command{Argv: []string{"true"}, Cwd: "/not/there"}, nil, 0)
	contains(t, err.Error(), "run: cwd", `"/not/there"`)
	for _, c := range []*Command{{}, {Argv: []string{""}}, {Argv: []string{"true"}, Env: map[string]string{"A=B": "x"}}, {Argv: []string{"true"}, User: "nobody-like-that"}, {Argv: []string{"a\x00b"}}} {
		if _, err := m.Run(t.Context(), c, nil, 0); err == nil {
			t.Errorf("%q: ran", c)
		}
	}
}

func TestRunOutput(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	r := try(t, m, "/bin/sh", "-c", "echo out; echo err >&2; echo more")
	want(t, "stdout", "out\nmore\n", string(r.Stdout))
	want(t, "stderr", "err\n", string(r.Stderr))

	const size = 10 << 20
	r = try(t, m, "/bin/sh", "-c", fmt.Sprintf("head -c %d /dev/zero; head -c %d /dev/zero >&2", size, size))
	if len(r.Stdout) != size || len(r.Stderr) != size {
		t.Errorf("10 MiB each: got %d and %d bytes", len(r.Stdout), len(r.Stderr))
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	r, err := m.Run(t.Context(), &Command{Argv: []string{"cat"}}, data, long)
	if err != nil || !bytes.Equal(r.Stdout, data) {
		t.Errorf("stdin: %d bytes of %d came back, %v", len(r.Stdout), len(data), err)
	}
	want(t, "no stdin", "", run(t, m, "cat"))
}

// Nothing of msh's own surroundings gets into a machine.
func TestRunLeaksNothing(t *testing.T) {
	l := newLab(t)
	t.Setenv("MSH_SECRET", "leaked")
	open, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0) // without O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(open)
	signal.Ignore(unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Reset(unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	defer unix.Umask(unix.Umask(0o077))
	t.Chdir(t.TempDir())
	for _, rs := range [][]Resource{nil, {space("pidspace"), &Uidspace{}, overlay()}} {
		m := fork(t, l, rs...)
		// ls has the directory itself open as well
		want(t, "descriptors", "0 1 2 3", strings.Join(strings.Fields(run(t, m, "ls", "/proc/self/fd")), " "))
		want(t, "environment", strings.Join(DefaultEnv(nil), "\n"), run(t, m, "env"))
		want(t, "directory", "/", run(t, m, "pwd"))
		want(t, "umask", "0022", sh(t, m, "umask"))
		want(t, "signals", "0000000000000000 0000000000000000", sh(t, m, "echo $(sed -n 's/Sig[IB][gl][nk]:.//p' /proc/self/status)"))
		want(t, "session", "yes", sh(t, m, "[ $(cut -d' ' -f6 /proc/$$/stat) = $$ ] && echo yes"))
		want(t, "parent's arguments", "", sh(t, m, "tr '\\0' ' ' < /proc/$PPID/environ 2>/dev/null | grep MSH_SECRET || true"))
	}
}

func TestRunEnv(t *testing.T) {
	l := newLab(t)
	m := fork(t, l)
	r, err := m.Run(t.Context(), &Command{Argv: []string{"env"}, Env: map[string]string{"A": "b=c", "HOME": "/x"}, Cwd: "/etc"}, nil, long)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(r.Stdout), "A=b=c\n", "HOME=/x\n", "PATH="+DefaultPath)
	r, err = m.Run(t.Context(), &Command{Argv: []string{"pwd"}, Cwd: "/etc"}, nil, long)
	if err != nil || string(r.Stdout) != "/etc\n" {
		t.Errorf("cwd: %q, %v", r.Stdout, err)
	}
}

func TestRunUser(t *testing.T) {
	l := newLab(t)
	root := smallRoot(t)
	for _, rs := range [][]Resource{{space("pidspace")}, {space("pidspace"), &Uidspace{}}} {
		m := fork(t, l, append(rs, &Root{Source: root, Write: "overlay"})...)
		id := func(user string) string {
			r, err := m.Run(t.Context(), &Command{Argv: []string{"sh", "-c", "echo $(id -u) $(id -g) $(id -G) $HOME $USER; echo x > /dev/stdout; echo y > /dev/stderr"}, User: user}, nil, long)
			if err != nil {
				return err.Error()
			}
			return strings.TrimSuffix(string(r.Stdout), "\nx\n")
		}
		want(t, "by name", "1000 1001 1001 50 60 /home/ann ann", id("ann"))
		want(t, "by number", "1000 1001 1001 50 60 /home/ann ann", id("1000"))
		want(t, "with a group", "1000 50 50 /home/ann ann", id("ann:staff"))
		want(t, "with a group's number", "1000 77 77 /home/ann ann", id("ann:77"))
		want(t, "a number without a line", "4321 0 0 / 4321", id("4321"))
		contains(t, id("bob"), `run: user: got "bob"`, m.Name()+"'s /etc/passwd")
		contains(t, id("ann:nogroup"), `"ann:nogroup"`, "/etc/group")
	}
	m := fork(t, l, space("pidspace"), &Root{Source: root, Write: "overlay"})
	r, err := m.Run(t.Context(), &Command{Argv: []string{"cat", "/data/secret"}, User: "ann"}, nil, long)
	if err != nil || r.Code == 0 {
		t.Errorf("another user read what is root's: %v %v", r, err)
	}
}

func TestRunTimeout(t *testing.T) {
	l := newLab(t)
	for _, rs := range [][]Resource{nil, {space("pidspace")}} {
		m := fork(t, l, rs...)
		r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "echo begun; sleep 600 & sleep 600"}}, nil, 300*time.Millisecond)
		if err == nil {
			t.Fatal("it ended by itself")
		}
		contains(t, err.Error(), "still running after 300ms: killed")
		want(t, "what it wrote", "begun\n", string(r.Stdout))
		eventually(t, "its process group is gone", func() bool { return len(pidsOf(t, m)) == 1 })

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err = m.Run(ctx, &Command{Argv: []string{"sleep", "600"}}, nil, 0)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
		eventually(t, "nothing is left", func() bool { return len(pidsOf(t, m)) == 1 })
	}
}

// A background process that keeps the output open is not waited for.
func TestRunBackground(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	r := try(t, m, "/bin/sh", "-c", "echo now; sleep 600 & echo then")
	want(t, "stdout", "now\nthen\n", string(r.Stdout))
	want(t, "it runs on", 2, len(pidsOf(t, m)))
}

func TestRunDead(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	if err := m.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, err := m.Run(t.Context(), &Command{Argv: []string{"true"}}, nil, 0)
	if !errors.Is(err, ErrDead) {
		t.Errorf("run: %v", err)
	}
	_, err = m.Spawn(t.Context(), &Command{Argv: []string{"true"}}, "", RestartNo)
	if !errors.Is(err, ErrDead) {
		t.Errorf("spawn: %v", err)
	}
	if _, err = m.ReadFile(t.Context(), "/etc/passwd"); !errors.Is(err, ErrDead) {
		t.Errorf("read_file: %v", err)
	}
	if _, err = l.Fork(t.Context(), m, &Spec{}); !errors.Is(err, ErrDead) {
		t.Errorf("rfork: %v", err)
	}
	if err = m.Stop(t.Context(), 0); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err = m.Freeze(t.Context()); !errors.Is(err, ErrDead) {
		t.Errorf("freeze: %v", err)
	}
}

func TestRunOnHost(t *testing.T) {
	l := newLab(t)
	want(t, "host.run", "here", run(t, l.Host(), "echo", "here"))
	host, _ := os.Hostname()
	want(t, "its name", host, run(t, l.Host(), "uname", "-n"))
}

// The entry into a machine fails at every step, and nothing is left.
func TestRunFaults(t *testing.T) {
	h := newHost(t)
	l := labOn(t, h, "")
	m := fork(t, l, space("pidspace"), &Uidspace{}, overlay(), &Rlimit{Name: "nofile", Soft: 64, Hard: 64})
	for k := 1; ; k++ {
		h.Fault.Child = k
		r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/true"}, User: "0"}, nil, long)
		h.Fault.Child = 0
		if err == nil {
			if k < 10 || r.Code != 0 {
				t.Errorf("%d steps, code %d", k-1, r.Code)
			}
			break
		}
		contains(t, err.Error(), ": ")
		eventually(t, "nothing of it is left", func() bool { return len(pidsOf(t, m)) == 1 })
	}
}
