package main

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"msh/kernel/criu"
)

//go:embed snapshot.star
var snapshotSource []byte

// ourSnapshot measures, from inside the script, what becomes of a machine with so many
// MiB of memory.
func ourSnapshot(way string, mib int) func(*bench) (func() (float64, error), error) {
	return func(b *bench) (func() (float64, error), error) {
		run, err := b.snapshotScript(way, mib)
		if err != nil {
			return nil, err
		}
		return func() (v float64, err error) {
			out, err := run()
			if err == nil {
				_, err = fmt.Sscan(out, &v)
			}
			return v, err
		}, nil
	}
}

// frozenLab measures for how long a lab stands still, and for how long its slowest
// machine when that is saved alone.
func frozenLab(what, mib int) func(*bench) (func() (float64, error), error) {
	return func(b *bench) (func() (float64, error), error) {
		run, err := b.snapshotScript("lab", mib)
		if err != nil {
			return nil, err
		}
		return b.pair("frozen", 0, func() (v [2]float64, err error) {
			out, err := run()
			if err == nil {
				_, err = fmt.Sscan(out, &v[0], &v[1])
			}
			return v, err
		}).sample(what), nil
	}
}

// The two that frozenLab measures.
const (
	together = iota
	slowest
)

// snapshotScript is a run of snapshot.star, which gives what that prints.
func (b *bench) snapshotScript(way string, mib int) (func() (string, error), error) {
	msh, err := b.msh()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(b.dir, "snapshot.star")
	if err := os.WriteFile(file, snapshotSource, 0o644); err != nil {
		return nil, err
	}
	return func() (string, error) {
		out, err := exec.CommandContext(b.ctx, msh, file, way, fmt.Sprint(mib), b.dir).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w\n%s", way, err, out)
		}
		return string(out), err
	}, nil
}

// bareCriu measures criu's own dump and restore of the same program, by itself, with
// its images in the same directory.
func bareCriu(mib int) func(*bench) (func() (float64, error), error) {
	return func(b *bench) (func() (float64, error), error) {
		c, err := criu.Find(b.ctx)
		if err != nil {
			return nil, fmt.Errorf("criu: %w", errAbsent)
		}
		return func() (float64, error) {
			dir := filepath.Join(b.dir, "images")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return 0, err
			}
			defer os.RemoveAll(dir)
			ready := filepath.Join(dir, "ready")
			hold := exec.Command("python3", "-c", fmt.Sprintf("import os,time\nos.closerange(3, 1024) # what the caller has open is not the image's\nb = bytearray(os.urandom(1 << 20) * %d)\nopen(%q, 'w')\ntime.sleep(1000)\n", mib, ready))
			hold.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return 0, err
			}
			defer null.Close()
			hold.Stdin, hold.Stdout, hold.Stderr = null, null, null
			if err := hold.Start(); err != nil {
				return 0, err
			}
			defer hold.Process.Kill()
			for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
				if _, err := os.Stat(ready); err == nil {
					break
				}
				if time.Now().After(end) {
					return 0, fmt.Errorf("python3 does not come up")
				}
			}
			reaped := make(chan struct{})
			go func() { hold.Wait(); close(reaped) }() // its number has to be free for the restore
			begin := time.Now()
			if out, err := exec.CommandContext(b.ctx, c.Path, "dump", "-t", fmt.Sprint(hold.Process.Pid), "-D", dir).CombinedOutput(); err != nil {
				return 0, fmt.Errorf("criu dump: %w\n%s", err, out)
			}
			<-reaped
			if out, err := exec.CommandContext(b.ctx, c.Path, "restore", "-d", "-D", dir, "--pidfile", "pid").CombinedOutput(); err != nil {
				return 0, fmt.Errorf("criu restore: %w\n%s", err, out)
			}
			took := float64(time.Since(begin)) / 1e6
			text, err := os.ReadFile(filepath.Join(dir, "pid"))
			if err != nil {
				return 0, err
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil || pid < 2 {
				return 0, fmt.Errorf("criu restore: process %q", text)
			}
			return took, syscall.Kill(pid, syscall.SIGKILL)
		}, nil
	}
}
