package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMoves(t *testing.T) {
	w := newWorld(t)
	at, _, err := w.give(nil, time.Second)
	if err != nil || at.Name != "db" {
		t.Fatal(at, err)
	}
	if w.here != "" || w.there != "runs" {
		t.Errorf("here %q, there %q", w.here, w.there)
	}
	if !bytes.Equal(w.got.Bytes(), w.snapshot) {
		t.Errorf("%d bytes came, of %d", w.got.Len(), len(w.snapshot))
	}
	if left := w.left(); left != "" {
		t.Errorf("left in the book: %s", left)
	}
}

// The line breaks at every byte of what is said, and at some of the data: exactly
// one runs, and nothing is left.
func TestCuts(t *testing.T) {
	w := newWorld(t)
	_, written, err := w.give(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for side, total := range written {
		for at := 0; at <= total; at++ {
			if at < 300 && at%7 != 0 || side == 0 && at > 700 && at < total-20 && at%104729 != 0 { // in the middle of a hello, of data
				continue
			}
			t.Run(fmt.Sprintf("%d/%d", side, at), func(t *testing.T) {
				w := newWorld(t)
				if at%2 == 1 { // a question is cut as well
					_, _, err = w.give([]cut{{side == 0, at}, {true, 300}}, 5*time.Second)
				} else {
					_, _, err = w.give([]cut{{side == 0, at}}, 5*time.Second)
				}
				if (err == nil) != (w.there == "runs") {
					t.Errorf("error %v, there %q", err, w.there)
				}
				w.one()
				if left := w.left(); left != "" && (strings.Contains(left, ".") || w.there != "runs") {
					t.Errorf("left in the book: %s", left)
				}
			})
		}
	}
}

// Whoever fails says so, and it goes on at the giver's.
func TestFails(t *testing.T) {
	for _, where := range []string{"offer", "layer", "snapshot", "given", "want", "wake", "run"} {
		t.Run(where, func(t *testing.T) {
			w := newWorld(t)
			w.fail[where] = errors.New("no room for " + where)
			_, _, err := w.give(nil, 0)
			if err == nil || !strings.Contains(err.Error(), "no room for "+where) {
				t.Errorf("error %v", err)
			}
			if w.here != "runs" || w.there != "" {
				t.Errorf("here %q, there %q", w.here, w.there)
			}
			if left := w.left(); left != "" {
				t.Errorf("left in the book: %s", left)
			}
		})
	}
}

// A taker that cannot undo what it has made says nothing of it: it is asked, again
// and again, and meanwhile nothing runs here.
func TestNotUndone(t *testing.T) {
	w := newWorld(t)
	w.fail["run"], w.fail["clear"] = errors.New("criu failed"), errors.New("a process in D")
	_, _, err := w.give(nil, time.Second)
	var e *Doubt
	if !errors.As(err, &e) || w.here != "stopped" {
		t.Fatalf("error %v, here %q", err, w.here)
	}
	delete(w.fail, "clear")
	w.settle(e.Token, false)
	if left := w.left(); left != "" {
		t.Errorf("left in the book: %s", left)
	}
}

// A host that cannot be reached any more leaves a doubt, and a token to ask with.
func TestInDoubt(t *testing.T) {
	for _, goes := range []bool{true, false} { // whether the go arrives
		w := newWorld(t)
		_, written, err := w.give(nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		w = newWorld(t)
		var takers sync.WaitGroup
		after := written[0] - headSize // the thanks
		if !goes {
			after -= headSize - 1 // one byte of it does not
		}
		dial := w.dial([]cut{{true, after}}, &takers, nil)
		first := true
		once := func(ctx context.Context) (Line, error) {
			if !first {
				return Line{}, errors.New("no route to host")
			}
			first = false
			l, err := dial(ctx)
			if goes { // what comes back is lost
				l.In = io.MultiReader(io.LimitReader(l.In, int64(written[1]-10)), silence{})
			}
			return l, err
		}
		_, err = Give(t.Context(), once, Hello{}, giver{w}, 300*time.Millisecond)
		takers.Wait()
		var e *Doubt
		if !errors.As(err, &e) || e.Token != w.given || w.here != "stopped" || (w.there == "runs") != goes {
			t.Fatalf("error %v, here %q, there %q", err, w.here, w.there)
		}
		w.settle(e.Token, goes)
		w.one()
		if left := w.left(); left != "" {
			t.Errorf("left in the book: %s", left)
		}
	}
}

// settle asks, as who comes after a giver that has died.
func (w *world) settle(token string, runs bool) {
	w.t.Helper()
	var takers sync.WaitGroup
	s, thank, err := Ask(w.t.Context(), w.dial(nil, &takers, nil), Hello{}, token, time.Second)
	if err != nil || s.Runs != runs {
		w.t.Fatalf("%+v, %v", s, err)
	}
	w.set(&w.here, map[bool]string{true: "", false: "runs"}[s.Runs])
	thank()
	takers.Wait()
}

// silence is a line that has broken without a word.
type silence struct{}

func (silence) Read([]byte) (int, error) { return 0, errors.New("connection timed out") }

// A go that comes after the giver has asked is refused: it runs at the giver's.
func TestLateGo(t *testing.T) {
	w := newWorld(t)
	e, err := w.book.Begin(strings.Repeat("ab", 16))
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan *State)
	go func() {
		s, err := w.book.Ask(t.Context(), e.token, func(Running) error { return nil })
		if err != nil {
			t.Error(err)
		}
		answer <- s
	}()
	for w.left() == e.token+".lock" {
		time.Sleep(time.Millisecond)
	}
	select {
	case s := <-answer:
		t.Errorf("answered %+v while the taker had it in hand", s)
	case <-time.After(100 * time.Millisecond):
	}
	if err := e.Run(); !errors.Is(err, errWithdrawn) {
		t.Errorf("error %v", err)
	}
	e.End()
	if s := <-answer; s.Runs {
		t.Errorf("%+v", s)
	}
}

// A taker that was killed at each step has what it left ended before the answer,
// and by a sweep.
func TestTakerDies(t *testing.T) {
	for _, sweep := range []bool{false, true} {
		for _, after := range []string{"begin", "name", "run", "up"} {
			w := newWorld(t)
			e, err := w.book.Begin(strings.Repeat("cd", 16))
			if err != nil {
				t.Fatal(err)
			}
			if after != "begin" {
				w.there = "stopped"
				e.Name(Running{Name: "db", Lab: "shop"})
			}
			if after == "run" || after == "up" {
				if err := e.Run(); err != nil {
					t.Fatal(err)
				}
			}
			if after == "up" {
				w.there = "runs"
				e.Up(Running{Name: "db", Lab: "shop"})
			}
			e.lock.Close() // as the kernel does
			clear := func(at Running) error {
				if at.Name != "db" {
					t.Errorf("clear %+v", at)
				}
				w.there = ""
				return nil
			}
			if sweep {
				if err := w.book.Sweep(clear); err != nil {
					t.Error(err)
				}
				if left := w.left(); left != "" && left != e.token || (left != "") != (after == "up") {
					t.Errorf("after %s: left in the book: %s", after, left)
				}
			}
			s, err := w.book.Ask(t.Context(), e.token, clear)
			if err != nil || s.Runs != (after == "up") || (w.there == "runs") != s.Runs {
				t.Errorf("after %s: %+v, %v, there %q", after, s, err, w.there)
			}
			w.book.Forget(e.token)
			if left := w.left(); left != "" {
				t.Errorf("after %s: left in the book: %s", after, left)
			}
		}
	}
}

// A context that ends before the go has it go on here.
func TestCancelled(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	var takers sync.WaitGroup
	dial := w.dial(nil, &takers, nil)
	w.fail["want"] = nil
	g := cancelling{giver{w}, cancel}
	_, err := Give(ctx, dial, Hello{}, g, time.Second)
	takers.Wait()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if w.here != "runs" || w.there != "" {
		t.Errorf("here %q, there %q", w.here, w.there)
	}
}

type cancelling struct {
	giver
	cancel func()
}

func (c cancelling) Snapshot(ctx context.Context, w io.Writer, commit func() error) error {
	return c.giver.Snapshot(ctx, w, func() error {
		c.cancel()
		return commit()
	})
}

// What is not msh is told as what it wrote; what a login prints is passed over.
func TestNoise(t *testing.T) {
	for text, want := range map[string]string{
		"": "the line is broken",
		"This account is currently not available.\n":         `no msh: it wrote "This account is currently not available.\n"`,
		strings.Repeat("x", 100000):                          "no msh: it wrote",
		"Last login\n" + magic:                               "the line is broken",
		magic + "H\x00\x00\x00\x02{}":                        "speaks version 0 of this protocol",
		magic + "H\xff\xff\xff\xff":                          "no such frame",
		magic + "Z\x00\x00\x00\x00":                          "no such frame",
		"motd" + magic + "G\x00\x00\x00\x00":                 "got go, want hello",
		magic + "X\x00\x00\x00\x14{\"text\":\"\\u001bbye\"}": "the other host: �bye",
	} {
		_, err := Give(t.Context(), func(context.Context) (Line, error) {
			return Line{In: strings.NewReader(text), Out: io.Discard, Close: func() {}}, nil
		}, Hello{}, giver{newWorld(t)}, 0)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", short(text), err, want)
		}
	}
}

