package escape

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel"
)

// entries are the ways in. Each runs a program and returns what it said. rs are what m
// is made of, for those that make another machine like it.
var entries = []struct {
	name string
	run  func(t *testing.T, l *kernel.Lab, m *kernel.Machine, rs []kernel.Resource, argv []string) string
}{
	{"run", byRun}, {"spawn", bySpawn}, {"shell", byShell}, {"exec", byExec}, {"init", byInit}, {"restart", byRestart}, {"nested", byNested},
}

// attacking is the attacker with these arguments.
func attacking(args []string) []string { return append([]string{"/attack"}, args...) }

func byRun(t *testing.T, _ *kernel.Lab, m *kernel.Machine, _ []kernel.Resource, argv []string) string {
	r, err := m.Run(t.Context(), &kernel.Command{Argv: argv}, nil, long)
	if err != nil {
		t.Errorf("run: %v", err)
		return ""
	}
	return string(r.Stdout) + string(r.Stderr)
}

func bySpawn(t *testing.T, _ *kernel.Lab, m *kernel.Machine, _ []kernel.Resource, argv []string) string {
	p, err := m.Spawn(t.Context(), &kernel.Command{Argv: argv}, "", kernel.RestartNo)
	if err != nil {
		t.Errorf("spawn: %v", err)
		return ""
	}
	return logOf(t, p)
}

// logOf is what a process has said when it has ended.
func logOf(t *testing.T, p *kernel.Process) string {
	if _, err := p.Wait(t.Context(), long); err != nil {
		t.Error(err)
	}
	b, err := p.Log()
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func byShell(t *testing.T, _ *kernel.Lab, m *kernel.Machine, _ []kernel.Resource, argv []string) string {
	var out bytes.Buffer
	if _, err := m.Interact(t.Context(), &kernel.Command{Argv: argv}, nil, &out); err != nil {
		t.Errorf("shell: %v", err)
	}
	return out.String()
}

// byExec has the caller's own terminal as the command's standard error, as when the
// output of msh exec is sent elsewhere.
func byExec(t *testing.T, _ *kernel.Lab, m *kernel.Machine, _ []kernel.Resource, argv []string) string {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer tty.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Error(err)
		return ""
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Error(err)
		return ""
	}
	said := make(chan string)
	go func() { b, _ := io.ReadAll(r); r.Close(); said <- string(b) }()
	_, err = m.Attach(t.Context(), &kernel.Command{Argv: argv}, [3]int{int(null.Fd()), int(w.Fd()), int(tty.Fd())}, nil)
	w.Close()
	if err != nil {
		t.Errorf("exec: %v", err)
	}
	return <-said
}

func byInit(t *testing.T, l *kernel.Lab, _ *kernel.Machine, rs []kernel.Resource, argv []string) string {
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: rs, Init: argv})
	defer m.Destroy(context.Background())
	for end := time.Now().Add(long); m.State() == "running" && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	logs, err := m.Logs()
	if err != nil {
		t.Error(err)
	}
	return string(logs["init"])
}

// byRestart is a process that failed, and was started again by a supervisor.
func byRestart(t *testing.T, l *kernel.Lab, _ *kernel.Machine, rs []kernel.Resource, argv []string) string {
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: rs, Keep: true})
	defer m.Destroy(context.Background())
	again := []string{"/bin/sh", "-c", `mkdir /tmp/escape-been 2>/dev/null && exit 1; exec env -u PWD "$@"`, "sh"}
	p, err := m.Spawn(t.Context(), &kernel.Command{Argv: append(again, argv...)}, "", kernel.RestartOnFailure)
	if err != nil {
		t.Errorf("spawn: %v", err)
		return ""
	}
	return logOf(t, p)
}

// byNested is a machine of the machine's, which asks for no level of its own.
func byNested(t *testing.T, l *kernel.Lab, _ *kernel.Machine, rs []kernel.Resource, argv []string) string {
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: append(slices.Clone(rs), &kernel.Children{Max: 1})})
	defer m.Destroy(context.Background())
	inner := fork(t, l, m, &kernel.Spec{Resources: []kernel.Resource{
		&kernel.Root{Source: "/", Write: "overlay", Size: rootSize}, &kernel.Space{Name: "pidspace"},
		&kernel.Mount{Source: "/attack", Target: "/attack", Type: "bind"}, &kernel.Mount{Source: "/shared", Target: "/shared", Type: "bind"},
	}})
	defer inner.Destroy(context.Background())
	return byRun(t, l, inner, nil, argv)
}
