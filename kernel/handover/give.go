package handover

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"
)

// A Giver has what is to be moved.
type Giver interface {
	// Offer says what it is, now that the other host is known; an error ends it.
	Offer(peer *Hello) (*Offer, error)
	// Layer writes one of Offer.Layers.
	Layer(ctx context.Context, n int, w io.Writer) error
	// Snapshot writes it, stops it on the way, and calls commit when all is written
	// and it stands still. After commit's nil it ends here; after ErrStays it goes on
	// standing still, also when this process has ended; after any other error, its
	// own as well, it runs as before.
	Snapshot(ctx context.Context, w io.Writer, commit func() error) error
	// Given writes down, so that no crash has it go on, that from now on the other
	// host may run it.
	Given(token string) error
	// Back drops what Given has written: nothing of it runs elsewhere, nor will.
	Back() error
}

// ErrStays is that of a commit of which nobody knows whether the other host runs it.
var ErrStays = errors.New("it stands still")

// Dial makes a new line to the other host.
type Dial func(context.Context) (Line, error)

// Doubt is the error of a move of which it could not be found out whether the other
// host runs it. Here it stands still, under this token.
type Doubt struct {
	Cause error
	Token string
}

func (e *Doubt) Error() string {
	return "whether it runs on the other host is not known: " + e.Cause.Error()
}

func (e *Doubt) Unwrap() []error { return []error{e.Cause, ErrStays} }

// NewToken makes one that no other move has.
func NewToken() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Give moves what g has to the host that dial leads to. When it returns without an
// error it runs there and has ended here; with one it runs here, unless that is a
// Doubt. Patience is for how long a host that cannot be reached is asked what has
// become of it.
func Give(ctx context.Context, dial Dial, me Hello, g Giver, patience time.Duration) (*Running, error) {
	line, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	defer line.Close()
	defer context.AfterFunc(ctx, line.Close)()
	at, thank, err := give(ctx, line, dial, me, g, patience)
	if err == nil {
		thank() // if it is lost, a word of it stays there until it is swept
		return at, nil
	}
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) && !errors.Is(err, ErrStays) {
		return nil, ctx.Err() // what broke was broken by us
	}
	return nil, line.explain(err)
}

func give(ctx context.Context, line Line, dial Dial, me Hello, g Giver, patience time.Duration) (at *Running, thank func(), err error) {
	f, peer, err := line.greet(me)
	if err != nil {
		return nil, nil, err
	}
	defer f.keepAlive()()
	offer, err := g.Offer(peer)
	if err != nil {
		f.giveUp(err)
		return nil, nil, err
	}
	var want Want
	if err = f.tell(kindOffer, offer); err == nil {
		err = f.expect(kindWant, &want)
	}
	if err != nil {
		return nil, nil, err
	}
	for _, n := range want.Layers {
		if n < 0 || n >= len(offer.Layers) {
			return nil, nil, fmt.Errorf("the other host wants layer %d of %d", n, len(offer.Layers))
		}
		err := g.Layer(ctx, n, stream{f})
		if err == nil {
			err = f.write(kindEnd, nil)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("send %s: %w", offer.Layers[n].Name, f.fail(err))
		}
	}
	thank = func() { f.write(kindThanks, nil) }
	err = g.Snapshot(ctx, stream{f}, func() error {
		if err := f.write(kindEnd, nil); err != nil {
			return err
		}
		if err := f.expect(kindReady, nil); err != nil {
			return err
		}
		if err := g.Given(offer.Token); err != nil {
			return errors.Join(err, g.Back())
		}
		err := f.write(kindGo, nil)
		if err == nil {
			at = &Running{}
			if err = f.expect(kindRunning, at); err == nil {
				return nil
			}
		}
		// A taker that says it has failed has nothing running; any other trouble is a
		// doubt. The answer is what it all hangs on, so the end of ctx does not end
		// the question.
		if r := (*Remote)(nil); !errors.As(err, &r) {
			var s *State
			var asked error
			s, thank, asked = Ask(context.WithoutCancel(ctx), dial, me, offer.Token, patience)
			switch {
			case asked != nil:
				return &Doubt{fmt.Errorf("%w; asked again: %w", err, asked), offer.Token}
			case s.Runs:
				at = &s.Running
				return nil
			}
			defer func() { thank() }()
		}
		return errors.Join(err, g.Back())
	})
	if err != nil {
		return nil, nil, f.fail(err)
	}
	return at, thank, nil
}

// fail is for a stream that could not be sent to its end: where that is for the line,
// the peer may have said why, and else it is told.
func (f *frames) fail(err error) error {
	var r *Remote
	switch {
	case errors.Is(err, ErrStays) || errors.As(err, &r):
		return err
	case !errors.Is(err, errBroken):
		f.giveUp(err)
		return err
	}
	watch := time.AfterFunc(lastWords, f.close)
	defer watch.Stop()
	if said := f.expect(kindFailed, nil); errors.As(said, &r) {
		return said
	}
	return err
}

// lastWords is how long the giver listens to a line that it cannot write to.
const lastWords = 2 * time.Second

// Between two questions.
const (
	firstWait = 200 * time.Millisecond
	maxWait   = 5 * time.Second
)

// Ask asks the other host what has become of a move, until it answers or patience
// has passed. The answer is for ever. Once it has been acted on, thank lets the
// other host forget it: not before, for a crash has it asked again.
func Ask(ctx context.Context, dial Dial, me Hello, token string, patience time.Duration) (s *State, thank func(), err error) {
	end := time.Now().Add(patience)
	for wait := firstWait; ; wait = min(2*wait, maxWait) {
		s, thank, err := ask(ctx, dial, me, token)
		if err == nil {
			return s, thank, nil
		}
		if r := (*Remote)(nil); errors.As(err, &r) || time.Now().Add(wait).After(end) {
			return nil, nil, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func ask(ctx context.Context, dial Dial, me Hello, token string) (_ *State, thank func(), err error) {
	line, err := dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, line.Close)
	defer func() {
		if err != nil {
			stop()
			line.Close()
			err = line.explain(err)
		}
	}()
	f, _, err := line.greet(me)
	if err != nil {
		return nil, nil, err
	}
	s := &State{}
	if err = f.write(kindAsk, []byte(token)); err == nil {
		err = f.expect(kindState, s)
	}
	if err != nil {
		return nil, nil, err
	}
	quiet := f.keepAlive()
	return s, func() {
		quiet()
		f.write(kindThanks, nil)
		stop()
		line.Close()
	}, nil
}
