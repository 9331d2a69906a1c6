package kernel

import (
	"fmt"
	"time"
)

// Timespace moves a machine's clocks away from its parent's.
type Timespace struct {
	Boottime  time.Duration `json:",omitempty"`
	Monotonic time.Duration `json:",omitempty"`
}

// Kind is "timespace".
func (*Timespace) Kind() string { return "timespace" }

// Mode is new.
func (*Timespace) Mode() Mode { return New }

// maxOffset keeps sums of offsets inside what the kernel takes (KTIME_SEC_MAX/2).
const maxOffset = 100 * 365 * 24 * time.Hour

// Validate checks the offsets. That a clock would go below zero, only the kernel
// can tell (ERANGE).
func (t *Timespace) Validate() error {
	if t.Boottime == 0 && t.Monotonic == 0 {
		return bad("timespace", "", nil, "want boottime, monotonic or both, other than 0")
	}
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"boottime", t.Boottime}, {"monotonic", t.Monotonic}} {
		if f.d > maxOffset || f.d < -maxOffset {
			return bad("timespace", f.name, f.d, "at most a hundred years either way")
		}
	}
	return nil
}

// Plan has an intermediate make the namespace: a time namespace is entered by
// being born in it.
func (t *Timespace) Plan(p *Plan) error {
	p.Clocks = &Timespace{p.Under.Clock.Boottime + t.Boottime, p.Under.Clock.Monotonic + t.Monotonic}
	return nil
}

// offsets is what goes into timens_offsets (time_namespaces(7)): whole seconds,
// and nanoseconds that are never negative.
func (t *Timespace) offsets() string {
	line := func(clock string, d time.Duration) string {
		sec, nsec := d/time.Second, d%time.Second
		if nsec < 0 {
			sec, nsec = sec-1, nsec+time.Second
		}
		return fmt.Sprintf("%s %d %d\n", clock, sec, nsec)
	}
	return line("monotonic", t.Monotonic) + line("boottime", t.Boottime)
}
