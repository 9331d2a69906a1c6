package kernel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process that is to be restarted needs somebody who stays awake for it. While
// its script runs that is the script's msh. In a machine that outlives its script
// it is a supervisor: one more msh, of its own session, that ends with the
// process, or with the machine by way of the ledger.
//
//	msh                           msh supervise LAB/MACHINE
//	 order, as JSON ──stdin──────>  writes itself into the ledger, starts the process
//	 <──────stdout── "ok" or error
//	 reads spawn-N.json <─────────  writes it at each start and at the end
//	 writes spawn-N.stop ────────>  looks for it before a restart

// order is what a supervisor is told.
type order struct {
	Command *Command
	Log     string
	Restart Restart
	Status  string // the file to write

	Uname *Uname // instead of all that: what to answer to uname(2)
}

// report is what a supervisor writes.
type report struct {
	Pid   int
	Start uint64 // with Pid it names the process for ever
	Done  bool
	Code  int

	Watchman watchman // who wrote it
}

// supervised is the script's side.
type supervised struct{ status, stop string }

// spawnSupervised starts a supervisor and returns when the process runs.
func (m *Machine) spawnSupervised(ctx context.Context, c *Command, log string, restart Restart) (*Process, error) {
	base := strings.TrimSuffix(log, ".log")
	if filepath.Dir(log) != filepath.Join(m.Dir(), logsDir) { // the log is the user's: keep the rest in our own directory
		own, err := m.newLog()
		if err != nil {
			return nil, err
		}
		base = strings.TrimSuffix(own, ".log")
	}
	s := &supervised{base + ".json", base + ".stop"}
	raw, err := json.Marshal(order{Command: c, Log: log, Restart: restart, Status: s.status})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"msh", "supervise", m.ID()}
	cmd.Env = append(m.host.space.stayAwake(), "MSH_STATE="+m.host.State, "PATH="+DefaultPath)
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(string(raw))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a supervisor: %w", err)
	}
	// Not exec.CommandContext: ctx is that of the call, which ends when the script
	// or an input to the REPL does, and the supervisor is to outlive both.
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	line, _ := bufio.NewReader(out).ReadString('\n')
	stop()
	out.Close()
	if line != "ok\n" {
		cmd.Process.Kill()
		cmd.Wait()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if line == "" {
			line = "it ended at once"
		}
		return nil, fmt.Errorf("supervise %s in %s: %s", c.Argv[0], m.Name(), strings.TrimSpace(line))
	}
	go cmd.Wait() // reap it, if it ends before this msh does
	return &Process{m: m, c: c, log: log, restart: restart, far: s}, nil
}

// Supervise is the supervisor: it reads an order, starts the process, answers,
// and stays until the process has ended for good.
func (h *Host) Supervise(ctx context.Context, name string, in io.Reader, out io.Writer) error {
	err := h.supervise(ctx, name, in, out)
	if err != nil {
		fmt.Fprintln(out, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	return err
}

func (h *Host) supervise(ctx context.Context, name string, in io.Reader, out io.Writer) error {
	var o order
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	if o.Uname != nil {
		return h.answerForEver(name, o.Uname, out)
	}
	m, err := h.Find(name)
	if err != nil {
		return err
	}
	defer m.close()
	me := watchman{os.Getpid(), startTime(os.Getpid())}
	if err := m.write("supervisor", me); err != nil {
		return err
	}
	stop := strings.TrimSuffix(o.Status, ".json") + ".stop"
	p := newProcess(m, o.Command, o.Log, o.Restart)
	p.onChange = func(r report) {
		r.Watchman = me
		if !r.Done { // nor reaped: the number is its own
			r.Start = startTime(r.Pid)
		}
		writeReport(o.Status, r)
	}
	p.mayRestart = func() bool { _, err := os.Stat(stop); return errors.Is(err, fs.ErrNotExist) }
	if err := p.start(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "ok")
	if c, ok := out.(io.Closer); ok {
		c.Close() // whoever waits for the end of the script's output must not wait for this
	}
	<-p.done
	return nil
}

func writeReport(file string, r report) {
	b, err := json.Marshal(r)
	if err != nil {
		return
	}
	// The machine's directory may be gone: then nobody reads it either.
	if os.WriteFile(file+".new", b, 0o600) == nil {
		os.Rename(file+".new", file)
	}
}

func (s *supervised) read() (report, error) {
	var r report
	b, err := os.ReadFile(s.status)
	if errors.Is(err, fs.ErrNotExist) {
		return report{Done: true, Code: 137}, nil // gone with its machine
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil || r.Done {
		return r, err
	}
	if startTime(r.Watchman.Pid) != r.Watchman.Start {
		// The supervisor was killed: nobody will say when the process has ended.
		r.Done, r.Code = startTime(r.Pid) != r.Start, 137
	}
	return r, nil
}

func (s *supervised) wait(ctx context.Context) (int, error) {
	var r report
	err := poll(ctx, func() (ok bool, err error) {
		r, err = s.read()
		return r.Done, err
	})
	return r.Code, err
}

// kill signals the process; after a signal that ends it, it is not restarted.
func (s *supervised) kill(sig unix.Signal) error {
	if ends(sig) {
		if err := os.WriteFile(s.stop, nil, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	r, err := s.read()
	if err != nil || r.Done || r.Pid == 0 {
		return err
	}
	fd, err := openProcess(r.Pid, r.Start)
	if err == nil {
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
		unix.Close(fd)
	}
	if err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w", r.Pid, err)
	}
	return nil
}

// watchman is a supervisor as the ledger knows it.
type watchman struct {
	Pid   int
	Start uint64
}

// dismiss ends a supervisor, if it is still the one that was written down.
func (w watchman) dismiss(ctx context.Context) error {
	if w.Pid == os.Getpid() {
		return nil
	}
	fd, err := openProcess(w.Pid, w.Start)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("dismiss supervisor %d: %w", w.Pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	c, err := newCanceller(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.await(ctx, time.Time{}, fd)
	return err
}
