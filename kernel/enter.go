package kernel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/stage0"
)

// Command is a program to run in a machine. Nothing of the caller leaks in: the
// environment is DefaultEnv with Env over it, the working directory is /.
type Command struct {
	Argv []string
	Env  map[string]string
	Cwd  string
	User string // a name or number of the machine's, with an optional :GROUP
}

// Validate checks what can be told without running it.
func (c *Command) Validate() error {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return bad("run", "argv", "no program", "a list of the program and its arguments, or a command for /bin/sh")
	}
	for k, v := range c.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return bad("run", "env", k, "names without = and texts without NUL")
		}
	}
	return nil
}

// entry prepares a process of the machine: born in its group and PID namespace,
// its program starting with the steps that take it in. Every way into a machine
// comes through here, and ends in Steps.shed or, where it is only system calls that
// msh makes in the machine's place, is trusted.
func (m *Machine) entry() (*birth, *Steps, func(), error) {
	if err := m.alive(); err != nil { // start looks whether it is frozen, which takes longer
		return nil, nil, nil, err
	}
	if err := m.refresh(); err != nil {
		return nil, nil, nil, err
	}
	var fds []int
	b := &birth{files: map[stage0.FD]int{}, cgroup: -1, pidns: -1, line: -1, fault: m.host.Fault.Child, in: m}
	closeAll := func() {
		if b.line >= 0 {
			unix.Close(b.line)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	own := func(fd int, err error) (int, error) {
		if err == nil {
			fds = append(fds, fd)
		}
		return fd, err
	}
	m.mu.Lock()
	self := m.self
	m.mu.Unlock()
	s := &Steps{Program: stage0.New(), Plan: &Plan{Spec: m.Spec(), Under: self, Group: m.group, Confined: self.Confined}}
	s.leaveCaller()
	s.leaveKeyring()
	b.program = s.Program
	if m.group == nil {
		s.Plan.Group = &cgroup.Group{}
		return b, s, closeAll, nil
	}
	places, err := m.parent.places()
	if err != nil {
		return nil, nil, nil, err
	}
	s.Plan.Under.Places = places
	err = joinFiles(m.group.Places(places), b.files, own)
	if err == nil && m.group.Tracker != "" {
		b.cgroup, err = own(unix.Open(m.group.Processes(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))
	}
	if err != nil {
		closeAll()
		return nil, nil, nil, fmt.Errorf("enter %s: %w", m.Name(), err)
	}
	s.takeLimits(m)
	if m.space()&unix.CLONE_NEWUSER == 0 { // else entering does
		s.hide(self.Confined)
	}
	s.joinGroups()
	if m.space() != 0 {
		init, err := own(m.handle())
		if err != nil {
			closeAll()
			return nil, nil, nil, err
		}
		b.files[parentFD] = init
		if m.space()&unix.CLONE_NEWPID != 0 {
			b.pidns = init
		}
		s.enter("enter "+m.Name(), parentFD, m.space())
	}
	return b, s, closeAll, nil
}

// command appends the steps that become the command, and tells which of the
// machine's users it becomes. The streams named in null are to be /dev/null.
func (m *Machine) command(ctx context.Context, b *birth, s *Steps, c *Command, null ...int) (uid int, err error) {
	env := c.Env
	cwd := "/"
	if c.Cwd != "" {
		cwd = c.Cwd
	}
	u, err := m.lookupUser(ctx, c.User)
	if err != nil {
		return 0, err
	}
	if m.self.OneID && (u.uid != 0 || u.gid != 0) {
		return 0, &ParamError{Kind: "run", Param: "user", Got: fmt.Sprintf("%q", c.User), Want: "root: an ordinary user without subordinate ids has no other id to give", Mend: "install uidmap, and " + subMend}
	}
	s.null(null...)
	if s.Plan.Under.Uname != nil {
		if b.line, err = m.unameLine(ctx); err != nil {
			return 0, err
		}
		b.files[unameFD] = b.line
		if err := s.askUname(); err != nil {
			return 0, err
		}
	}
	s.fenced()
	s.Call("become a session leader", stage0.MayFail, unix.SYS_SETSID)
	s.clean()
	if c.User != "" {
		s.becomeUser(u.uid, u.gid, u.groups)
		env = map[string]string{"HOME": u.home, "USER": u.name, "LOGNAME": u.name}
		for k, v := range c.Env {
			env[k] = v
		}
	}
	s.Call("go to "+cwd, 0, unix.SYS_CHDIR, cwd)
	s.Call("unblock signals", 0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, stage0.Buffer(sigsetSize), 0, sigsetSize)
	if err := s.shed(s.Plan.Confined, u.uid == 0, s.Plan.Under.Space); err != nil {
		return 0, err
	}
	s.exec(c.Argv, DefaultEnv(env))
	return u.uid, nil
}

// fenced is the part of the way in between the machine's namespaces and a change of
// user: fences, rlimits, the bounding set.
func (s *Steps) fenced() {
	c := s.Plan.Confined
	s.enclose(c, "")
	s.enteredLimits()
	s.boundCaps(c)
}

// perform runs steps inside the machine and waits for their end. The machine's
// confinement is not theirs: they are msh's own, and those that confine are among them.
func (m *Machine) perform(steps func(*Steps)) error { return m.performWith(nil, steps) }

// performWith does so with descriptors that the steps name.
func (m *Machine) performWith(files map[stage0.FD]int, steps func(*Steps)) error {
	p, err := m.begin(files, func(s *Steps) error {
		s.enteredLimits()
		steps(s)
		return nil
	})
	if err != nil {
		return err
	}
	defer p.close()
	st, err := reap(p.pidfd)
	if err != nil {
		return err
	}
	if err := p.failure(); err != nil {
		return err
	}
	if st.Code() != 0 {
		return fmt.Errorf("a process in %s ended with %d", m.Name(), st.Code())
	}
	return nil
}

// notStarted turns a failed way in into an error about the command.
func (m *Machine) notStarted(c *Command, p *process) error {
	err := p.failure()
	var e *stepError
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case e.step.Nr == unix.SYS_EXECVE && !strings.Contains(c.Argv[0], "/"):
		// The last directory's answer counts only if none before it said more.
		for i, s := range p.steps {
			if s.Nr != unix.SYS_EXECVE {
				continue
			}
			if r, _ := p.result(stage0.Ref(i)); r != 0 && unix.Errno(-r) != unix.ENOENT && unix.Errno(-r) != unix.ENOTDIR {
				return &notExecuted{&stepError{s, i, unix.Errno(-r)}}
			}
		}
		return &notExecuted{withHint(fmt.Errorf("run %s: %w in %s's PATH", Short(c.Argv[0]), errNotFound, m.Name()), "PATH is "+pathOf(DefaultEnv(c.Env)))}
	case e.step.Nr == unix.SYS_EXECVE:
		return &notExecuted{err}
	case e.step.Nr == unix.SYS_CHDIR:
		return bad("run", "cwd", c.Cwd, "a directory of "+m.Name()+": "+e.errno.Error())
	}
	return err
}

var errNotFound = fmt.Errorf("not found: %w", unix.ENOENT)

// notExecuted is an error of execve(2) of the command itself, not of the way in.
type notExecuted struct{ error }

func (e *notExecuted) Unwrap() error { return e.error }

// ExitCode is the code a shell would give for a command that did not start: 127
// when there is no such program, 126 when it cannot be executed; 1 where it was
// not even tried.
func ExitCode(err error) int {
	var e *notExecuted
	switch {
	case !errors.As(err, &e):
		return 1
	case errors.Is(e, unix.ENOENT):
		return 127
	}
	return 126
}

// Result is what a command has left.
type Result struct {
	Code           int // exit code, or 128 and the signal
	Stdout, Stderr []byte
	Duration       time.Duration
}

// Run runs a command to its end. Timeout 0 is none; when it is up, or ctx ends,
// the command's process group is killed. What the command wrote is returned in
// either case. A background process that it leaves with its output open is not
// waited for.
func (m *Machine) Run(ctx context.Context, c *Command, stdin []byte, timeout time.Duration) (*Result, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b, s, done, err := m.entry()
	if err != nil {
		return nil, err
	}
	defer done()
	var null []int
	if len(stdin) == 0 {
		null = []int{0}
	}
	uid, err := m.command(ctx, b, s, c, null...)
	if err != nil {
		return nil, err
	}
	in, err := m.input(stdin)
	if err != nil {
		return nil, err
	}
	defer unix.Close(in)
	out, err := newCapture(m, uid)
	if err != nil {
		return nil, err
	}
	defer out.close()
	b.stdio = [3]int{in, out.pipes[0][1], out.pipes[1][1]}
	begin := time.Now()
	p, err := b.start()
	if err != nil {
		return nil, err
	}
	defer p.close()
	var deadline time.Time
	if timeout > 0 {
		deadline = begin.Add(timeout)
	}
	st, waitErr := out.wait(ctx, deadline, p)
	r := &Result{Code: st.Code(), Stdout: out.text[0], Stderr: out.text[1], Duration: time.Since(begin)}
	if err := m.notStarted(c, p); err != nil {
		return nil, err
	}
	if errors.Is(waitErr, context.DeadlineExceeded) && ctx.Err() == nil {
		return r, fmt.Errorf("run %s in %s: still running after %v: killed", strings.Join(c.Argv, " "), m.Name(), timeout)
	}
	return r, waitErr
}
