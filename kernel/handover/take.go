package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// A Taker makes anew what comes over the line.
type Taker interface {
	// Want says which layers are not here; an error refuses the offer.
	Want(peer *Hello, o *Offer) (*Want, error)
	// Layer takes one of those; what it leaves of r is passed over.
	Layer(ctx context.Context, n int, r io.Reader) error
	// Wake makes it of the snapshot, and calls ready when all is there and nothing
	// runs yet. It runs when ready has returned nil; after an error, ready's own as
	// well, nothing of it is left. began is called before anything is made, with
	// the name that it will have.
	Wake(ctx context.Context, r io.Reader, began func(Running) error, ready func() error) (*Running, error)
	// Clear ends what a taker has left that died before it had it running.
	Clear(ctx context.Context, at Running) error
}

// Take serves one line: a move, or the question what has become of one. It
// returns when that is over, with the reason where nothing was taken.
func Take(ctx context.Context, line Line, me Hello, t Taker, book *Book) error {
	defer line.Close()
	defer context.AfterFunc(ctx, line.Close)()
	f, peer, err := line.greet(me)
	if err != nil {
		return err
	}
	defer f.keepAlive()()
	k, text, err := f.read(nil)
	if err != nil {
		return err
	}
	switch k {
	case kindAsk:
		err = f.answer(ctx, t, book, string(text))
	case kindOffer:
		o := &Offer{}
		if err = decode(k, text, o); err == nil {
			err = f.take(ctx, peer, t, book, o)
		}
	default:
		err = unexpected(k, text, "offer")
	}
	if r := (*Remote)(nil); err != nil && !errors.As(err, &r) && !errors.Is(err, errBroken) {
		f.giveUp(err)
	}
	return err
}

func (f *frames) take(ctx context.Context, peer *Hello, t Taker, book *Book, o *Offer) error {
	entry, err := book.Begin(o.Token)
	if err != nil {
		return err
	}
	defer entry.End()
	want, err := t.Want(peer, o)
	if err == nil {
		err = f.tell(kindWant, want)
	}
	if err != nil {
		return err
	}
	for _, n := range want.Layers {
		s := &source{f: f}
		if err := t.Layer(ctx, n, s); err != nil {
			return s.reason(err)
		}
		if err := s.drain(); err != nil {
			return err
		}
	}
	s := &source{f: f}
	at, err := t.Wake(ctx, s, entry.Name, func() error {
		if err := s.drain(); err != nil {
			return err
		}
		if err := f.write(kindReady, nil); err != nil {
			return err
		}
		if err := f.expect(kindGo, nil); err != nil {
			return err
		}
		return entry.Run()
	})
	if err == nil {
		err = entry.Up(*at)
	}
	if err != nil && entry.Decided() {
		// Failed says that nothing runs here, and the giver's goes on at once.
		if left := t.Clear(context.WithoutCancel(ctx), entry.at); left != nil {
			return fmt.Errorf("%w: %w; and undoing it: %w", errBroken, err, left)
		}
		entry.Not()
	}
	if err != nil {
		return s.reason(err)
	}
	if err := f.tell(kindRunning, at); err != nil {
		return nil // it runs; the giver will ask
	}
	if f.expect(kindThanks, nil) == nil {
		entry.Forget()
	}
	return nil
}

// reason is the line's own error where that is why something failed: it has no
// other, and says more.
func (s *source) reason(err error) error {
	if s.err != nil && s.err != io.EOF && !errors.Is(err, s.err) {
		return s.err
	}
	return err
}

func (f *frames) answer(ctx context.Context, t Taker, book *Book, token string) error {
	s, err := book.Ask(ctx, token, func(at Running) error { return t.Clear(ctx, at) })
	if err != nil {
		return fmt.Errorf("what has become of it: %w", err)
	}
	if err := f.tell(kindState, s); err != nil {
		return err
	}
	if err := f.expect(kindThanks, nil); err != nil {
		return nil // it may ask again
	}
	return book.Forget(token)
}
