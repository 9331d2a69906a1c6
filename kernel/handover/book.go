package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Book is what a taker writes down of tokens, in a directory with two files for
// each:
//
//	TOKEN.lock   locked by the taker that has it in hand; its text is where
//	TOKEN        what was decided, by the first who made it; for ever
//
// The directory may be one that a reboot empties: what runs goes with it.
type Book struct{ Dir string }

// A decision is the text of a TOKEN. "run" becomes "up" or "not".
type decision struct {
	Fate    fate    `json:"fate"`
	Running Running `json:"running,omitzero"`
}

type fate string

const (
	run fate = "run" // the go has come, and it is about to run
	up  fate = "up"  // it runs, or has run
	not fate = "not" // it will never run
)

// Entry is one token that a taker has in hand.
type Entry struct {
	book  *Book
	token string
	lock  *os.File
	at    Running // what is being made
	keep  bool    // the decision has to outlive this
}

// errWithdrawn: the giver has asked meanwhile, and runs it itself.
var errWithdrawn = errors.New("the move was withdrawn")

func (b *Book) path(token string) string { return filepath.Join(b.Dir, token) }

func checkToken(token string) error {
	if len(token) < 16 || len(token) > maxToken || strings.Trim(token, "0123456789abcdef") != "" {
		return fmt.Errorf("token %q: want 16 to %d hexadecimal digits", short(token), maxToken)
	}
	return nil
}

