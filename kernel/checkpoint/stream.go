package checkpoint

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
)

// chunk is a piece of a section on its way: filled, compressed, written, reused.
type chunk struct {
	raw    []byte // chunkSize of room
	n      int    // bytes in it
	stored []byte
	rec    record
	ready  chan struct{} // closed when stored and rec are there
}

// stream is a section that is being written:
//
//	Write ─> current ─> compress, some at a time ─┐
//	                    queue, in order ──────────┴> write, one goroutine
type stream struct {
	w             *Writer
	ctx           context.Context
	machine, name string
	current       *chunk
	count         int
	queue         chan *chunk
	running       chan struct{} // a token for each chunk that is being compressed
	written       chan struct{} // closed when all is written, or never will be
	failed        chan struct{} // closed when nothing more can be written
	closed        bool
}

// begin opens a section.
func (w *Writer) begin(ctx context.Context, machine, name string) (*stream, error) {
	if err := w.ready(); err != nil {
		return nil, err
	}
	if w.info == nil {
		return nil, errors.New("write the snapshot: the manifest comes first")
	}
	w.busy = true
	s := &stream{
		w: w, ctx: ctx, machine: machine, name: name,
		queue: make(chan *chunk, w.workers), running: make(chan struct{}, w.workers),
		written: make(chan struct{}), failed: make(chan struct{}),
	}
	go s.write()
	return s, nil
}

// write takes the chunks in the order of the section.
func (s *stream) write() {
	defer close(s.written)
	var err error
	for c := range s.queue {
		if <-c.ready; err != nil {
			continue
		}
		if err = s.w.member(&c.rec, c.stored); err != nil {
			close(s.failed)
			continue
		}
		s.w.idle <- c
	}
}

// room is what of the current chunk is still free. One that is full goes off
// first: only now is it known that it is not the last.
func (s *stream) room() ([]byte, error) {
	if s.current != nil && s.current.n == chunkSize {
		if err := s.send(false); err != nil {
			return nil, err
		}
	}
	if s.current == nil {
		c, err := s.fresh()
		if err != nil {
			return nil, err
		}
		s.current = c
	}
	return s.current.raw[s.current.n:], nil
}

// filled says that n bytes of the room are used.
func (s *stream) filled(n int) { s.current.n += n }

// fresh is an empty chunk.
func (s *stream) fresh() (*chunk, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, context.Cause(s.ctx)
	}
	var c *chunk
	select {
	case c = <-s.w.idle:
	default:
		if s.w.made < cap(s.w.idle) {
			s.w.made++
			c = &chunk{raw: make([]byte, chunkSize)}
			break
		}
		select {
		case c = <-s.w.idle:
		case <-s.failed:
			return nil, errors.New("the snapshot cannot be written")
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}
	c.n, c.ready = 0, make(chan struct{})
	return c, nil
}

// send has the current chunk compressed and written.
func (s *stream) send(last bool) error {
	c := s.current
	s.current = nil
	c.rec = record{name: chunkName(s.machine, s.name, s.count), raw: int64(c.n), last: last}
	s.count++
	select {
	case s.running <- struct{}{}:
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	go func() {
		c.stored = s.w.codec.compress(c.stored[:0], c.raw[:c.n])
		c.rec.size = int64(len(c.stored))
		c.rec.sum = sha256.Sum256(c.stored)
		<-s.running
		close(c.ready)
	}()
	select {
	case s.queue <- c:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// Write adds to the section.
func (s *stream) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		room, err := s.room()
		if err != nil {
			return n, s.abandon(err)
		}
		k := copy(room, b[n:])
		s.filled(k)
		n += k
	}
	return n, nil
}

// ReadFrom adds all that r has.
func (s *stream) ReadFrom(r io.Reader) (int64, error) {
	var n int64
	for {
		room, err := s.room()
		if err != nil {
			return n, s.abandon(err)
		}
		k, err := r.Read(room)
		s.filled(k)
		n += int64(k)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, s.abandon(err)
		}
	}
}

// Close ends the section and waits until it is written.
func (s *stream) Close() error {
	if s.closed {
		return s.w.failed()
	}
	var err error
	if s.current == nil { // a section has one chunk at least
		s.current, err = s.fresh()
	}
	if err == nil {
		err = s.send(true)
	}
	if err != nil {
		return s.abandon(err)
	}
	s.closed = true
	close(s.queue)
	select {
	case <-s.written:
	case <-s.ctx.Done():
		// The goroutine may hang in writing to a pipe; it is left to itself.
		return s.w.fail(context.Cause(s.ctx))
	}
	s.w.busy = false
	return s.w.failed()
}

// abandon ends the section, and with it the whole snapshot.
func (s *stream) abandon(err error) error {
	if s.closed {
		return err
	}
	s.closed = true
	close(s.queue)
	return s.w.fail(err)
}
