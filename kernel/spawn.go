package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// Restart says when a spawned process is started again.
type Restart string

// The restart policies, as in other service managers.
const (
	RestartNo        Restart = "no"
	RestartOnFailure Restart = "on-failure" // a code other than 0
	RestartAlways    Restart = "always"
)

// Validate checks that it is one of them.
func (r Restart) Validate() error {
	switch r {
	case RestartNo, RestartOnFailure, RestartAlways:
		return nil
	}
	return bad("spawn", "restart", string(r), `"no", "on-failure" or "always"`)
}

// Pauses before a restart: the first at once, then doubling, so that a program
// that cannot start does not use up the machine; a process that ran for longer
// than steady starts from the first pause again.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
	steady     = 10 * time.Second
)

// Process is a program that runs in a machine on its own. What it writes goes to
// a log file.
type Process struct {
	m       *Machine
	c       *Command
	log     string
	restart Restart

	mu      sync.Mutex
	running *process // the present one, until it is reaped
	pid     int
	last    status
	starts  int
	stopped bool          // no restart any more
	wake    chan struct{} // closed by stop: ends a pause
	done    chan struct{} // closed when it has ended for good

	far        *supervised  // set where a supervisor has the process
	onChange   func(report) // in a supervisor: after each start and end
	mayRestart func() bool
}

func newProcess(m *Machine, c *Command, log string, restart Restart) *Process {
	return &Process{m: m, c: c, log: log, restart: restart, wake: make(chan struct{}), done: make(chan struct{}),
		onChange: func(report) {}, mayRestart: func() bool { return true }}
}

// Spawn starts a program in the machine and returns. log "" is a file of msh's,
// gone with the machine. It returns once the program has been executed.
func (m *Machine) Spawn(ctx context.Context, c *Command, log string, restart Restart) (*Process, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := restart.Validate(); err != nil {
		return nil, err
	}
	if log == "" {
		if m.isHost() {
			return nil, bad("spawn", "log", nil, "a file for what a process of the host writes")
		}
		var err error
		if log, err = m.newLog(); err != nil {
			return nil, err
		}
	}
	if m.Spec().Keep && restart != RestartNo {
		return m.spawnSupervised(ctx, c, log, restart)
	}
	p := newProcess(m, c, log, restart)
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	if m.isHost() && m.lab != nil {
		m.lab.mu.Lock()
		m.lab.spawned = append(m.lab.spawned, p)
		m.lab.mu.Unlock()
	}
	return p, nil
}

// patience is how long a process of the host's has to end when it is asked to.
const patience = 2 * time.Second

// finish ends a process: what a script has started ends with it.
func (p *Process) finish(ctx context.Context) error {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if !p.Alive() {
			return nil
		}
		p.stop()
		if err := p.killGroup(sig); err != nil {
			return err
		}
		if _, err := p.Wait(ctx, patience); err == nil {
			return nil
		}
	}
	return fmt.Errorf("end %s on the host: it does not die", p.c.Argv[0])
}

// start starts the program once and has its end looked after.
func (p *Process) start(ctx context.Context) error {
	b, s, done, err := p.m.entry()
	if err != nil {
		return err
	}
	defer done()
	var wait stage0.Ref
	shepherded := p.m.shepherds()
	if shepherded {
		wait = s.shepherd()
	}
	if _, err := p.m.command(ctx, b, s, p.c, 0); err != nil {
		return err
	}
	null, err := openNull(p.m.self.Root)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	out, err := openLog(p.log)
	if err != nil {
		return bad("spawn", "log", p.log, "a file to write to: "+err.Error())
	}
	defer unix.Close(out)
	b.stdio = [3]int{null, out, out}
	proc, err := b.startExecuted(ctx)
	if err != nil {
		var e *stepError
		if proc != nil && errors.As(err, &e) {
			err = p.m.notStarted(p.c, proc)
		}
		if proc != nil {
			proc.close()
		}
		return err
	}
	waited := proc.pidfd
	if shepherded {
		if err := proc.herd(wait); err != nil {
			proc.kill()
			proc.close()
			return err
		}
		waited = proc.shepherd.pidfd
	}
	p.mu.Lock()
	p.running, p.pid = proc, proc.pid
	p.starts++
	p.mu.Unlock()
	p.onChange(report{Pid: proc.pid})
	begin := time.Now()
	if _, err := watch(waited, func() { p.ended(proc, time.Since(begin)) }); err != nil {
		p.mu.Lock()
		p.running = nil
		p.mu.Unlock()
		unix.PidfdSendSignal(proc.pidfd, unix.SIGKILL, nil, 0)
		reap(waited)
		proc.close()
		return err
	}
	return nil
}

