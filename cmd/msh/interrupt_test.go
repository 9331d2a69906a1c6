package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInterruptSnapshot sends a SIGINT to `msh hibernate` once the machine is about to stand still: it runs on, there is no file,
// and the exit code is that of an interrupt.
func TestInterruptSnapshot(t *testing.T) {
	script := filepath.Join(t.TempDir(), "held.star")
	if err := os.WriteFile(script, []byte(`
m = machine_rfork(name="m", resources=[root("/"), pidspace(), netspace()])
m.spawn(["python3", "-c", "import os, time; b = os.urandom(100 << 20); open('/ready', 'w'); time.sleep(1000)"])
m.wait_file("/ready", timeout="60s")
`), 0o644); err != nil {
		t.Fatal(err)
	}
	up := mshCommand(t, "up", script)
	if out, err := up.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	msh := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "msh", args...)
		cmd.Env = up.Env
		return cmd
	}
	defer func() {
		if out, err := msh("down", "held").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		msh("gc").Run()
	}()
	var state string
	for _, v := range up.Env {
		if s, ok := strings.CutPrefix(v, "MSH_STATE="); ok {
			state = s
		}
	}
	file := filepath.Join(t.TempDir(), "f.msh")
	note := filepath.Join(state, "held", ".still")
	for range 10 { // it may be done before the signal comes
		os.Remove(file)
		cmd := msh("hibernate", "--keep-running", "m", file)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := os.Lstat(note); err == nil {
				break
			}
		}
		cmd.Process.Signal(unix.SIGINT)
		if cmd.Wait() == nil {
			continue
		}
		if code := cmd.ProcessState.ExitCode(); code != 130 || stderr.String() != "msh: SIGINT: held/m runs on as before, and nothing is saved\n" {
			t.Errorf("exit code %d: %s", code, stderr.Bytes())
		}
		if _, err := os.Lstat(file); err == nil {
			t.Error("there is a file")
		}
		if out, err := msh("exec", "m", "--", "cat", "/proc/1/comm").CombinedOutput(); err != nil {
			t.Errorf("it does not run: %v\n%s", err, out)
		}
		return
	}
	t.Error("it was never interrupted")
}
