package netx

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Impair says what a link does to the frames that go through it in one direction.
// The zero value is a perfect cable.
//
// Where frames travel in bunches, as those of TCP do between interfaces of one host
// (GSO, up to 64 KiB), a bunch is lost, doubled or reordered as one frame would be.
type Impair struct {
	// Rate is in bits per second, of whole Ethernet frames without preamble and
	// checksum; 0 is no bound.
	Rate uint64 `json:",omitempty"`
	// Burst is how many bytes may go at once after a pause, beyond the rate; 0 is
	// a frame and what the rate allows in 8 ms. It waits for a rate.
	Burst uint64 `json:",omitempty"`
	// Limit is how many packets wait for their turn when there is a rate, or, when
	// there is none, are under way at once; 0 is 1000 with a rate, without one as
	// many as can be sent within the delay.
	Limit uint32 `json:",omitempty"`

	Delay time.Duration `json:",omitempty"`
	// Jitter is the standard deviation of the delay; with the uniform distribution,
	// how far it goes up and down. Frames whose delays cross overtake each other.
	Jitter time.Duration `json:",omitempty"`
	// Distribution is that of the delay: uniform, which "" is as well, normal,
	// pareto, or paretonormal. It waits for a jitter.
	Distribution string `json:",omitempty"`

	// These are percentages of the frames: lost, sent twice, sent without the delay
	// and so ahead of others, and sent with one bit flipped.
	Loss      float64 `json:",omitempty"`
	Duplicate float64 `json:",omitempty"`
	Reorder   float64 `json:",omitempty"`
	Corrupt   float64 `json:",omitempty"`
}

// What netem and tbf can be told, and what makes sense.
const (
	minRate   = 1000
	maxRate   = 1 << 63
	maxBurst  = 1 << 30
	maxDelay  = 4 * time.Hour
	maxJitter = time.Duration(math.MaxInt32) // nanoseconds; netem_change caps it there
)

// OptionError says that an option of a link cannot be used.
type OptionError struct{ Option, Got, Want string }

func (e *OptionError) Error() string { return e.Option + ": got " + e.Got + ", want " + e.Want }

// Validate checks the options, each by itself and against one another. The error
// is an *OptionError.
func (i Impair) Validate() error {
	no := func(option string, got any, want string, args ...any) error {
		return &OptionError{option, fmt.Sprint(got), fmt.Sprintf(want, args...)}
	}
	switch {
	case i.Rate != 0 && (i.Rate < minRate || i.Rate > maxRate):
		return no("rate", i.Rate, "%d (1kbit) to %d bits per second, or 0 for no bound", minRate, uint64(maxRate))
	case i.Burst > maxBurst:
		return no("burst", i.Burst, "at most %d bytes, or 0 for msh's choice", maxBurst)
	case i.Delay < 0 || i.Delay > maxDelay:
		return no("delay", i.Delay, "0 to %v", maxDelay)
	case i.Jitter < 0 || i.Jitter > maxJitter:
		return no("jitter", i.Jitter, "0 to %v", maxJitter)
	case i.Jitter != 0 && i.Delay == 0:
		return no("jitter", i.Jitter, "a delay beside it, which it varies")
	case i.Distribution != "" && !slices.Contains(Distributions, i.Distribution):
		return no("distribution", fmt.Sprintf("%.40q", i.Distribution), "one of %s", strings.Join(Distributions, ", "))
	}
	for _, p := range i.percents() {
		if !(p.value >= 0 && p.value <= 100) { // NaN is neither
			return no(p.name, p.value, "a percentage, 0 to 100")
		}
	}
	if i.Reorder != 0 && i.Delay == 0 {
		return no("reorder", i.Reorder, "a delay beside it: the frames that go ahead are those that skip it")
	}
	return nil
}

type percent struct {
	name  string
	value float64
}

func (i Impair) percents() []percent {
	return []percent{{"loss", i.Loss}, {"duplicate", i.Duplicate}, {"reorder", i.Reorder}, {"corrupt", i.Corrupt}}
}

// IsZero tells whether nothing is said.
func (i Impair) IsZero() bool { return i == Impair{} }

// idle tells whether nothing is done to a frame: what the other options say needs
// one of these.
func (i Impair) idle() bool { return i.Rate == 0 && i.Loss == 0 && i.beyondTBF() == "" }

// beyondTBF names the options that only netem can do.
func (i Impair) beyondTBF() string {
	var names []string
	if i.Delay != 0 {
		names = append(names, "delay")
	}
	if i.Jitter != 0 {
		names = append(names, "jitter")
	}
	for _, p := range i.percents()[1:] {
		if p.value != 0 {
			names = append(names, p.name)
		}
	}
	return strings.Join(names, ", ")
}

// String is "rate 10mbit delay 5ms loss 0.1%"; "" where nothing is done.
func (i Impair) String() string {
	var words []string
	add := func(name, format string, value any) { words = append(words, name+" "+fmt.Sprintf(format, value)) }
	if i.Rate != 0 {
		add("rate", "%s", formatRate(i.Rate))
		if i.Burst != 0 {
			add("burst", "%d", i.Burst)
		}
	}
	if i.Limit != 0 && !i.idle() {
		add("limit", "%d", i.Limit)
	}
	if i.Delay != 0 {
		add("delay", "%v", i.Delay)
	}
	if i.Jitter != 0 {
		add("jitter", "%v", i.Jitter)
		if i.Distribution != "" {
			words = append(words, i.Distribution)
		}
	}
	for _, p := range i.percents() {
		if p.value != 0 {
			add(p.name, "%v%%", p.value)
		}
	}
	return strings.Join(words, " ")
}

// formatRate writes a rate in the largest unit that loses nothing.
func formatRate(rate uint64) string {
	units := []string{"bit", "kbit", "mbit", "gbit", "tbit"}
	for len(units) > 1 && rate%1000 == 0 {
		rate, units = rate/1000, units[1:]
	}
	return fmt.Sprint(rate) + units[0]
}

// chance is a percentage as netem and the loss program compare it with 32 random
// bits: how many of the 2^32 values count. What is not 0 stays so.
func chance(percent float64) uint64 {
	n := uint64(math.Round(percent / 100 * (1 << 32)))
	if n == 0 && percent > 0 {
		return 1
	}
	return n
}
