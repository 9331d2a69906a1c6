package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
	"msh/kernel/criu"
)

// Clone makes a second machine of one that runs on: with its memory, processes and
// files, but a name, MACs and addresses of its own. Connections of the first are
// closed in it, as its addresses are others.
func (m *Machine) Clone(ctx context.Context, o WakeOptions) (*Machine, error) {
	if m.lab == nil {
		return nil, fmt.Errorf("clone %s: it is another msh's", m.Name())
	}
	o.Fresh, o.TCP = true, criu.TCPClose
	if o.Name == "" {
		o.Name = m.lab.copyName(m.Name())
	}
	// Memory goes from one criu to the other as it is; the rest by way of a pipe.
	work, images := -1, (*os.File)(nil)
	keep := func(fd int, dir *os.File) { work, images = fd, dir }
	o.take = func() (int, *os.File) {
		defer func() { work, images = -1, nil }()
		return work, images
	}
	defer func() {
		if images != nil {
			images.Close()
			unix.Close(work)
		}
	}()
	from, to := io.Pipe()
	type outcome struct {
		all []*Machine
		err error
	}
	woken := make(chan outcome, 1)
	go func() {
		r, err := checkpoint.NewReader(from)
		var all []*Machine
		if err == nil {
			defer r.Close()
			all, err = m.lab.Wake(ctx, r, o)
		}
		from.CloseWithError(err)
		woken <- outcome{all, err}
	}()
	w, err := checkpoint.NewWriter(to, checkpoint.Options{})
	if err == nil {
		_, err = Snapshot(ctx, w, []*Machine{m}, SnapshotOptions{keep: keep})
	}
	to.CloseWithError(err)
	out := <-woken
	switch {
	case err != nil && out.err == nil:
		return nil, errors.Join(fmt.Errorf("clone %s: %w", m.Name(), err), out.all[0].Destroy(context.WithoutCancel(ctx)))
	case out.err != nil && (err == nil || errors.Is(err, out.err)):
		return nil, fmt.Errorf("clone %s: %w", m.Name(), out.err)
	case err != nil:
		return nil, fmt.Errorf("clone %s: %w", m.Name(), err)
	}
	return out.all[0], nil
}

// copyName is NAME-2, NAME-3, …
func (l *Lab) copyName(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := 2; ; n++ {
		if c := numbered(name, n); !l.names[c] {
			return c
		}
	}
}
