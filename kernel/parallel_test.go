package kernel

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// together runs f many times at once and fails for each that does.
func together(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(i); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func TestParallel(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	together(t, 32, func(i int) error {
		m, err := l.Fork(ctx, l.Host(), &Spec{Name: fmt.Sprintf("p%d", i), Resources: []Resource{space("pidspace"), space("netspace"), &Uidspace{}, overlay(), &Children{Max: 1}, &Rlimit{Name: "core"}}})
		if err != nil {
			return err
		}
		c, err := l.Fork(ctx, m, &Spec{Resources: []Resource{space("pidspace")}})
		if err != nil {
			return err
		}
		for _, m := range []*Machine{m, c} {
			r, err := m.Run(ctx, &Command{Argv: []string{"echo", m.Name()}}, nil, 0)
			if err != nil {
				return fmt.Errorf("run in %s: %w", m.Name(), err)
			}
			if string(r.Stdout) != m.Name()+"\n" {
				return fmt.Errorf("run in %s: %q", m.Name(), r.Stdout)
			}
		}
		if err := m.Set(&Rlimit{Name: "nofile", Soft: 50, Hard: 50}); err != nil {
			return err
		}
		m.State()
		return m.Destroy(ctx)
	})
	want(t, "machines", 0, len(l.Machines()))
}

// Many labs on one host, which come and go.
func TestParallelLabs(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	together(t, 16, func(i int) error {
		for range 4 {
			l, err := h.NewLab(labName(t), false)
			if err != nil {
				return err
			}
			if _, err := l.Fork(ctx, l.Host(), &Spec{Resources: []Resource{space("pidspace"), &Uidspace{}}}); err != nil {
				return err
			}
			if _, err := h.Sweep(ctx, true); err != nil {
				return err
			}
			if err := l.Close(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// One machine, used by many at once.
func TestParallelUse(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{}, overlay())
	ctx := t.Context()
	together(t, 32, func(i int) error {
		path := fmt.Sprintf("/tmp/f%d", i%4)
		if err := m.WriteFile(ctx, path, []byte("text"), 0o644); err != nil {
			return err
		}
		if b, err := m.ReadFile(ctx, path); err != nil || string(b) != "text" {
			return fmt.Errorf("read: %q, %v", b, err)
		}
		r, err := m.Run(ctx, &Command{Argv: []string{"cat"}}, []byte(path), 0)
		if err != nil || string(r.Stdout) != path {
			return fmt.Errorf("run: %v %v", r, err)
		}
		_, err = m.Stats()
		return err
	})
}

// A machine is destroyed while others use it: they get what they asked for or are
// told that it is dead, and nobody meets another machine under its number.
func TestParallelDestroy(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	for range 10 {
		m := fork(t, l, space("pidspace"), &Children{Max: 8})
		together(t, 8, func(i int) error {
			switch i {
			case 0:
				return m.Destroy(ctx)
			case 1:
				return m.Destroy(ctx)
			case 2:
				return m.Kill(ctx, unix.SIGKILL)
			case 3:
				if c, err := l.Fork(ctx, m, &Spec{Resources: []Resource{space("pidspace")}}); err == nil {
					return c.Destroy(ctx)
				}
				return nil
			case 4:
				m.ReadFile(ctx, "/etc/passwd")
			case 5:
				m.State()
				m.Stats()
			default:
				m.Run(ctx, &Command{Argv: []string{"true"}}, nil, 0)
			}
			return nil
		})
	}
}

// Cancelled at any moment, a fork or a run leaves nothing.
func TestCancel(t *testing.T) {
	l := newLab(t)
	made := 0
	for i := range 60 {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Duration(rand.IntN(6000))*time.Microsecond, cancel)
		rs := []Resource{space("pidspace"), &Uidspace{}, overlay()}
		if i%2 == 0 {
			rs = append(rs, &Timespace{Boottime: time.Hour})
		}
		m, err := l.Fork(ctx, l.Host(), &Spec{Resources: rs})
		if err != nil {
			if ctx.Err() == nil {
				t.Errorf("not cancelled: %v", err)
			}
			cancel()
			continue
		}
		made++
		m.Run(ctx, &Command{Argv: []string{"/bin/sh", "-c", "sleep 600 & sleep 600"}}, nil, 0)
		cancel()
		if err := m.Destroy(ctx); err != nil { // even so
			t.Error(err)
		}
	}
	t.Logf("%d of 60 were made", made)
	want(t, "machines", 0, len(l.Machines()))
}
