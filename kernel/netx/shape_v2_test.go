package netx

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The cases of netem: `make vmtest` runs them under a kernel that has it.

// What works without netem works with it, by other means.
func TestV2Shape(t *testing.T) {
	needNetem(t)
	t.Run("state", TestShapeState)
	t.Run("in place", TestShapeInPlace)
	t.Run("limit", TestShapeLimit)
	t.Run("errors", TestShapeErrors)
	t.Run("probe", TestProbeShaping)
	t.Run("silent", TestShapeLossIsSilent)
	t.Run("transparent", TestShapeIsTransparent)
	t.Run("patch", TestPatchIsTransparent)
	t.Run("patch errors", TestPatchErrors)
}

// An emulated processor is slow: rates stay low, with windows to match.
func TestV2ShapeRate(t *testing.T) {
	needNetem(t)
	sw, a, b := switched(t)
	f := newStream(t, a, b)
	for _, rate := range []uint64{1_000_000, 5_000_000} {
		noError(t, sw.ShapeOut(12, Impair{Rate: rate}))
		within(t, "out", float64(rate), 0.03, func() float64 { return f.udpRate(t, float64(rate), 2*time.Second) })
		noError(t, sw.ShapeOut(12, Impair{}))
		noError(t, sw.ShapeIn(11, Impair{Rate: rate, Delay: time.Millisecond}))
		within(t, "in, with a delay", float64(rate), 0.03, func() float64 { return f.udpRate(t, float64(rate), 2*time.Second) })
		noError(t, sw.ShapeIn(11, Impair{}))
	}
	noError(t, sw.ShapeOut(12, Impair{Rate: 5_000_000}))
	within(t, "TCP", 5e6, 0.03, func() float64 { return tcpRate(t, a, b, 2*time.Second) })
}

func TestV2ShapeLoss(t *testing.T) {
	needNetem(t)
	sw, a, b := switched(t)
	f := newStream(t, a, b)
	for _, percent := range []float64{0, 10, 0.5, 100} {
		noError(t, sw.ShapeOut(12, Impair{Loss: percent, Duplicate: 0.0000001}))
		loses(t, "out", f, percent, 3000)
	}
	noError(t, sw.ShapeOut(12, Impair{Delay: time.Millisecond}))
	noError(t, sw.ShapeIn(11, Impair{Loss: 10, Rate: 1e8}))
	loses(t, "in", f, 10, 3000)
	noError(t, sw.ShapeIn(11, Impair{Rate: 1e8}))
	loses(t, "in, cleared", f, 0, 3000)
}

func TestV2ShapeDuplicate(t *testing.T) {
	needNetem(t)
	sw, a, b := switched(t)
	f := newStream(t, a, b)
	const n = 3000
	for _, percent := range []float64{5, 50} {
		noError(t, sw.ShapeOut(12, Impair{Duplicate: percent}))
		binomial(t, "duplicate", percent, func() (int, int) { return f.send(n) - n, n })
	}
	noError(t, sw.ShapeOut(12, Impair{Duplicate: 100}))
	if got := f.send(n); got != 2*n {
		t.Errorf("all sent twice: %d of %d arrive", got, 2*n)
	}
}

// arrival is one datagram's: its number, and how long it took.
type arrival struct {
	seq  int
	took time.Duration
}

// timed sends n datagrams, a gap apart, and returns them as they arrive. The clock
// is the same at both ends.
func (f *stream) timed(t *testing.T, n int, gap, longest time.Duration) []arrival {
	t.Helper()
	start := time.Now()
	go func() {
		for i := range n {
			b := binary.NativeEndian.AppendUint64(nil, uint64(i))
			f.out.Write(binary.NativeEndian.AppendUint64(b, uint64(time.Since(start))))
			time.Sleep(gap)
		}
	}()
	var got []arrival
	b := make([]byte, 100)
	f.in.SetReadDeadline(start.Add(time.Duration(n)*gap*2 + longest + 2*time.Second))
	for len(got) < n {
		if k, err := f.in.Read(b); err != nil || k != 16 {
			t.Errorf("%d of %d arrive: %v", len(got), n, err)
			break
		}
		got = append(got, arrival{int(binary.NativeEndian.Uint64(b)), time.Since(start) - time.Duration(binary.NativeEndian.Uint64(b[8:]))})
	}
	return got
}

