package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// kind is what a frame is: its first byte. Four bytes of length follow, in network
// order, and as many bytes of text: JSON, or data.
type kind byte

const (
	kindHello   kind = 'H'
	kindOffer   kind = 'O'
	kindWant    kind = 'W'
	kindData    kind = 'D'
	kindEnd     kind = 'E' // of a stream of data
	kindReady   kind = 'R'
	kindGo      kind = 'G'
	kindRunning kind = 'A'
	kindThanks  kind = 'T'
	kindAsk     kind = 'Q'
	kindState   kind = 'S'
	kindFailed  kind = 'X' // the sender gives up, and why
	kindAlive   kind = 'P' // nothing else to say
)

func (k kind) String() string {
	names := map[kind]string{kindHello: "hello", kindOffer: "offer", kindWant: "want", kindData: "data", kindEnd: "end", kindReady: "ready", kindGo: "go",
		kindRunning: "running", kindThanks: "thanks", kindAsk: "ask", kindState: "state", kindFailed: "failed", kindAlive: "alive"}
	if n, ok := names[k]; ok {
		return n
	}
	return fmt.Sprintf("frame %#02x", byte(k))
}

// most is how long a frame's text may be: a bound on what a peer can have us hold.
func (k kind) most() int {
	switch k {
	case kindData:
		return maxData
	case kindHello, kindOffer, kindWant, kindFailed, kindState, kindRunning:
		return maxText
	case kindAsk:
		return maxToken
	case kindEnd, kindReady, kindGo, kindThanks, kindAlive:
		return 0
	}
	return -1
}

const (
	headSize = 5
	maxData  = 256 << 10
	maxText  = 1 << 20
	maxToken = 64
)

// errBroken is a line that ended, or fell silent, where a frame was due.
var errBroken = errors.New("the line is broken")

// frames is a line as frames. Reading is for one goroutine, writing for any.
type frames struct {
	in     io.Reader
	out    io.Writer
	close  func() // both ways; what waits on them returns
	silent time.Duration

	mu   sync.Mutex
	last time.Time // something was written
}

// read gives the next frame that says something. The text is valid until the next
// read where room is given for it.
func (f *frames) read(room []byte) (kind, []byte, error) {
	watch := time.AfterFunc(f.silent, f.close)
	defer watch.Stop()
	for {
		var head [headSize]byte
		if _, err := io.ReadFull(f.in, head[:]); err != nil {
			return 0, nil, broken(err)
		}
		k, n := kind(head[0]), binary.BigEndian.Uint32(head[1:])
		if most := k.most(); most < 0 || int64(n) > int64(most) {
			return 0, nil, fmt.Errorf("%s of %d bytes: no such frame in this protocol", k, n)
		}
		if k == kindAlive {
			watch.Reset(f.silent)
			continue
		}
		text := room
		if int(n) > cap(text) {
			text = make([]byte, n)
		}
		text = text[:n]
		if _, err := io.ReadFull(f.in, text); err != nil {
			return 0, nil, broken(err)
		}
		return k, text, nil
	}
}

func broken(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errBroken
	}
	return fmt.Errorf("%w: %w", errBroken, err)
}

func (f *frames) write(k kind, text []byte) error {
	if len(text) > k.most() {
		return fmt.Errorf("%s of %d bytes: want at most %d", k, len(text), k.most())
	}
	b := make([]byte, headSize, headSize+len(text))
	b[0] = byte(k)
	binary.BigEndian.PutUint32(b[1:], uint32(len(text)))
	b = append(b, text...)
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.out.Write(b); err != nil {
		return broken(err)
	}
	f.last = time.Now()
	return nil
}

// keepAlive writes when nothing else does, until the returned function is called.
func (f *frames) keepAlive() (stop func()) {
	every := f.silent / 6
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			f.mu.Lock()
			quiet := time.Since(f.last) >= every
			f.mu.Unlock()
			if quiet && f.write(kindAlive, nil) != nil {
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// stream writes a stream of bytes as data frames; Close ends it.
type stream struct{ f *frames }

func (s stream) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		part := b[:min(len(b), maxData)]
		if err := s.f.write(kindData, part); err != nil {
			return n, err
		}
		n += len(part)
		b = b[len(part):]
	}
	return n, nil
}

// source reads a stream of bytes from data frames, up to its end.
type source struct {
	f    *frames
	room []byte
	rest []byte
	err  error
}

func (s *source) Read(b []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if s.room == nil {
			s.room = make([]byte, maxData)
		}
		k, text, err := s.f.read(s.room)
		switch {
		case err != nil:
			s.err = err
		case k == kindData:
			s.rest = text
		case k == kindEnd:
			s.err = io.EOF
		default:
			s.err = unexpected(k, text, "data")
		}
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// drain reads what the caller has left of the stream.
func (s *source) drain() error {
	_, err := io.Copy(io.Discard, s)
	return err
}