// startExecuted starts the process and waits until its program has been executed
// or could not be, which is an error; the process is then returned for its steps.
func (b *birth) startExecuted(ctx context.Context) (*process, error) {
	var line [2]int
	if err := unix.Pipe2(line[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(line[0])
	// The program closes it on exec, like all its descriptors from 3 on; that it
	// has it at all takes a step that names it.
	b.program.Hold(syncFD)
	b.files[syncFD] = line[1]
	p, err := b.start()
	unix.Close(line[1])
	if err != nil {
		return nil, err
	}
	cancel, err := newCanceller(ctx)
	if err == nil {
		_, err = cancel.await(ctx, time.Time{}, line[0])
		cancel.close()
	}
	if err != nil {
		p.kill()
		return p, err
	}
	if err := p.failure(); err != nil {
		reap(p.pidfd)
		return p, err
	}
	return p, nil
}

// ended is called when the process has ended: it reaps it, and starts it again
// where the policy says so.
func (p *Process) ended(proc *process, ran time.Duration) {
	if proc.shepherd == nil {
		st, _ := reap(proc.pidfd)
		p.endedWith(proc, st, ran)
		return
	}
	begin := time.Now().Add(-ran)
	st, adopted := proc.reapShepherd()
	if adopted { // init reaps it; its end is told all the same
		_, err := watch(proc.pidfd, func() { p.endedWith(proc, statusOf(proc.pidfd), time.Since(begin)) })
		if err == nil {
			return
		}
		st = status{false, int(unix.SIGKILL)}
	}
	p.endedWith(proc, st, ran)
}

func (p *Process) endedWith(proc *process, st status, ran time.Duration) {
	p.mu.Lock()
	p.last, p.running = st, nil
	proc.close()
	again := !p.stopped && p.mayRestart() && (p.restart == RestartAlways || p.restart == RestartOnFailure && st.Code() != 0)
	if ran > steady {
		p.starts = 1
	}
	pause := min(firstPause<<min(p.starts-1, 10), lastPause)
	p.mu.Unlock()
	if !again {
		p.end()
		return
	}
	go func() {
		select {
		case <-p.wake:
			p.end()
			return
		case <-time.After(pause):
		}
		if !p.mayRestart() {
			p.end()
			return
		}
		if err := p.start(context.Background()); err != nil {
			// The machine is dead, or the program gone: its log says so.
			if f, e := os.OpenFile(p.log, os.O_WRONLY|os.O_APPEND, 0); e == nil {
				fmt.Fprintf(f, "msh: restart %s: %v\n", p.c.Argv[0], err)
				f.Close()
			}
			p.end()
		}
	}()
}

// end says that it has ended for good.
func (p *Process) end() {
	p.mu.Lock()
	r := report{Pid: p.pid, Done: true, Code: p.last.Code()}
	p.mu.Unlock()
	p.onChange(r)
	close(p.done)
}

// stop ends restarts.
func (p *Process) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		p.stopped = true
		close(p.wake)
	}
}

// Argv is the program and its arguments.
func (p *Process) Argv() []string { return p.c.Argv }

// Pid is the number of the present process, or of the last one, seen from the host.
func (p *Process) Pid() int {
	if p.far != nil {
		r, _ := p.far.read()
		return r.Pid
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Alive tells whether it runs, or will be started again.
func (p *Process) Alive() bool {
	if p.far != nil {
		r, err := p.far.read()
		return err == nil && !r.Done
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Code is how it ended; ok is false while it runs.
func (p *Process) Code() (code int, ok bool) {
	if p.far != nil {
		r, err := p.far.read()
		return r.Code, err == nil && r.Done
	}
	if p.Alive() {
		return 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last.Code(), true
}

// Wait waits for its end, restarts included; timeout 0 is for ever.
func (p *Process) Wait(ctx context.Context, timeout time.Duration) (int, error) {
	tooLate := func() error {
		return fmt.Errorf("wait for %s in %s: still running after %v", strings.Join(p.c.Argv, " "), p.m.Name(), timeout)
	}
	if p.far != nil {
		inner := ctx
		if timeout > 0 {
			var cancel context.CancelFunc
			inner, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		code, err := p.far.wait(inner)
		if err != nil && inner.Err() != nil && ctx.Err() == nil {
			err = tooLate()
		}
		return code, err
	}
	var late <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-p.done:
		code, _ := p.Code()
		return code, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-late:
		return 0, tooLate()
	}
}

// Kill sends the process a signal. After one that ends it, it is not restarted.
func (p *Process) Kill(sig unix.Signal) error {
	if p.far != nil {
		return p.far.kill(sig)
	}
	if ends(sig) {
		p.stop()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		return nil
	}
	if err := unix.PidfdSendSignal(p.running.pidfd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill %s: %w", p.c.Argv[0], err)
	}
	return nil
}

// killGroup signals the process and what it has started, as far as that is in its
// process group yet: it leads one (Machine.command).
func (p *Process) killGroup(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		return nil
	}
	const processGroup = 1 << 2 // PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9
	err := unix.PidfdSendSignal(p.running.pidfd, sig, nil, processGroup)
	if err == unix.EINVAL {
		err = unix.Kill(-p.running.pid, sig)
	}
	if err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill the group of %s: %w", p.c.Argv[0], err)
	}
	return nil
}

// ends tells whether a signal is sent to end a program.
func ends(sig unix.Signal) bool {
	switch sig {
	case unix.SIGTERM, unix.SIGKILL, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP:
		return true
	}
	return false
}

// Log is what it has written so far, standard output and error together.
func (p *Process) Log() ([]byte, error) { return os.ReadFile(p.log) }

// logsDir is where the logs of a machine are, in the machine's directory. Only the host's
// root goes in there: a machine's root has them open, and where its ids are the host's
// could make a program of one and set its set-user-ID bit, for anybody to execute.
const logsDir = "logs"

func makeLogsDir(dir string) (string, error) {
	path := filepath.Join(dir, logsDir)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return path, nil
}

// newLog makes an empty log of a name that none has.
func (m *Machine) newLog() (string, error) {
	dir, err := makeLogsDir(m.Dir())
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, "spawn-*.log")
	if err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// LogFiles are the files that the machine's init and spawned processes write to.
func (m *Machine) LogFiles() ([]string, error) {
	return filepath.Glob(filepath.Join(m.Dir(), logsDir, "*.log"))
}

// Logs reads what they have written, by file.
func (m *Machine) Logs() (map[string][]byte, error) {
	files, err := m.LogFiles()
	if err != nil {
		return nil, err
	}
	logs := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		logs[strings.TrimSuffix(filepath.Base(f), ".log")] = b
	}
	return logs, nil
}

func openLog(path string) (int, error) {
	return unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOCTTY, 0o644)
}
