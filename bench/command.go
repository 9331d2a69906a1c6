package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience is how long a measured command may take before it counts as hung.
const patience = 30 * time.Second

// command is a program that is run again and again, and what it must print.
type command struct {
	argv   []string
	output string   // of stdout and stderr together
	sink   *os.File // both go to a file, so that no pipe is read while the clock runs
}

// newCommand looks the program up; errAbsent where it is not installed.
func (b *bench) newCommand(output string, argv ...string) (*command, error) {
	path, err := lookPath(argv[0])
	if err != nil {
		return nil, err
	}
	sink, err := os.CreateTemp(b.dir, "output-")
	if err != nil {
		return nil, err
	}
	b.onCleanUp(sink.Close)
	return &command{append([]string{path}, argv[1:]...), output, sink}, nil
}

// lookPath finds a program also where a user's PATH may not look.
func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, errAbsent)
}

// once runs it to its end; anything but success and the expected output is an
// error. os/exec starts by vfork, and it is told of no pipes to copy.
func (c *command) once() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Stdout, cmd.Stderr = c.sink, c.sink
	// A group of its own: Ctrl-C reaches the bench alone, which ends in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := cmd.Run()
	return c.verify(errors.Join(err, ctx.Err()))
}

// verify joins a command's error with what it has printed, and empties the sink.
func (c *command) verify(err error) error {
	st, statErr := c.sink.Stat()
	if statErr != nil {
		return errors.Join(err, statErr)
	}
	if err == nil && st.Size() == 0 && c.output == "" {
		return nil
	}
	got, readErr := io.ReadAll(io.NewSectionReader(c.sink, 0, st.Size()))
	_, seekErr := c.sink.Seek(0, io.SeekStart)
	if e := errors.Join(readErr, seekErr, c.sink.Truncate(0)); e != nil {
		return errors.Join(err, e)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w: %s", strings.Join(c.argv, " "), err, strings.TrimSpace(string(got)))
	case string(got) != c.output:
		return fmt.Errorf("%s: printed %q, want %q", strings.Join(c.argv, " "), got, c.output)
	}
	return nil
}

// timed measures f in milliseconds.
func timed(f func() error) (float64, error) {
	begin := time.Now()
	err := f()
	return time.Since(begin).Seconds() * 1e3, err
}

// goBuild builds a program, as the user who called sudo: root's files in the
// user's build cache would be in the way of the next build.
func (b *bench) goBuild(output string, what ...string) error {
	dir := filepath.Dir(output)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(b.ctx, "go", append([]string{"build", "-trimpath", "-buildvcs=false", "-o", output}, what...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil && uid != 0 {
		u, err := user.LookupId(strconv.Itoa(uid))
		if err != nil {
			return err
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil {
			return err
		}
		if err := errors.Join(os.Chown(dir, uid, gid), os.Chmod(b.dir, 0o755)); err != nil {
			return err
		}
		cmd.Env = append(cmd.Env, "HOME="+u.HomeDir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(what, " "), err, out)
	}
	return install(output)
}

// install puts a copy in the place of a program that was just linked, as install(1)
// does. The linker writes through a mapping, page by page, and so the kernel keeps
// the file in single pages, which takes longer to start than any program of the
// peers', that were copied or read from the disk once.
func install(program string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := os.WriteFile(program+".new", text, 0o755); err != nil {
		return err
	}
	return os.Rename(program+".new", program)
}
