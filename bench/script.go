package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed loop.star
var loopSource []byte

//go:embed cold.star
var coldSource string

// script is an msh that runs a script which does one cycle for every word put
// into the pipe, and prints how long that took by its own clock. Between two
// cycles it sleeps in the kernel, so it takes nothing from the peers' time.
type script struct {
	name   string
	pid    int // of its live machine's init
	cmd    *exec.Cmd
	orders *os.File
	lines  *bufio.Scanner
	errors *os.File
	failed bool // its error has been told
}

// msh builds the binary, once.
func (b *bench) msh() (string, error) {
	if b.binary == "" {
		path := filepath.Join(b.dir, "msh", "msh")
		if err := b.goBuild(path, "msh/cmd/msh"); err != nil {
			return "", err
		}
		b.binary = path
	}
	return b.binary, nil
}

// startScript starts loop.star, once, and looks at its live machine.
func (b *bench) startScript() (*script, error) {
	if b.script != nil {
		return b.script, nil
	}
	s, err := b.startOrders("loop", loopSource, b.lower)
	if err != nil {
		return nil, err
	}
	b.script = s
	line := s.line()
	if s.pid, err = strconv.Atoi(line); err != nil {
		return nil, s.failure("the pid of its machine", line)
	}
	return s, checkMachine(s.pid)
}

// startOrders starts a script that takes orders: its last argument is the pipe.
func (b *bench) startOrders(name string, source []byte, args ...string) (*script, error) {
	msh, err := b.msh()
	if err != nil {
		return nil, err
	}
	file, fifo := filepath.Join(b.dir, name+".star"), filepath.Join(b.dir, name+".orders")
	if err := errors.Join(os.WriteFile(file, source, 0o644), syscall.Mkfifo(fifo, 0o600)); err != nil {
		return nil, err
	}
	s := &script{name: name, cmd: exec.Command(msh, append(append([]string{file}, args...), fifo)...)}
	// Open for both, it can be opened before the script reads, and written
	// without asking whether it still does. Its reader sees the end when the
	// bench is gone, however that came about.
	if s.orders, err = os.OpenFile(fifo, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if s.errors, err = os.Create(filepath.Join(b.dir, name+".errors")); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.lines = bufio.NewScanner(out)
	s.cmd.Stderr = s.errors
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	b.onCleanUp(s.end)
	return s, nil
}

// line is the next line that the script prints; "" when it has ended.
func (s *script) line() string {
	hung := time.AfterFunc(patience, func() { s.cmd.Process.Signal(syscall.SIGTERM) })
	defer hung.Stop()
	s.lines.Scan()
	return s.lines.Text()
}

// cycle has the script do something once: milliseconds.
func (s *script) cycle(word string) (float64, error) {
	if _, err := fmt.Fprintln(s.orders, word); err != nil {
		return 0, err
	}
	line := s.line()
	ms, err := strconv.ParseFloat(line, 64)
	if err != nil {
		return 0, s.failure("milliseconds for "+word, line)
	}
	return ms, nil
}

// failure is the error of a script that does not do as it should. It is told
// once: that such a script does not end well either is no news.
func (s *script) failure(want, got string) error {
	s.failed = true
	text, err := os.ReadFile(s.errors.Name())
	return errors.Join(fmt.Errorf("%s.star: got %q, want %s\n%s", s.name, got, want, text), err)
}

// end lets the script come to its end, which takes its machine with it.
func (s *script) end() error {
	defer s.orders.Close()
	defer s.errors.Close()
	fmt.Fprintln(s.orders, "end")
	for s.line() != "" {
	}
	if err := s.cmd.Wait(); err != nil && !s.failed {
		return s.failure("a quiet end", err.Error())
	}
	return nil
}

func scriptCycle(word string) func(*bench) (func() (float64, error), error) {
	return func(b *bench) (func() (float64, error), error) {
		s, err := b.startScript()
		if err != nil {
			return nil, err
		}
		return func() (float64, error) { return s.cycle(word) }, nil
	}
}

// coldScript measures a whole msh that makes the machine, runs true and ends.
func (b *bench) coldScript() (func() (float64, error), error) {
	msh, err := b.msh()
	if err != nil {
		return nil, err
	}
	return b.timedCommand("", msh, "-c", strings.ReplaceAll(coldSource, "ROOT", strconv.Quote(b.lower)))
}

func (b *bench) coldPass() (func() (float64, error), error) {
	msh, err := b.msh()
	if err != nil {
		return nil, err
	}
	return b.timedCommand("", msh, "-c", "pass")
}

// initPSS reads what memory the init of an idle machine costs, KiB.
func (b *bench) initPSS() (func() (float64, error), error) {
	s, err := b.startScript()
	if err != nil {
		return nil, err
	}
	return func() (float64, error) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				return strconv.ParseFloat(f[1], 64)
			}
		}
		return 0, fmt.Errorf("no Pss in smaps_rollup of process %d", s.pid)
	}, nil
}