// A peer that says nothing any more is noticed, one that has nothing to say is not.
func TestSilence(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f := &frames{in: r, out: w, close: func() { r.Close() }, silent: 300 * time.Millisecond}
	stop := f.keepAlive()
	go func() {
		time.Sleep(time.Second)
		f.write(kindReady, nil)
		stop()
	}()
	if err := f.expect(kindReady, nil); err != nil {
		t.Error(err)
	}
	if err := f.expect(kindReady, nil); !errors.Is(err, errBroken) {
		t.Errorf("error %v", err)
	}
}

// Whatever comes over the line, nothing runs without a go, and nothing is left.
func FuzzTake(f *testing.F) {
	frame := func(k kind, text string) string {
		return string([]byte{byte(k), 0, 0, byte(len(text) >> 8), byte(len(text))}) + text
	}
	hello := magic + frame(kindHello, `{"protocol":1}`)
	offer := frame(kindOffer, `{"token":"0123456789abcdef","name":"db","lab":"shop","layers":[{"name":"two","digest":"digest of two"}]}`)
	layer := frame(kindData, "layer one") + frame(kindEnd, "")
	f.Add(hello)
	f.Add(hello + offer + layer + frame(kindData, "abc") + frame(kindEnd, "") + frame(kindGo, "") + frame(kindThanks, ""))
	f.Add(hello + offer + layer + frame(kindData, "abc") + frame(kindAlive, "") + frame(kindFailed, `{"text":"x"}`))
	f.Add(hello + frame(kindAsk, "0123456789abcdef") + frame(kindThanks, ""))
	f.Add(hello + frame(kindAsk, "../../etc/passwd"))
	f.Fuzz(func(t *testing.T, in string) {
		w := newWorld(t)
		w.here = ""
		Take(t.Context(), Line{In: strings.NewReader(in), Out: io.Discard, Close: func() {}}, Hello{}, taker{w}, w.book)
		if w.there == "runs" && !strings.Contains(in, frame(kindGo, "")) || w.there == "stopped" {
			t.Errorf("there %q after %q", w.there, in)
		}
		if left := w.left(); strings.Contains(left, ".") {
			t.Errorf("left in the book: %s", left)
		}
	})
}
