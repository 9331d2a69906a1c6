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
	// Snapshot writes it, and stops it on the way: it stands still when it returns.
	// It is called once; after an error it runs as before.
	Snapshot(ctx context.Context, w io.Writer) error
	// Given writes down, so that a crash does not undo it, that from now on the
	// other host may run it: it must not go on by itself any more.
	Given(token string) error
	// TakeBack lets what stands still go on: nothing of it runs elsewhere.
	TakeBack() error
	// Gone ends what stands still: it runs elsewhere.
	Gone(Running) error
}

// Dial makes a new line to the other host.
type Dial func(context.Context) (Line, error)

// Error says why something was not moved.
type Error struct {
	Cause error
	// InDoubt: the other host may run it, which could not be found out. It stands
	// still here, under this token.
	InDoubt bool
	Token   string
}

func (e *Error) Error() string {
	if e.InDoubt {
		return "whether it runs on the other host is not known: " + e.Cause.Error()
	}
	return e.Cause.Error()
}

func (e *Error) Unwrap() error { return e.Cause }

// NewToken makes one that no other move has.
func NewToken() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Give moves what g has to the host that dial leads to. When it returns without an
// error it runs there and has ended here; with one it runs here, unless that is
// InDoubt. Patience is for how long a host that cannot be reached is asked what has
// become of it.
func Give(ctx context.Context, dial Dial, me Hello, g Giver, patience time.Duration) (*Running, error) {
	line, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, line.Close)
	at, err := give(ctx, line, me, g)
	stop()
	line.Close()
	if err == nil {
		return at, nil
	}
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = ctx.Err() // what broke was broken by us
	}
	var doubt *Error
	if !errors.As(err, &doubt) {
		return nil, err
	}
	// The end of ctx does not end the question: the answer is what it all hangs on.
	state, asked := Settle(context.WithoutCancel(ctx), dial, me, doubt.Token, g, patience)
	switch {
	case state == nil:
		return nil, &Error{Cause: fmt.Errorf("%w; asked again: %w", doubt.Cause, asked), InDoubt: true, Token: doubt.Token}
	case state.Runs:
		return &state.Running, asked
	}
	return nil, errors.Join(doubt.Cause, asked)
}

// give goes through the protocol once. An *Error is one after which the other host
// may run it.
func give(ctx context.Context, line Line, me Hello, g Giver) (*Running, error) {
	f, peer, err := line.greet(me)
	if err != nil {
		return nil, err
	}
	defer f.keepAlive()()
	offer, err := g.Offer(peer)
	if err != nil {
		return nil, err
	}
	var want Want
	if err = f.tell(kindOffer, offer); err == nil {
		err = f.expect(kindWant, &want)
	}
	if err != nil {
		return nil, err
	}
	for _, n := range want.Layers {
		if n < 0 || n >= len(offer.Layers) {
			return nil, fmt.Errorf("the other host wants layer %d of %d", n, len(offer.Layers))
		}
		if err := f.send(func(w io.Writer) error { return g.Layer(ctx, n, w) }); err != nil {
			return nil, fmt.Errorf("send %s: %w", offer.Layers[n].Name, err)
		}
	}
	if err := f.send(func(w io.Writer) error { return g.Snapshot(ctx, w) }); err != nil {
		if s := (*sendError)(nil); errors.As(err, &s) && s.whole { // it stands still, and all that failed was to say so
			err = errors.Join(err, g.TakeBack())
		}
		return nil, err
	}
	if err := f.expect(kindReady, nil); err != nil {
		return nil, errors.Join(err, g.TakeBack())
	}
	if err := g.Given(offer.Token); err != nil {
		f.giveUp(err)
		return nil, errors.Join(err, g.TakeBack())
	}
	var at Running
	if err = f.write(kindGo, nil); err == nil {
		err = f.expect(kindRunning, &at)
	}
	// A taker that says it has failed has nothing running; any other trouble is a doubt.
	if r := (*Remote)(nil); errors.As(err, &r) {
		return nil, errors.Join(err, g.TakeBack())
	}
	if err != nil {
		return nil, &Error{Cause: err, Token: offer.Token}
	}
	if err := g.Gone(at); err != nil {
		return &at, err
	}
	f.write(kindThanks, nil) // if it is lost, a word of it stays with the taker until that is swept
	return &at, nil
}

// sendError is one of a stream; whole tells that its writer had done its part.
type sendError struct {
	err   error
	whole bool
}

func (e *sendError) Error() string { return e.err.Error() }
func (e *sendError) Unwrap() error { return e.err }

// send writes a stream. Where the line breaks meanwhile, the peer may have said why.
func (f *frames) send(write func(io.Writer) error) error {
	err := write(stream{f})
	whole := err == nil
	if whole {
		if err = f.write(kindEnd, nil); err == nil {
			return nil
		}
	}
	if !errors.Is(err, errBroken) {
		f.giveUp(err)
		return &sendError{err, whole}
	}
	watch := time.AfterFunc(lastWords, f.close)
	defer watch.Stop()
	if said := f.expect(kindReady, nil); said != nil && !errors.Is(said, errBroken) {
		err = said
	}
	return &sendError{err, whole}
}

// lastWords is how long the giver listens to a line that it cannot write to.
const lastWords = 2 * time.Second

// A Settler acts on the answer: a Giver, or who comes after one that has died.
type Settler interface {
	TakeBack() error
	Gone(Running) error
}

// Settle asks the other host what has become of a move, until it answers or
// patience has passed, and has g act on the answer, which is for ever. No State
// stands for no answer; an error beside one is g's own.
func Settle(ctx context.Context, dial Dial, me Hello, token string, g Settler, patience time.Duration) (*State, error) {
	end := time.Now().Add(patience)
	for wait := firstWait; ; wait = min(2*wait, maxWait) {
		s, err := ask(ctx, dial, me, token, g)
		if s != nil {
			return s, err
		}
		if r := (*Remote)(nil); errors.As(err, &r) || time.Now().Add(wait).After(end) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Between two questions.
const (
	firstWait = 200 * time.Millisecond
	maxWait   = 5 * time.Second
)

func ask(ctx context.Context, dial Dial, me Hello, token string, g Settler) (*State, error) {
	line, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	defer line.Close()
	defer context.AfterFunc(ctx, line.Close)()
	f, _, err := line.greet(me)
	if err != nil {
		return nil, err
	}
	defer f.keepAlive()()
	s := &State{}
	if err = f.write(kindAsk, []byte(token)); err == nil {
		err = f.expect(kindState, s)
	}
	if err != nil {
		return nil, err
	}
	if s.Runs {
		err = g.Gone(s.Running)
	} else {
		err = g.TakeBack()
	}
	if err == nil { // else it may have to be asked once more
		f.write(kindThanks, nil)
	}
	return s, err
}
