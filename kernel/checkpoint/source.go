package checkpoint

import (
	"context"
	"io"
	"runtime"
)

// piece is a chunk on its way out of the file.
type piece struct {
	rec         *record
	stored, raw []byte
	err         error
	ready       chan struct{} // closed when raw or err is there
}

// source reads a section ahead: one goroutine reads the chunks one after
// another, some unpack them, and Read gets them in order. Nobody reads beyond
// the section's last chunk, which is marked as such.
type source struct {
	r     *Reader
	queue chan *piece
	idle  chan *piece   // to be used again
	stop  chan struct{} // closed by close
	now   *piece        // that is being read from
	left  []byte        // of it
	err   error
	begun bool // somebody has read from it
	ctx   context.Context
}

func newSource(r *Reader, first *record) *source {
	workers := min(2, runtime.GOMAXPROCS(0))
	s := &source{r: r, ctx: context.Background(), queue: make(chan *piece, workers), idle: make(chan *piece, workers+3), stop: make(chan struct{})}
	go s.feed(first, make(chan struct{}, workers))
	return s
}

// feed reads chunks until the last one of the section, an error, or close.
func (s *source) feed(rec *record, running chan struct{}) {
	defer close(s.queue)
	for rec != nil {
		p := s.fresh()
		p.rec = rec
		if p.stored, p.err = s.r.data(rec, p.stored); p.err != nil {
			s.fail(p.err)
			return
		}
		select {
		case running <- struct{}{}:
		case <-s.stop:
			return
		}
		go func() {
			p.unpack()
			<-running
		}()
		select {
		case s.queue <- p:
		case <-s.stop:
			return
		}
		if rec.last {
			return
		}
		rec = s.next()
	}
}

// unpack decompresses and checks.
func (p *piece) unpack() {
	if int64(cap(p.raw)) < p.rec.raw {
		p.raw = make([]byte, p.rec.raw)
	}
	raw, err := decompress(p.raw, p.rec, p.stored)
	if p.err = err; err == nil {
		p.raw = raw
	}
	close(p.ready)
}

// next reads the head of the section's next chunk.
func (s *source) next() *record {
	rec, err := s.r.head()
	if err == nil && rec == nil {
		err = corrupt("it ends within a section")
	}
	if err == nil {
		err = s.r.outline.add(rec) // also tells of one that is not the next
	}
	if err == nil {
		return rec
	}
	s.fail(err)
	return nil
}

// fail has Read give an error, after what came before it.
func (s *source) fail(err error) {
	p := &piece{err: err, ready: make(chan struct{})}
	close(p.ready)
	select {
	case s.queue <- p:
	case <-s.stop:
	}
}

func (s *source) fresh() *piece {
	var p *piece
	select {
	case p = <-s.idle:
	default:
		p = new(piece)
	}
	p.err, p.ready = nil, make(chan struct{})
	return p
}

// more makes sure that something is left to read, or gives io.EOF.
func (s *source) more() error {
	s.begun = true
	for len(s.left) == 0 {
		if s.err != nil {
			return s.err
		}
		if s.now != nil {
			select {
			case s.idle <- s.now:
			default:
			}
			s.now = nil
		}
		var p *piece
		var ok bool
		select {
		case p, ok = <-s.queue:
		case <-s.ctx.Done():
			s.err = context.Cause(s.ctx)
			return s.err
		}
		if !ok {
			s.err = io.EOF
			return s.err
		}
		if <-p.ready; p.err != nil {
			s.err = p.err
			return s.err
		}
		s.now, s.left = p, p.raw
	}
	return nil
}

// Read is an io.Reader's.
func (s *source) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := s.more(); err != nil {
		return 0, err
	}
	n := copy(b, s.left)
	s.left = s.left[n:]
	return n, nil
}

// take gives up to n bytes without copying them; they are good until the next call.
func (s *source) take(n int64) ([]byte, error) {
	if err := s.more(); err != nil {
		return nil, cutOff(err)
	}
	b := s.left[:min(int64(len(s.left)), n)]
	s.left = s.left[len(b):]
	return b, nil
}

// full fills b.
func (s *source) full(b []byte) error {
	_, err := io.ReadFull(s, b)
	return cutOff(err)
}

// cutOff translates the end of a section where it should go on: its chunks are
// all there, so this is how it was written.
func cutOff(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return hostile("the section ends within a file")
	}
	return err
}

// drain goes on to the end of the section.
func (s *source) drain() error {
	for {
		if err := s.more(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		s.left = nil
	}
}

// close stops the reading ahead.
func (s *source) close() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
}
