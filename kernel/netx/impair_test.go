package netx

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestImpairValidate(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		i      Impair
		option string // of the error; "" wants none
	}{
		{Impair{}, ""},
		{Impair{Rate: 1000}, ""},
		{Impair{Rate: 1 << 63, Burst: 1 << 30, Limit: math.MaxUint32}, ""},
		{Impair{Burst: 1, Limit: 1, Distribution: "normal"}, ""}, // what is left when rate and jitter are cleared
		{Impair{Delay: 4 * time.Hour, Jitter: math.MaxInt32}, ""},
		{Impair{Delay: 1, Jitter: 5 * ms}, ""},
		{Impair{Loss: 100, Duplicate: 100, Corrupt: 100}, ""},
		{Impair{Loss: 1e-300}, ""},
		{Impair{Rate: 999}, "rate"},
		{Impair{Rate: 1<<63 + 1}, "rate"},
		{Impair{Rate: math.MaxUint64}, "rate"},
		{Impair{Burst: 1<<30 + 1}, "burst"},
		{Impair{Delay: -1}, "delay"},
		{Impair{Delay: 4*time.Hour + 1}, "delay"},
		{Impair{Delay: math.MaxInt64}, "delay"},
		{Impair{Delay: ms, Jitter: -1}, "jitter"},
		{Impair{Delay: ms, Jitter: math.MaxInt32 + 1}, "jitter"},
		{Impair{Jitter: ms}, "jitter"},
		{Impair{Reorder: 5}, "reorder"},
		{Impair{Loss: -0.1}, "loss"},
		{Impair{Loss: 100.1}, "loss"},
		{Impair{Duplicate: math.NaN()}, "duplicate"},
		{Impair{Delay: ms, Reorder: math.Inf(1)}, "reorder"},
		{Impair{Corrupt: math.Inf(-1)}, "corrupt"},
		{Impair{Delay: ms, Jitter: ms, Distribution: "gauss"}, "distribution"},
		{Impair{Distribution: strings.Repeat("x", 1<<20)}, "distribution"},
	} {
		err := c.i.Validate()
		var bad *OptionError
		switch {
		case c.option == "" && err != nil:
			t.Errorf("%.100v: %v; want no error", c.i, err)
		case c.option != "" && !errors.As(err, &bad):
			t.Errorf("%.100v: got the error %v, want one of %s", c.i, err, c.option)
		case c.option != "" && (bad.Option != c.option || bad.Got == "" || bad.Want == "" || len(err.Error()) > 200):
			t.Errorf("%.100v: got %.300q, want one of %s, short, with what came and what is wanted", c.i, err, c.option)
		}
	}
}

// Whatever passes, a kernel must be able to be told in its own numbers.
func TestImpairAtRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	passed := 0
	for range 100_000 {
		percent := func() float64 { return math.Float64frombits(r.Uint64()) }
		i := Impair{
			Rate: r.Uint64() >> r.IntN(64), Burst: r.Uint64() >> r.IntN(64), Limit: r.Uint32(),
			Delay: time.Duration(r.Uint64() >> r.IntN(64)), Jitter: time.Duration(r.Uint64() >> r.IntN(64)),
			Loss: r.Float64() * 110, Distribution: append(Distributions, "", "x")[r.IntN(6)],
		}
		if r.IntN(4) == 0 {
			i.Duplicate, i.Reorder, i.Corrupt = percent(), percent(), percent()
		}
		if i.Validate() != nil {
			continue
		}
		passed++
		for _, p := range i.percents() {
			if c := chance(p.value); c > 1<<32 || (c == 0) != (p.value == 0) {
				t.Fatalf("%v: %s is %d of 2^32", i, p.name, c)
			}
		}
		if q := newBucket(i, 1500); q.burst < 1 || q.burst > math.MaxUint32 || q.rate < 125 && i.Rate != 0 {
			t.Fatalf("%v: bucket %+v", i, q)
		}
		b, err := json.Marshal(i)
		var back Impair
		if err := errors.Join(err, json.Unmarshal(b, &back)); err != nil || back != i {
			t.Fatalf("%v: through JSON %v, %v", i, back, err)
		}
	}
	if passed < 1000 {
		t.Errorf("only %d of 100000 passed", passed)
	}
}

func TestImpairString(t *testing.T) {
	for want, i := range map[string]Impair{
		"":                      {},
		"rate 10mbit":           {Rate: 10_000_000},
		"rate 1234567bit":       {Rate: 1234567},
		"rate 1500kbit loss 2%": {Rate: 1_500_000, Loss: 2},
		"rate 3tbit burst 5000 limit 10 delay 1.5ms jitter 1ms pareto loss 0.1% duplicate 1% reorder 2% corrupt 3%": {
			Rate: 3e12, Burst: 5000, Limit: 10, Delay: 1500 * time.Microsecond, Jitter: time.Millisecond, Distribution: "pareto",
			Loss: 0.1, Duplicate: 1, Reorder: 2, Corrupt: 3,
		},
	} {
		if got := i.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if b, err := json.Marshal(Impair{Loss: 1}); string(b) != `{"Loss":1}` || err != nil {
		t.Errorf("JSON: got %s, %v", b, err)
	}
}

// A delay's mean must be the delay, and its deviation the jitter, whatever the shape.
func TestDistributions(t *testing.T) {
	for _, name := range Distributions {
		b := distribution(name)
		if len(b) != 2*distSize || len(b) > 2*16384 {
			t.Fatalf("%s: %d bytes", name, len(b))
		}
		var sum, squares, cubes float64
		for ; len(b) > 0; b = b[2:] {
			x := float64(int16(binary.NativeEndian.Uint16(b))) / distScale
			sum, squares, cubes = sum+x, squares+x*x, cubes+x*x*x
		}
		mean, deviation, skew := sum/distSize, math.Sqrt(squares/distSize), cubes/distSize
		want := 1.0
		if name == "uniform" {
			want = 1 / math.Sqrt(3) // of -1 to 1
		}
		if math.Abs(mean) > 0.001 || math.Abs(deviation-want) > 0.001 {
			t.Errorf("%s: mean %.4f, deviation %.4f; want 0, %.4f", name, mean, deviation, want)
		}
		if long := skew > 0.5; long != strings.HasPrefix(name, "pareto") || !long && math.Abs(skew) > 0.01 {
			t.Errorf("%s: third moment %.3f", name, skew)
		}
	}
}
