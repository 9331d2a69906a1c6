package handover

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"msh/kernel/checkpoint"
)

// Version is that of this protocol. Two sides with different ones do not talk.
const Version = 1

// explain puts the reason why the line has ended in the place of that it has.
func (l Line) explain(err error) error {
	if err == nil || l.Why == nil || !errors.Is(err, errBroken) || errors.Is(err, ErrStays) {
		return err
	}
	if why := l.Why(); why != nil {
		return why
	}
	return err
}

// magic stands before the first frame: what a login shell's start-up files print
// comes before it, and is passed over.
const magic = "MSH-HANDOVER\n"

// maxNoise is how much of that may be, in bytes.
const maxNoise = 64 << 10

// Silence is how long a peer may say nothing before the line counts as broken.
const Silence = 30 * time.Second

// greeting is how long it may take until it says hello: a login, and the start of a
// criu that looks at its kernel for the first time, on a slow host.
const greeting = 2 * time.Minute

// Hello is what each side tells of itself.
type Hello struct {
	Protocol int             `json:"protocol"`
	Msh      string          `json:"msh"`            // its version
	CRIU     string          `json:"criu,omitempty"` // its version; "" where there is none
	Track    bool            `json:"track"`          // whether the kernel tracks changed pages
	Host     checkpoint.Host `json:"host"`
}

// Layer is something that what is moved stands on, and that the taker may have.
type Layer struct {
	Name   string `json:"name"` // what it is here: a path
	Digest string `json:"digest"`
}

// Offer is what is to be moved.
type Offer struct {
	Token  string  `json:"token"` // of this move, and of no other
	Name   string  `json:"name"`
	Lab    string  `json:"lab"`
	Layers []Layer `json:"layers,omitempty"`
	// Options are between the giver and the taker.
	Options json.RawMessage `json:"options,omitempty"`
}

// Want is what the taker wants of it.
type Want struct {
	Layers []int `json:"layers,omitempty"` // indices of Offer.Layers
}

// Running says under which name it runs at the taker's.
type Running struct {
	Name string `json:"name"`
	Lab  string `json:"lab"`
}

// State answers the question what has become of a token.
type State struct {
	Runs bool `json:"runs"`
	Running
}

// failure is why a side gives up.
type failure struct {
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// A Remote error is what the other side has given up for.
type Remote struct{ Text, hint string }

func (e *Remote) Error() string { return "the other host: " + e.Text }

// Hint is the mend, "" for none.
func (e *Remote) Hint() string { return e.hint }

// Line is the streams to a peer.
type Line struct {
	In  io.Reader
	Out io.Writer
	// Close ends both, so that what waits on them returns. It may be called more
	// than once, and at any time.
	Close func()
	// Why, if not nil, tells why the line has ended, where that is known.
	Why func() error
	// Silence is how long the peer may say nothing; 0 stands for the constant.
	Silence time.Duration
}

// greet opens the line: each side says hello before it hears the other's.
func (l Line) greet(mine Hello) (*frames, *Hello, error) {
	silence := l.Silence
	if silence == 0 {
		silence = Silence
	}
	in := bufio.NewReaderSize(l.In, 32<<10)
	f := &frames{in: in, out: l.Out, close: l.Close, silent: silence}
	mine.Protocol = Version
	text, err := json.Marshal(mine)
	if err != nil {
		return nil, nil, err
	}
	if _, err = io.WriteString(l.Out, magic); err != nil {
		err = broken(err)
	} else {
		err = f.write(kindHello, text)
	}
	// What is no msh may have ended by now: what it wrote tells more than that.
	watch := time.AfterFunc(max(silence, greeting), l.Close)
	if noise := findMagic(in); noise != nil {
		err = noise
	}
	watch.Stop()
	if err != nil {
		return nil, nil, err
	}
	peer := &Hello{}
	if err := f.expect(kindHello, peer); err != nil {
		return nil, nil, err
	}
	if peer.Protocol != Version {
		return nil, nil, fmt.Errorf("the other host's msh (%s) speaks version %d of this protocol, this one %d: want the same msh on both", short(peer.Msh), peer.Protocol, Version)
	}
	return f, peer, nil
}

// findMagic passes over what comes before it.
func findMagic(in *bufio.Reader) error {
	var noise bytes.Buffer
	for noise.Len() < maxNoise {
		line, err := in.ReadSlice('\n')
		if bytes.HasSuffix(line, []byte(magic)) {
			return nil
		}
		noise.Write(line)
		if err != nil && err != bufio.ErrBufferFull {
			if noise.Len() > 0 {
				return fmt.Errorf("%w: the other side is no msh: it wrote %q", broken(err), short(noise.String()))
			}
			return broken(err)
		}
	}
	return fmt.Errorf("the other side is no msh: it wrote %q", short(noise.String()))
}

func short(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// tell writes a frame of JSON.
func (f *frames) tell(k kind, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.write(k, text)
}

// expect reads a frame of that kind and no other.
func (f *frames) expect(want kind, v any) error {
	k, text, err := f.read(nil)
	if err != nil {
		return err
	}
	if k != want || k == kindFailed {
		return unexpected(k, text, want.String())
	}
	if v == nil {
		return nil
	}
	return decode(k, text, v)
}

func decode(k kind, text []byte, v any) error {
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	return nil
}

// unexpected is the error for a frame that is not the one that was due.
func unexpected(k kind, text []byte, want string) error {
	if k != kindFailed {
		return fmt.Errorf("got %s, want %s", k, want)
	}
	var e failure
	if err := json.Unmarshal(text, &e); err != nil || e.Text == "" {
		return &Remote{Text: "it gave up, and did not say why"}
	}
	return &Remote{clean(e.Text), clean(e.Hint)}
}

// clean makes a peer's text fit for a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return '�'
		}
		return r
	}, s)
}

// giveUp tells the peer why, if it can still hear it.
func (f *frames) giveUp(err error) {
	e := failure{Text: err.Error()}
	if h, ok := err.(interface{ Hint() string }); ok {
		e.Hint = h.Hint()
	}
	if len(e.Text) > maxText/8 {
		e.Text = e.Text[:maxText/8]
	}
	f.tell(kindFailed, e)
}
