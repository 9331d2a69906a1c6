package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"msh/kernel/handover"
)

// other is a second host on this one: with another state directory, and lines of
// pipes to it in the place of ssh.
type other struct {
	*Host
	t      *testing.T
	served sync.WaitGroup
	errs   []error
	lab    string // that machines get there
	mu     sync.Mutex
	lines  int
	near   func(n int, l *handover.Line) // what happens to the n-th line, at each side
	far    func(n int, in *io.ReadCloser, out *io.WriteCloser)
}

// newOther makes one in which the lab's name is taken: the two share control groups.
func newOther(t *testing.T, l *Lab) *other {
	h, err := NewHost(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	taken, err := h.NewLab(l.Name(), false)
	if err != nil {
		t.Fatal(err)
	}
	taken.mu.Lock()
	err = taken.claim(t.Context())
	taken.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	h.apart = true
	o := &other{Host: h, t: t, lab: numbered(l.Name(), 2)}
	t.Cleanup(func() {
		labs, _ := h.Labs()
		for _, lab := range labs {
			if _, err := h.Down(context.Background(), lab, true); err != nil {
				t.Error(err)
			}
		}
		taken.Close(context.Background())
	})
	return o
}

func (o *other) dial(ctx context.Context) (handover.Line, error) {
	n := o.lines
	o.lines++
	toR, toW, err := os.Pipe()
	if err != nil {
		return handover.Line{}, err
	}
	fromR, fromW, err := os.Pipe()
	if err != nil {
		return handover.Line{}, err
	}
	l := handover.Line{In: fromR, Out: toW, Close: func() { toW.Close(); fromR.Close() }}
	if o.near != nil {
		o.near(n, &l)
	}
	var in io.ReadCloser = toR
	var out io.WriteCloser = fromW
	if o.far != nil {
		o.far(n, &in, &out)
	}
	o.served.Add(1)
	go func() {
		defer o.served.Done()
		err := o.Receive(context.Background(), in, out)
		o.mu.Lock()
		o.errs = append(o.errs, err)
		o.mu.Unlock()
	}()
	return l, nil
}

// machines are those that live there.
func (o *other) machines() map[string]*Machine {
	o.t.Helper()
	o.served.Wait()
	all, err := o.Machines()
	if err != nil {
		o.t.Fatal(err)
	}
	m := map[string]*Machine{}
	for _, x := range all {
		m[x.Name()] = x
		o.t.Cleanup(x.Close)
	}
	return m
}

const counting = "i=0; while sleep 0.01; do i=$((i+1)); echo $i $$ >>/count; done"

// A machine goes on on the other host where it was, and has ended here.
func TestMigrate(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"))
	o := newOther(t, l)
	started(t, m, counting)
	eventuallyIn(t, m, "/count", "\n5 ")
	r, err := m.Migrate(t.Context(), &Remote{Host: "other"}, MigrateOptions{dial: o.dial, Rounds: -1})
	if err != nil {
		explainCriu(t, err)
		t.Fatal(err, o.errs)
	}
	t.Logf("%+v", r)
	if r.Frozen <= 0 || r.Sent == 0 || r.Host != "ssh://other" {
		t.Errorf("%+v", r)
	}
	if m.State() != "dead" || len(l.Machines()) != 0 {
		t.Errorf("here: %s, machines %v", m.State(), l.Machines())
	}
	there := o.machines()["m1"]
	if there == nil || there.LabName() != r.Lab {
		t.Fatalf("there: %v", o.machines())
	}
	before := readIn(t, there, "/count")
	eventuallyIn(t, there, "/count", fmt.Sprintf("\n%d ", strings.Count(before, "\n")+3))
	for i, line := range strings.Split(strings.TrimSpace(readIn(t, there, "/count")), "\n") {
		if !strings.HasPrefix(line, fmt.Sprintf("%d ", i+1)) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
	if left, _ := os.ReadDir(o.moves().Dir); len(left) != 0 {
		t.Errorf("left of the move: %v", left)
	}
}

// The line breaks at each boundary of the protocol and inside of each stream: exactly
// one machine runs afterwards, and nothing is left on either side.
func TestMigrateCuts(t *testing.T) {
	needCriu(t)
	for _, c := range []struct {
		name  string
		far   bool // the other host's writing is cut
		kind  byte // at a frame of that kind
		n     int  // the n-th of them
		after bool // when it is out, and not in its middle
		moves bool // the machine moves all the same
	}{
		{"hello", false, 'H', 1, false, false},
		{"hello there", true, 'H', 1, false, false},
		{"offer", false, 'O', 1, false, false},
		{"want", true, 'W', 1, false, false},
		{"in the layer", false, 'D', 5, false, false},
		{"end of the layer", false, 'E', 1, false, false},
		{"in the manifest", false, 'D', 19, false, false},
		{"in the snapshot", false, 'D', 30, false, false},
		{"end of the snapshot", false, 'E', 2, false, false},
		{"behind the snapshot", false, 'E', 2, true, false},
		{"ready", true, 'R', 1, false, false},
		{"before go", false, 'G', 1, false, false},
		{"behind go", false, 'G', 1, true, true},
		{"running", true, 'A', 1, false, true},
		{"behind running", true, 'A', 1, true, true},
		{"thanks", false, 'T', 1, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			o := newOther(t, l)
			layer := smallRoot(t)
			m := fork(t, l, &Root{Source: layer, Write: "overlay"}, space("pidspace"), space("netspace"))
			started(t, m, counting)
			eventuallyIn(t, m, "/count", "\n3 ")
			data := 0
			cut := func(w io.Writer, brk func()) io.Writer {
				return &cutAt{w: w, kind: c.kind, n: c.n, after: c.after, brk: brk, data: &data}
			}
			o.near = func(n int, l *handover.Line) {
				if n == 0 && !c.far {
					l.Out = cut(l.Out, l.Close)
				}
			}
			o.far = func(n int, in *io.ReadCloser, out *io.WriteCloser) {
				if n == 0 && c.far {
					in, out := *in, out
					real := *out
					*out = cutCloser{cut(real, func() { in.Close(); real.Close() }), real}
				}
			}
			r, err := m.Migrate(t.Context(), &Remote{Host: "other"}, MigrateOptions{dial: o.dial, Patience: long})
			there := o.machines()["m1"]
			t.Logf("%v; %v; there: %v; %d data frames", err, r, o.errs, data)
			if (err == nil) != c.moves || (there != nil) != c.moves || (m.State() == "running") == c.moves {
				t.Fatalf("error %v, there %v, here %s; want it moved: %v", err, there, m.State(), c.moves)
			}
			lives := there
			if !c.moves {
				lives = m
			}
			before := strings.Count(readIn(t, lives, "/count"), "\n")
			eventuallyIn(t, lives, "/count", fmt.Sprintf("\n%d ", before+3))
			if groups := groupsLeft(labPrefix()); len(groups) == 0 || slices.ContainsFunc(groups, func(g string) bool { return strings.Contains(g, o.lab+".") }) != c.moves {
				t.Errorf("control groups: %v", groups)
			}
			if labs, _ := o.Labs(); len(labs) != map[bool]int{false: 1, true: 2}[c.moves] {
				t.Errorf("labs there: %v", labs)
			}
			if moves, _ := os.ReadDir(o.moves().Dir); len(moves) > 1 || len(moves) == 1 && (!c.moves || strings.Contains(moves[0].Name(), ".")) {
				t.Errorf("left of the move: %v", moves)
			}
			if layers, _ := os.ReadDir(o.layersDir()); len(layers) > 0 != c.moves {
				t.Errorf("layers there: %v", layers)
			}
			if n, err := m.still(); n != nil || err != nil {
				t.Errorf("stands still: %+v, %v", n, err)
			}
		})
	}
}

// cutAt breaks a line at a frame.
type cutAt struct {
	w     io.Writer
	kind  byte
	n     int
	after bool
	brk   func()
	data  *int
}

var errCut = errors.New("cut")

func (c *cutAt) Write(b []byte) (int, error) {
	if b[0] == 'D' {
		*c.data++
	}
	if b[0] != c.kind || c.n <= 0 {
		return c.w.Write(b)
	}
	if c.n--; c.n > 0 {
		return c.w.Write(b)
	}
	part := b[:len(b)/2]
	if c.after {
		part = b
	}
	n, _ := c.w.Write(part)
	c.brk()
	return n, errCut
}

type cutCloser struct {
	io.Writer
	io.Closer
}