// median of how long they took.
func median(got []arrival) time.Duration {
	if len(got) == 0 {
		return math.MinInt64
	}
	var d []time.Duration
	for _, a := range got {
		d = append(d, a.took)
	}
	slices.Sort(d)
	return d[len(d)/2]
}

// A delay is right to 1 ms + 2 %, at the median and less what the same cable takes
// without it. An emulated processor can be held up for longer, so the best of three
// samples counts.
func TestV2ShapeDelay(t *testing.T) {
	needNetem(t)
	sw, a, b := switched(t)
	f := newStream(t, a, b)
	const ms = time.Millisecond
	bare := median(f.timed(t, 50, 5*ms, 0))
	for _, c := range []struct {
		in, out time.Duration
		n       int
	}{{0, ms, 50}, {10 * ms, 0, 50}, {30 * ms, 70 * ms, 50}, {0, 500 * ms, 20}, {0, 5 * time.Second, 5}} { // the last is beyond 32 bits of ns
		noError(t, sw.ShapeIn(11, Impair{Delay: c.in}))
		noError(t, sw.ShapeOut(12, Impair{Delay: c.out, Rate: 1e9}))
		want := c.in + c.out
		var got []time.Duration
		ok := false
		for len(got) < 3 && !ok {
			d := median(f.timed(t, c.n, 5*ms, want)) - bare
			got = append(got, d)
			ok = (d - want).Abs() <= ms+want/50
		}
		if t.Logf("%v: %v (without: %v)", want, got, bare); !ok {
			t.Errorf("delay of %v: got %v, want it to 1 ms + 2 %%", want, got)
		}
	}
}

// Jitter spreads the delays as its distribution says. The emulated processor adds a
// spread of its own, always to the late side, so the bounds are wide: a quarter of
// the deviation. The mean is checked by the table's own test.
func TestV2ShapeJitter(t *testing.T) {
	needNetem(t)
	sw, a, b := switched(t)
	f := newStream(t, a, b)
	const ms = time.Millisecond
	// From shape to shape, and back: all of it in place.
	for _, c := range []struct {
		distribution string
		deviation    float64 // of a jitter of 20 ms
		lowest       time.Duration
	}{{"normal", 20, 20 * ms}, {"", 20 / math.Sqrt(3), 80 * ms}, {"pareto", 20, 79 * ms}, {"paretonormal", 20, 50 * ms}, {"uniform", 20 / math.Sqrt(3), 80 * ms}} {
		noError(t, sw.ShapeOut(12, Impair{Delay: 100 * ms, Jitter: 20 * ms, Distribution: c.distribution}))
		var sum, squares float64
		lowest := time.Hour
		got := f.timed(t, 500, 2*ms, 200*ms)
		for _, a := range got {
			x := a.took.Seconds() * 1000
			sum, squares, lowest = sum+x, squares+x*x, min(lowest, a.took)
		}
		n := float64(len(got))
		deviation := math.Sqrt(squares/n - sum/n*sum/n)
		t.Logf("%q: mean %.1f ms, deviation %.1f ms, lowest %v", c.distribution, sum/n, deviation, lowest)
		if math.Abs(deviation-c.deviation) > c.deviation/4 || lowest < c.lowest {
			t.Errorf("%q: mean %.1f ms, deviation %.1f, lowest %v; want the deviation %.1f and no less than %v", c.distribution, sum/n, deviation, lowest, c.deviation, c.lowest)
		}
	}
	noError(t, sw.ShapeOut(12, Impair{Delay: 50 * ms}))
	for _, a := range f.timed(t, 100, 2*ms, 0) {
		if a.took < 50*ms {
			t.Errorf("jitter cleared: took %v, want 50 ms or more", a.took)
		}
	}
}

