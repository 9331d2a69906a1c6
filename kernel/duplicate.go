package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

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
	// Memory goes from one criu to the other as it is; the rest by way of a pipe. The
	// clone is made while the memory is saved, up to where it is needed.
	from, to := io.Pipe()
	p := newPassing(from)
	defer p.close()
	o.pass = p
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
		if err != nil {
			from.CloseWithError(err)
		}
		p.drained.Wait()
		woken <- outcome{all, err}
	}()
	w, err := checkpoint.NewWriter(to, checkpoint.Options{})
	if err == nil {
		_, err = Snapshot(ctx, w, []*Machine{m}, SnapshotOptions{pass: p})
	}
	to.CloseWithError(err)
	p.end()
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

// passing is memory on its way from a machine to its clone.
type passing struct {
	stream  io.Reader
	drained sync.WaitGroup
	there   chan struct{} // closed when it is there, or will not be
	once    sync.Once
	work    int
	images  *os.File
}

func newPassing(stream io.Reader) *passing {
	return &passing{stream: stream, there: make(chan struct{}), work: -1}
}

// give hands it on: a file system, and the directory in it. They stay the caller's too.
func (p *passing) give(work int, images *os.File) error {
	fd, err := unix.FcntlInt(images.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate the memory's directory: %w", err)
	}
	p.images = os.NewFile(uintptr(fd), images.Name())
	if p.work, err = unix.FcntlInt(uintptr(work), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fmt.Errorf("duplicate the memory: %w", err)
	}
	p.end()
	return nil
}

// end tells that no more will be given.
func (p *passing) end() { p.once.Do(func() { close(p.there) }) }

// take waits for it. It is the caller's from then on.
func (p *passing) take(ctx context.Context) (work int, images *os.File, err error) {
	select {
	case <-p.there:
	case <-ctx.Done():
		return -1, nil, ctx.Err()
	}
	if p.images == nil || p.work < 0 {
		return -1, nil, errNotSaved
	}
	work, images = p.work, p.images
	p.work, p.images = -1, nil
	return work, images, nil
}

// errNotSaved is what the clone fails of where the machine could not be saved; that error
// tells why.
var errNotSaved = errors.New("its memory was not saved")

// drain reads the rest of the stream, that nobody wants.
func (p *passing) drain() { p.drained.Go(func() { io.Copy(io.Discard, p.stream) }) }

// close lets go of what was not taken. Nobody gives or takes any more.
func (p *passing) close() {
	if p.images != nil {
		p.images.Close()
	}
	if p.work >= 0 {
		unix.Close(p.work)
	}
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
