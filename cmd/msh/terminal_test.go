package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"msh/kernel"
)

// TestTerminal runs msh on a pseudo-terminal, as someone would sit before it: exec and shell give the command a terminal
// of the machine's own, of the same size, on which ^C is the machine's; and the REPL edits lines.
func TestTerminal(t *testing.T) {
	up := mshCommand(t, "-")
	up.Stdin = strings.NewReader(`machine_rfork([pidspace(), root("/"), uname(nodename="box")], name="box", keep=True)`)
	up.Args = append(up.Args[:1], "--lab", "tty", "-")
	if out, err := up.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	down := exec.Command("msh", "down", "tty")
	down.Env = up.Env
	defer down.Run()
	env := map[string]string{"TERM": "xterm", "HOME": t.TempDir()}
	for _, v := range up.Env {
		if name, value, _ := strings.Cut(v, "="); name == "MSH_STATE" || name == "PATH" {
			env[name] = value
		}
	}

	tests := []struct {
		name  string
		args  []string
		typed string
		want  []string // in this order
		code  int
	}{
		{"exec", []string{"exec", "box", "--", "sh", "-c", "tty; stty size; echo $TERM; exit 5"}, "", []string{"/dev/pts/", "33 77", "xterm"}, 5},
		{"shell", []string{"shell", "box"}, "hostname\nexit 3\n", []string{"box"}, 3},
		{"interrupt", []string{"exec", "box", "--", "sh", "-c", "trap 'echo caught; exit 7' INT; echo waiting; while :; do sleep 0.05; done"}, "\x03", []string{"caught"}, 7},
		{"repl", nil, "6 * 7\n\x04", []string{">>> ", "42"}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, code := onTerminal(t, append([]string{"msh"}, test.args...), env, test.typed)
			rest := out
			for _, want := range test.want {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("terminal shows %q, want %q in it", out, want)
				}
				rest = after
			}
			if code != test.code {
				t.Errorf("exit code %d, want %d; terminal shows %q", code, test.code, out)
			}
		})
	}
}

// onTerminal runs a command of the host's on a terminal of 77 columns and 33 rows.
func onTerminal(t *testing.T, argv []string, env map[string]string, typed string) (shown string, code int) {
	t.Helper()
	h, err := kernel.NewHost(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	lab, err := h.NewLab("terminal", false)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := lab.Host().OpenTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	read := make(chan string)
	go func() {
		b, _ := io.ReadAll(tty.Master)
		read <- string(b)
	}()
	go func() {
		// Once the program reads: what is typed before the terminal is raw is the outer one's to interpret.
		time.Sleep(500 * time.Millisecond)
		io.WriteString(tty.Master, typed)
	}()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sized := append([]string{"sh", "-c", `stty rows 33 cols 77; exec "$@"`, "sh", path}, argv[1:]...)
	code, err = lab.Host().Shell(ctx, &kernel.Command{Argv: sized, Env: env, Cwd: os.TempDir()}, tty)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case shown = <-read:
	case <-time.After(2 * time.Second):
		t.Fatal("the terminal is still held")
	}
	return shown, code
}

// terminalCommand is `terminal SIZE NEW-SIZE FILE COMMAND…`: it runs a command of the script's on a terminal of ROWSxCOLUMNS
// that is the test's user's, gives that the new size once it shows "ready", and writes what it has shown, and the exit code,
// into the file.
func terminalCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: terminal SIZE NEW-SIZE FILE COMMAND…")
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	ts.Check(err)
	defer master.Close()
	fd := int(master.Fd())
	ts.Check(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	ts.Check(err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	ts.Check(err)
	defer slave.Close()
	ts.Check(slave.Chown(testUser, -1))
	resize := func(size string) {
		var w unix.Winsize
		_, err := fmt.Sscanf(size, "%dx%d", &w.Row, &w.Col)
		ts.Check(err)
		ts.Check(unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &w))
	}
	resize(args[0])
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	ts.Check(err)

	var program string
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if program = filepath.Join(dir, args[3]); exec.Command("test", "-x", program).Run() == nil {
			break
		}
	}
	cmd := exec.Command(program, args[4:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "XDG_RUNTIME_DIR", "TMPDIR"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	watchdog := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	shown := make(chan []byte)
	go func() { // until all have closed the other side, the test's own included
		var all []byte
		b := make([]byte, 4096)
		for resized := false; ; {
			n, err := master.Read(b)
			all = append(all, b[:n]...)
			if !resized && bytes.Contains(all, []byte("ready")) {
				resized = true
				resize(args[1])
			}
			if err != nil {
				shown <- all
				return
			}
		}
	}()
	cmd.Wait()
	after, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	ts.Check(err)
	slave.Close()
	text := strings.ReplaceAll(string(<-shown), "\r\n", "\n")
	if *after != *before {
		text += "the terminal is not as it was\n"
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), fmt.Appendf(nil, "%sexit %d\n", text, cmd.ProcessState.ExitCode()), 0o644))
}
