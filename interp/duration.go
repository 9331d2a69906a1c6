package interp

import (
	"fmt"
	"strings"
	"time"

	startime "go.starlark.net/lib/time"
	"go.starlark.net/starlark"
)

// Duration is the value of a parameter that says how long: "10ms", "1.5s", "2m", or a duration of the time module.
// It is never negative; for a distance that may be, see Offset.
type Duration time.Duration

// Unpack implements starlark.Unpacker.
func (d *Duration) Unpack(v starlark.Value) error {
	got, err := unpackDuration(v)
	if err != nil {
		return err
	}
	if got < 0 {
		return fmt.Errorf("got %s, want a duration that is not negative", quoted(v))
	}
	*d = Duration(got)
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }

// Offset is a Duration that may be negative.
type Offset time.Duration

// Unpack implements starlark.Unpacker.
func (o *Offset) Unpack(v starlark.Value) error {
	got, err := unpackDuration(v)
	if err != nil {
		return err
	}
	*o = Offset(got)
	return nil
}

func (o Offset) String() string { return time.Duration(o).String() }

func unpackDuration(v starlark.Value) (time.Duration, error) {
	switch v := v.(type) {
	case startime.Duration:
		return time.Duration(v), nil
	case starlark.String:
		return ParseDuration(string(v))
	case starlark.Int, starlark.Float:
		return 0, fmt.Errorf(`got %s without a unit, want a duration such as "%ss" or "%sms"`, v, v, v)
	}
	return 0, fmt.Errorf(`got %s, want a duration such as "10ms", "1.5s" or "2m"`, v.Type())
}

// ParseDuration reads a duration as scripts write it: numbers, each with a unit of ns, us, ms, s, m or h.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if _, tooMuch := time.ParseDuration(zeros(s)); err != nil && tooMuch == nil && strings.ContainsAny(s, "hms") {
		return 0, fmt.Errorf(`got %s, want at most "2562047h", which is 292 years`, quoted(starlark.String(s)))
	}
	if err != nil {
		return 0, fmt.Errorf(`got %s, want a duration such as "10ms", "1.5s" or "2m"`, quoted(starlark.String(s)))
	}
	return d, nil
}

// zeros is s with every digit a 0: of the same form, and never too much.
func zeros(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '1' && r <= '9' {
			return '0'
		}
		return r
	}, s)
}

// quoted shows a value in an error, a long one shortened.
func quoted(v starlark.Value) string {
	const most = 60
	s := []rune(v.String())
	if len(s) <= most {
		return string(s)
	}
	return string(s[:most-1]) + "…"
}
