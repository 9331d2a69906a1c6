package escape

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// These use up what the machine was given, and succeed when it is more than that.

// forkBomb starts processes until it cannot, and at most twice as many as there may
// be: where nothing holds it, it stops by itself.
func forkBomb(t *Target) error {
	var pids []int
	defer func() {
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
			unix.Wait4(pid, nil, 0, nil)
		}
	}()
	for len(pids) < 2*t.Pids {
		pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		if err != nil {
			return fmt.Errorf("after %d processes: %w", len(pids), err)
		}
		pids = append(pids, pid)
	}
	return nil
}

// manyFiles opens files until it cannot, by raising its own limit first.
func manyFiles(t *Target) error {
	for _, hard := range []uint64{1 << 30, 4 * t.Nofile} {
		unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: hard, Max: hard})
	}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil && lim.Cur < lim.Max {
		lim.Cur = lim.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	}
	for n := uint64(0); n <= t.Nofile; n++ {
		if _, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("after %d descriptors: %w", n, err)
		}
	}
	return nil
}

// manyInodes is how many files without anything in them the test gives room for, by
// the size of the machine's root, and a few more.
const manyInodes = 2500

// emptyFiles makes files that take no room but the kernel's own memory.
func emptyFiles(*Target) error {
	dir, err := os.MkdirTemp("/", "escape-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	for n := range manyInodes {
		if err := unix.Mknodat(at, strconv.Itoa(n), unix.S_IFREG|0o600, 0); err != nil {
			return fmt.Errorf("after %d files: %w", n, err)
		}
	}
	return nil
}

// fill writes to its root more than it has room for.
func fill(*Target) error {
	dir, err := os.MkdirTemp("/", "escape-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	f, err := os.Create(dir + "/fill")
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for range rootSize>>20 + 1 {
		if _, err := f.Write(block); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return err
			}
			return fmt.Errorf("fill: %w", err)
		}
	}
	return nil
}

// rootSize is what the machine's root may hold.
const rootSize = 1 << 20