// create has a file made in the directory, which another's end removes where it is empty.
func (b *Book) create(file func() (*os.File, error)) (*os.File, error) {
	for {
		if err := os.MkdirAll(b.Dir, 0o700); err != nil {
			return nil, err
		}
		if f, err := file(); !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
}

// Begin takes a new token in hand.
func (b *Book) Begin(token string) (*Entry, error) {
	if err := checkToken(token); err != nil {
		return nil, err
	}
	lock, err := b.create(func() (*os.File, error) {
		return os.OpenFile(b.path(token)+".lock", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("token %s: it was used before: %w", token, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock token %s: %w", token, err)
	}
	return &Entry{book: b, token: token, lock: lock}, nil
}

// Name writes down what will be made under which name, before it is made.
func (e *Entry) Name(at Running) error {
	e.at = at
	text, err := json.Marshal(at)
	if err == nil {
		_, err = e.lock.WriteAt(text, 0)
	}
	return err
}

// Run decides that it runs here; an error, that it may not.
func (e *Entry) Run() error {
	ours, err := e.book.decide(e.token, decision{Fate: run})
	if err == nil && !ours {
		err = errWithdrawn
	}
	e.keep = err == nil
	return err
}

// Decided tells whether Run has decided so.
func (e *Entry) Decided() bool { return e.keep }

// Up writes down that it runs.
func (e *Entry) Up(at Running) error { return e.book.change(e.token, decision{up, at}) }

// Not takes Run's decision back: what was to run never will, and nothing is left of it.
func (e *Entry) Not() { e.keep = false }

// Forget drops the token: nobody will ask any more.
func (e *Entry) Forget() {
	e.keep = false
	os.Remove(e.book.path(e.token))
}

// End gives it out of hand. The lock's text stays where something may be left.
func (e *Entry) End() {
	if !e.keep {
		os.Remove(e.book.path(e.token))
	}
	if d, err := e.book.read(e.token); !e.keep || err == nil && d.Fate == up {
		os.Remove(e.lock.Name())
	}
	e.lock.Close()
	os.Remove(e.book.Dir) // if it is empty
}

// decide makes the decision if none was made; ours tells whether it is this one.
func (b *Book) decide(token string, d decision) (ours bool, err error) {
	tmp, err := b.write(token, d)
	if err != nil {
		return false, err
	}
	defer os.Remove(tmp)
	switch err := os.Link(tmp, b.path(token)); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrExist):
		return false, nil
	default:
		return false, err
	}
}

// change puts another text in the place of a decision.
func (b *Book) change(token string, d decision) error {
	tmp, err := b.write(token, d)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, b.path(token)); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

func (b *Book) write(token string, d decision) (path string, err error) {
	text, err := json.Marshal(d)
	if err != nil {
		return "", err
	}
	f, err := b.create(func() (*os.File, error) { return os.CreateTemp(b.Dir, token+".*.new") })
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

func (b *Book) read(token string) (d decision, err error) {
	text, err := os.ReadFile(b.path(token))
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	return d, err
}

// Ask tells what has become of a token, and decides that it will not run where
// nothing was decided yet. A taker that has it in hand ends first; of one that
// died on the way, clear ends what it has left.
func (b *Book) Ask(ctx context.Context, token string, clear func(Running) error) (*State, error) {
	if err := checkToken(token); err != nil {
		return nil, err
	}
	if _, err := b.decide(token, decision{Fate: not}); err != nil {
		return nil, err
	}
	lock, err := b.wait(ctx, token)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	d, err := b.read(token)
	if errors.Is(err, fs.ErrNotExist) { // the taker has heard of it, and ended
		d, err = decision{Fate: not}, nil
	}
	if err != nil {
		return nil, err
	}
	var at Running
	if text, err := os.ReadFile(b.path(token) + ".lock"); err == nil && d.Fate != up && json.Unmarshal(text, &at) == nil {
		if err := clear(at); err != nil {
			return nil, err
		}
	}
	if d.Fate == run {
		if err := b.change(token, decision{Fate: not}); err != nil {
			return nil, err
		}
	}
	os.Remove(b.path(token) + ".lock")
	return &State{Runs: d.Fate == up, Running: d.Running}, nil
}

// wait waits until no taker has the token in hand, and takes it.
func (b *Book) wait(ctx context.Context, token string) (*os.File, error) {
	lock, err := os.OpenFile(b.path(token)+".lock", os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return lock, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			lock.Close()
			return nil, fmt.Errorf("lock token %s: %w", token, err)
		}
		select {
		case <-ctx.Done():
			lock.Close()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Forget drops a token about which nobody will ask any more.
func (b *Book) Forget(token string) error {
	if err := checkToken(token); err != nil {
		return err
	}
	err := os.Remove(b.path(token))
	os.Remove(b.Dir) // if it is empty
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// longest is how long it is remembered that something was taken, for a giver that
// never came back to hear it.
const longest = 30 * 24 * time.Hour

// Sweep forgets what takers that have died have left, and has clear end it.
func (b *Book) Sweep(clear func(Running) error) error {
	entries, err := os.ReadDir(b.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		token, isLock := strings.CutSuffix(e.Name(), ".lock")
		if checkToken(token) != nil {
			if i, err := e.Info(); err == nil && time.Since(i.ModTime()) > time.Hour {
				os.Remove(filepath.Join(b.Dir, e.Name())) // a text that was never put in its place
			}
			continue
		}
		if isLock {
			errs = append(errs, b.sweep(token, clear))
		} else if d, err := b.read(token); err == nil && d.Fate != run {
			i, err := e.Info()
			if _, lock := os.Stat(b.path(token) + ".lock"); err == nil && lock != nil && (d.Fate == not || time.Since(i.ModTime()) > longest) {
				os.Remove(b.path(token))
			}
		}
	}
	os.Remove(b.Dir) // if it is empty
	return errors.Join(errs...)
}

func (b *Book) sweep(token string, clear func(Running) error) error {
	lock, err := os.OpenFile(b.path(token)+".lock", os.O_RDWR, 0o600)
	if err != nil {
		return nil // it has just ended
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil
	}
	d, err := b.read(token)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d.Fate != up {
		var at Running
		if text, err := os.ReadFile(lock.Name()); err == nil && json.Unmarshal(text, &at) == nil {
			if err := clear(at); err != nil {
				return err
			}
		}
		os.Remove(b.path(token))
	}
	return os.Remove(lock.Name())
}
