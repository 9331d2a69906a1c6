package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
)

// Freeze stops every process of the machine, and of those inside it.
func (m *Machine) Freeze(ctx context.Context) error {
	if err := m.controllable("freeze"); err != nil {
		return err
	}
	if err := m.free(ctx, "freeze"); err != nil {
		return err
	}
	m.starting.Lock()
	defer m.starting.Unlock()
	err := m.group.Freeze(ctx)
	if errors.Is(err, cgroup.ErrMissing) {
		return withHint(fmt.Errorf("freeze %s: %w", m.Name(), err), delegate)
	}
	return err
}

// Thaw lets them go on. It waits for the end of a snapshot of this msh's.
func (m *Machine) Thaw(ctx context.Context) error {
	if err := m.controllable("thaw"); err != nil {
		return err
	}
	m.setting.Lock()
	defer m.setting.Unlock()
	if err := m.free(ctx, "thaw"); err != nil {
		return err
	}
	return m.group.Thaw(ctx)
}

// NotHost is the error of doing to the host what can be done to a machine only.
func NotHost(what string) error {
	return bad(what, "host", nil, "got the host, want a machine")
}

func (m *Machine) controllable(what string) error {
	if m.isHost() {
		return NotHost(what)
	}
	return m.alive()
}

// signalAll sends every process of the machine a signal, its init last: as PID 1
// of a space of its own it would take the others with it.
func (m *Machine) signalAll(sig unix.Signal) error {
	pids, err := m.group.Pids()
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range pids {
		if pid == m.pid {
			continue
		}
		if err := m.signal(pid, sig); err != nil && err != unix.ESRCH {
			errs = append(errs, fmt.Errorf("signal process %d: %w", pid, err))
		}
	}
	return errors.Join(append(errs, m.signalInit(sig))...)
}

