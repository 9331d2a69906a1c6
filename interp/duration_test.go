package interp

import (
	"testing"
	"time"

	"go.starlark.net/starlark"
)

func TestDuration(t *testing.T) {
	tests := []struct {
		in   starlark.Value
		want time.Duration
		err  string
	}{
		{starlark.String("10ms"), 10 * time.Millisecond, ""},
		{starlark.String("1.5s"), 1500 * time.Millisecond, ""},
		{starlark.String("2m"), 2 * time.Minute, ""},
		{starlark.String("1h2m"), 62 * time.Minute, ""},
		{starlark.String(""), 0, `got "", want a duration such as "10ms", "1.5s" or "2m"`},
		{starlark.String("5"), 0, `got "5", want a duration such as "10ms", "1.5s" or "2m"`},
		{starlark.String("-5s"), 0, `got "-5s", want a duration that is not negative`},
		{starlark.String("9999999999h"), 0, `got "9999999999h", want at most "2562047h", which is 292 years`},
		{starlark.String("1h99999999999999999999s"), 0, `got "1h99999999999999999999s", want at most "2562047h", which is 292 years`},
		{starlark.String("9999999999"), 0, `got "9999999999", want a duration such as "10ms", "1.5s" or "2m"`},
		{starlark.MakeInt(5), 0, `got 5 without a unit, want a duration such as "5s" or "5ms"`},
		{starlark.Float(0.5), 0, `got 0.5 without a unit, want a duration such as "0.5s" or "0.5ms"`},
		{starlark.True, 0, `got bool, want a duration such as "10ms", "1.5s" or "2m"`},
	}
	for _, test := range tests {
		var d Duration
		err := d.Unpack(test.in)
		if msg := errText(err); time.Duration(d) != test.want || msg != test.err {
			t.Errorf("%s: got %s, %s, want %s, %s", test.in, d, msg, test.want, test.err)
		}
	}
	var o Offset
	if err := o.Unpack(starlark.String("-1.5h")); err != nil || o.String() != "-1h30m0s" {
		t.Errorf("offset: got %s, %v", o, err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// FuzzDuration: what is accepted prints in a form that reads back as the same, and what is not gives a message.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"10ms", "1.5s", "2m", "-3h", "", "5", "1e9s", ".5s", "9223372036854775807ns", "1µs"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			if err.Error() == "" {
				t.Errorf("%q: empty error", s)
			}
			return
		}
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Errorf("%q: %s reads back as %s, %v", s, d, again, err)
		}
	})
}
