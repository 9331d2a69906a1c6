package handover

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is two hosts and what is moved between them. It counts what runs.
type world struct {
	t *testing.T
	*sync.Mutex
	here, there string // "runs", "stopped", ""
	layers      []string
	has         map[string]bool // of the taker's
	got         bytes.Buffer    // the snapshot as it came
	book        *Book
	given       string // the token, as a crash would find it
	fail        map[string]error
	snapshot    []byte
}

func newWorld(t *testing.T) *world {
	return &world{t: t, Mutex: &sync.Mutex{}, here: "runs", layers: []string{"one", "two"}, has: map[string]bool{"digest of one": true},
		book: &Book{Dir: t.TempDir() + "/book"}, snapshot: bytes.Repeat([]byte("0123456789abcdef"), 64<<10), fail: map[string]error{}}
}

func (w *world) set(at *string, state string) {
	w.Lock()
	defer w.Unlock()
	*at = state
	if w.here == "runs" && w.there == "runs" {
		w.t.Error("it runs on both hosts")
	}
}

// giver and taker are the two roles.
type giver struct{ *world }

func (g giver) Offer(peer *Hello) (*Offer, error) {
	o := &Offer{Token: NewToken(), Name: "db", Lab: "shop"}
	for _, l := range g.layers {
		o.Layers = append(o.Layers, Layer{l, "digest of " + l})
	}
	return o, g.fail["offer"]
}

func (g giver) Layer(_ context.Context, n int, w io.Writer) error {
	if err := g.fail["layer"]; err != nil {
		return err
	}
	_, err := io.WriteString(w, "layer "+g.layers[n])
	return err
}

func (g giver) Snapshot(_ context.Context, w io.Writer, commit func() error) error {
	half := len(g.snapshot) / 2
	if _, err := w.Write(g.snapshot[:half]); err != nil {
		return err
	}
	g.set(&g.here, "stopped")
	_, err := w.Write(g.snapshot[half:])
	if err == nil {
		err = g.fail["snapshot"]
	}
	if err == nil {
		err = commit()
	}
	switch {
	case err == nil:
		g.set(&g.here, "")
	case !errors.Is(err, ErrStays):
		g.set(&g.here, "runs")
	}
	return err
}

func (g giver) Given(token string) error {
	g.given = token
	return g.fail["given"]
}

func (g giver) Back() error {
	if g.here != "stopped" || g.given == "" {
		g.t.Errorf("taken back when %q", g.here)
	}
	g.given = ""
	return nil
}

type taker struct{ *world }

func (k taker) Want(peer *Hello, o *Offer) (*Want, error) {
	w := &Want{}
	for i, l := range o.Layers {
		if !k.has[l.Digest] {
			w.Layers = append(w.Layers, i)
		}
	}
	return w, k.fail["want"]
}

func (k taker) Layer(_ context.Context, n int, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil && string(b) != "layer "+k.layers[n] {
		k.t.Errorf("layer %d is %q", n, b)
	}
	return err
}

func (k taker) Wake(_ context.Context, r io.Reader, began func(Running) error, ready func() error) (_ *Running, err error) {
	at := Running{Name: "db", Lab: "shop"}
	if err := began(at); err != nil {
		return nil, err
	}
	k.set(&k.there, "stopped")
	defer func() {
		if err != nil {
			k.set(&k.there, "")
		}
	}()
	k.got.Reset()
	if _, err := io.Copy(&k.got, r); err != nil {
		return nil, err
	}
	if err := k.fail["wake"]; err != nil {
		return nil, err
	}
	if err := ready(); err != nil {
		return nil, err
	}
	if err := k.fail["run"]; err != nil {
		return nil, err
	}
	k.set(&k.there, "runs")
	return &at, nil
}

func (k taker) Clear(context.Context, Running) error {
	k.set(&k.there, "")
	return k.fail["clear"]
}

// cut is where a line breaks: when so many bytes have gone, in one direction.
type cut struct {
	giver bool // what the giver writes
	after int
}

// cutter passes bytes on until the line breaks.
type cutter struct {
	w     io.Writer
	left  int // -1 for all
	brk   func()
	count *int
}

func (c *cutter) Write(b []byte) (int, error) {
	if c.left >= 0 && len(b) >= c.left {
		n, _ := c.w.Write(b[:c.left])
		c.left = 0
		c.brk()
		return n, errors.New("broken pipe")
	}
	if c.left > 0 {
		c.left -= len(b)
	}
	if c.count != nil {
		*c.count += len(b)
	}
	return c.w.Write(b)
}

// dial makes lines of real pipes; the n-th breaks at cuts[n]. What has gone into a
// pipe still comes out of it, as with ssh.
func (w *world) dial(cuts []cut, takers *sync.WaitGroup, written *[2]int) Dial {
	n := -1
	return func(ctx context.Context) (Line, error) {
		n++
		toR, toW, err := os.Pipe()
		if err != nil {
			return Line{}, err
		}
		fromR, fromW, err := os.Pipe()
		if err != nil {
			return Line{}, err
		}
		near := func() { toW.Close(); fromR.Close() }
		far := func() { toR.Close(); fromW.Close() }
		out, back := &cutter{w: toW, left: -1, brk: near}, &cutter{w: fromW, left: -1, brk: far}
		if n < len(cuts) {
			if cuts[n].giver {
				out.left = cuts[n].after
			} else {
				back.left = cuts[n].after
			}
		}
		if n == 0 && written != nil {
			out.count, back.count = &written[0], &written[1]
		}
		takers.Add(1)
		go func() {
			defer takers.Done()
			Take(context.WithoutCancel(ctx), Line{In: toR, Out: back, Close: far}, Hello{}, taker{w}, w.book)
		}()
		return Line{In: fromR, Out: out, Close: near}, nil
	}
}

func (w *world) give(cuts []cut, patience time.Duration) (*Running, [2]int, error) {
	var takers sync.WaitGroup
	var written [2]int
	at, err := Give(w.t.Context(), w.dial(cuts, &takers, &written), Hello{}, giver{w}, patience)
	takers.Wait()
	return at, written, err
}

// one checks that exactly one runs, and that nothing else is anywhere.
func (w *world) one() {
	w.t.Helper()
	if w.here+"+"+w.there != "runs+" && w.here+"+"+w.there != "+runs" {
		w.t.Errorf("here %q, there %q", w.here, w.there)
	}
}

func (w *world) left() string {
	var names []string
	entries, _ := os.ReadDir(w.book.Dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}