// signal signals a process that was in the machine's group a moment ago, if it
// still is: its number may be another's by now.
func (m *Machine) signal(pid int, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !m.group.Has(pid) {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// Stop asks the machine to end and waits: its init gets SIGTERM where it is a
// program of its own, which then knows what to do; under msh's minimal init
// every process gets it. After the timeout the rest is killed.
func (m *Machine) Stop(ctx context.Context, timeout time.Duration) error {
	if err := m.controllable("stop"); err != nil {
		if errors.Is(err, ErrDead) {
			return nil
		}
		return err
	}
	if err := m.free(ctx, "stop"); err != nil {
		return err
	}
	if m.group.Frozen() {
		if err := m.group.Thaw(ctx); err != nil {
			return err
		}
	}
	var err error
	if m.Spec().Init != nil {
		err = m.signalInit(unix.SIGTERM)
	} else {
		err = m.signalAll(unix.SIGTERM)
	}
	if err != nil {
		return err
	}
	ctx2, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := m.awaitEnd(ctx2); err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	return m.killRest(ctx)
}

func (m *Machine) signalInit(sig unix.Signal) error {
	fd, err := m.handle()
	if errors.Is(err, ErrDead) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal the init of %s: %w", m.Name(), err)
	}
	return nil
}

// awaitEnd waits until no process of the machine is left.
func (m *Machine) awaitEnd(ctx context.Context) error {
	cancel, err := newCanceller(ctx)
	if err != nil {
		return err
	}
	defer cancel.close()
	fd, err := m.handle()
	if errors.Is(err, ErrDead) {
		return nil // destroyed meanwhile
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := cancel.await(ctx, time.Time{}, fd); err != nil {
		return err
	}
	// A machine without a PID space may have processes that outlive its init.
	return poll(ctx, func() (bool, error) {
		pids, err := m.group.Pids()
		return len(pids) == 0, err
	})
}

// Kill sends every process of the machine a signal. SIGKILL leaves none and is
// waited for.
func (m *Machine) Kill(ctx context.Context, sig unix.Signal) error {
	if err := m.controllable("kill"); err != nil {
		if errors.Is(err, ErrDead) && sig == unix.SIGKILL {
			return m.killRest(ctx)
		}
		if errors.Is(err, ErrDead) {
			return nil
		}
		return err
	}
	if err := m.free(ctx, "kill"); err != nil {
		return err
	}
	if sig != unix.SIGKILL {
		return m.signalAll(sig)
	}
	return m.killRest(ctx)
}

// killRest kills what there is in the machine's group. Without a PID space that
// may be something even when its init has ended.
func (m *Machine) killRest(ctx context.Context) error {
	m.mu.Lock()
	gone := m.state != "" // and the name of its group may be another machine's
	m.mu.Unlock()
	if gone {
		return nil
	}
	if err := m.group.Kill(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, teardown)
	defer cancel()
	return m.awaitEnd(ctx)
}

// CheckSet tells of a resource alone whether a machine can be set to it.
func CheckSet(r Resource) error {
	if _, ok := r.(setter); !ok {
		return bad("set", "resource", r.Kind(), "one that can change while the machine runs: cpu, memory, pids, io, rlimit, children, uname, sysctl, security, netif or routes")
	}
	return r.Validate()
}

// Set changes a resource of the machine while it runs. What the resource does
// not name stays as it was.
func (m *Machine) Set(r Resource) error {
	if err := m.controllable("set"); err != nil {
		return err
	}
	if err := CheckSet(r); err != nil {
		return err
	}
	if err := m.refresh(); err != nil {
		return err
	}
	m.setting.Lock()
	defer m.setting.Unlock()
	if err := m.free(context.Background(), "set"); err != nil {
		return err
	}
	if err := r.(setter).set(m); err != nil {
		return fmt.Errorf("set %s of %s: %w", r.Kind(), m.Name(), err)
	}
	if err := m.keep(r); err != nil {
		return err
	}
	return m.review()
}

// keep writes down what was set.
func (m *Machine) keep(r Resource) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remember(r)
	return m.save()
}

// remember puts what was set in the place of what was given.
func (m *Machine) remember(r Resource) {
	if _, ok := r.(*Netif); ok {
		return // which SetNetif has done
	}
	spec := *m.Spec()
	spec.Resources = slices.Clone(spec.Resources)
	same := func(o Resource) bool {
		k, ok := r.(keyed)
		return o.Kind() == r.Kind() && (!ok || o.(keyed).Key() == k.Key())
	}
	i := slices.IndexFunc(spec.Resources, same)
	if i < 0 {
		spec.Resources = append(spec.Resources, r)
	} else {
		spec.Resources[i] = merge(spec.Resources[i], r)
	}
	m.given.Store(&spec)
	if r, ok := r.(*Rlimit); ok {
		m.self.Limit = append(slices.Clone(m.self.Limit), r)
	}
}

// merge is had with what n names changed.
func merge(had, n Resource) Resource {
	switch n := n.(type) {
	case *CPU:
		c := *had.(*CPU)
		if n.Quota != 0 {
			c.Quota = n.Quota
		}
		if n.Weight != 0 {
			c.Weight = n.Weight
		}
		if n.Set != nil {
			c.Set = n.Set
		}
		return &c
	case *Memory:
		c := *had.(*Memory)
		for _, f := range []struct{ to, from **int64 }{{&c.Max, &n.Max}, {&c.High, &n.High}, {&c.Swap, &n.Swap}} {
			if *f.from != nil {
				*f.to = *f.from
			}
		}
		return &c
	case *Uname:
		return had.(*Uname).over(n)
	case *Routes:
		c := *n
		c.Table, c.Number = had.(*Routes).Table, had.(*Routes).Number // the table stays
		return &c
	}
	return n
}

// Wait waits for the end of the machine's init and returns its code: 128 and the
// signal's number where a signal ended it. Timeout 0 is for ever.
func (m *Machine) Wait(ctx context.Context, timeout time.Duration) (int, error) {
	if m.isHost() {
		return 0, NotHost("wait")
	}
	if m.takeInit == nil {
		return 0, fmt.Errorf("wait for %s: another msh is its parent, and has its code", m.Name())
	}
	fd, err := m.handle()
	if err == nil {
		defer unix.Close(fd)
		var cancel *canceller
		if cancel, err = newCanceller(ctx); err != nil {
			return 0, err
		}
		defer cancel.close()
		var deadline time.Time
		if timeout > 0 {
			deadline = time.Now().Add(timeout)
		}
		_, err = cancel.await(ctx, deadline, fd)
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return 0, fmt.Errorf("wait for %s: still running after %v", m.Name(), timeout)
	}
	if err != nil && !errors.Is(err, ErrDead) { // destroyed: it was reaped then
		return 0, err
	}
	m.takeInit()()
	return m.exit.Code(), nil
}

// Stats reads the machine's counters.
func (m *Machine) Stats() (*cgroup.Stats, error) {
	if err := m.controllable("stats"); err != nil {
		return nil, err
	}
	if err := m.refresh(); err != nil {
		return nil, err
	}
	return m.group.Stats()
}

// poll calls f until it says true, at growing distances.
func poll(ctx context.Context, f func() (bool, error)) error {
	for nap := 200 * time.Microsecond; ; nap = min(nap*2, 50*time.Millisecond) {
		if ok, err := f(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(nap):
		}
	}
}

// WaitFile waits until a path is there in the machine.
func (m *Machine) WaitFile(ctx context.Context, path string, timeout time.Duration) error {
	return m.wait(ctx, timeout, "file "+path, func(ctx context.Context) (bool, error) { return m.Exists(ctx, path) })
}

// WaitPort waits until something listens on a TCP port of the machine's network.
// It reads the kernel's table, so that no connection is made.
func (m *Machine) WaitPort(ctx context.Context, port int, timeout time.Duration) error {
	if port < 1 || port > 65535 {
		return bad("wait_port", "port", port, "1 to 65535")
	}
	want := fmt.Sprintf(":%04X", port)
	return m.wait(ctx, timeout, fmt.Sprintf("port %d", port), func(context.Context) (bool, error) {
		for _, table := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", m.pid, table))
			if errors.Is(err, fs.ErrNotExist) {
				continue // no IPv6, or no machine any more
			}
			if err != nil {
				return false, err
			}
			for line := range strings.Lines(string(b)) {
				const listen = "0A" // TCP_LISTEN
				if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], want) && f[3] == listen {
					return true, nil
				}
			}
		}
		return false, nil
	})
}

// WaitRun waits until a command run in the machine ends with code 0.
func (m *Machine) WaitRun(ctx context.Context, c *Command, timeout time.Duration) error {
	var last *Result
	err := m.wait(ctx, timeout, strings.Join(c.Argv, " "), func(ctx context.Context) (bool, error) {
		r, err := m.Run(ctx, c, nil, 0)
		if err != nil {
			return false, err // what was killed in the middle says nothing
		}
		last = r
		return r.Code == 0, nil
	})
	if err != nil && last != nil {
		return fmt.Errorf("%w: last code %d, stderr %q", err, last.Code, tail(last.Stderr))
	}
	return err
}

func tail(b []byte) string {
	if len(b) > 200 {
		return "…" + string(b[len(b)-200:])
	}
	return string(b)
}

// wait polls f until it says true. The context that f gets ends when the time is up.
func (m *Machine) wait(ctx context.Context, timeout time.Duration, what string, f func(context.Context) (bool, error)) error {
	inner, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := poll(inner, func() (bool, error) {
		if err := m.alive(); err != nil {
			return false, err
		}
		return f(inner)
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fmt.Errorf("wait for %s in %s: not within %v", what, m.Name(), timeout)
	}
	return err
}