// Those that go ahead skip the delay, and come before others sent earlier.
func TestV2ShapeReorder(t *testing.T) {
	needNetem(t)
	sw, a, b := switched(t)
	f := newStream(t, a, b)
	const delay = 300 * time.Millisecond
	noError(t, sw.ShapeOut(12, Impair{Delay: delay, Reorder: 20}))
	binomial(t, "reorder", 20, func() (ahead, n int) {
		got := f.timed(t, 1000, time.Millisecond, delay)
		inversions := 0
		for i, a := range got {
			if a.took < delay {
				ahead++
			}
			if i > 0 && a.seq < got[i-1].seq {
				inversions++
			}
		}
		if inversions == 0 {
			t.Error("all arrive in order")
		}
		return ahead, len(got)
	})
	noError(t, sw.ShapeOut(12, Impair{Delay: delay}))
	for i, a := range f.timed(t, 200, time.Millisecond, delay) {
		if a.seq != i || a.took < delay {
			t.Fatalf("cleared: datagram %d is the %dth after %v", a.seq, i, a.took)
		}
	}
}

// A corrupt frame has one bit that is wrong.
func TestV2ShapeCorrupt(t *testing.T) {
	needNetem(t)
	sw, a, b := switched(t)
	newStream(t, a, b) // the switch is in its usual state
	from, to := packets(t, a), packets(t, b)
	frame := append([]byte{2, 9, 9, 9, 9, 9, 2, 1, 2, 3, 4, 5, 0x9a, 0xbc}, bytes.Repeat([]byte{0x55}, 86)...)
	sample := func() (wrong, n int) {
		tv := unix.NsecToTimeval(int64(200 * time.Millisecond))
		noError(t, unix.SetsockoptTimeval(to, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
		n = 2000
		for range n / 50 {
			for range 50 {
				_, err := unix.Write(from, frame)
				noError(t, err)
			}
			buf := make([]byte, 200)
			for range 50 {
				k := 0
				for k != len(frame) { // others are IPv6's own
					var err error
					if k, _, err = unix.Recvfrom(to, buf, 0); err != nil {
						t.Fatalf("a frame is missing: %v", err)
					}
				}
				flipped := 0
				for i := range frame {
					flipped += bits.OnesCount8(frame[i] ^ buf[i])
				}
				switch flipped {
				case 0:
				case 1:
					wrong++
				default:
					t.Fatalf("%d bits are wrong: % x", flipped, buf[:len(frame)])
				}
			}
		}
		return wrong, n
	}
	for _, percent := range []float64{10, 100, 0} {
		noError(t, sw.ShapeOut(12, Impair{Corrupt: percent, Delay: 1}))
		binomial(t, "corrupt", percent, sample)
	}
}

// A change of the delay drops nothing that is under way, nor does taking away the
// rate: what waits for it goes on.
func TestV2ShapeChange(t *testing.T) {
	needNetem(t)
	sw, a, b := switched(t)
	f := newStream(t, a, b)
	const ms = time.Millisecond
	for _, now := range []Impair{{Rate: 20_000, Delay: 300 * ms, Limit: 100}, {Delay: 20 * ms, Loss: 100}, {Delay: 500 * ms, Jitter: ms, Distribution: "normal"}} {
		for range 20 {
			f.out.Write(make([]byte, 500))
		}
		time.Sleep(20 * ms)
		noError(t, sw.ShapeOut(12, now))
	}
	noError(t, sw.ShapeOut(12, Impair{Delay: ms}))
	// The first twenty left at once, the second wait 300 ms and for their rate; the
	// third were lost.
	if got := f.drain(1500 * ms); got != 40 {
		t.Errorf("%d of 40 arrive", got)
	}
}
