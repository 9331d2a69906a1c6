package interp

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestFormatOthers(t *testing.T) {
	a, b := errors.New("a"), errors.New("b")
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{a, "a\n"},
		{errors.Join(a, b), "a\nb\n"},
		{errors.Join(a, nil), "a\n"},
		{fmt.Errorf("both %w and %w", a, b), "both a and b\n"},
		{WithHint(a, "do this\nand that"), "a\nhint: do this\n      and that\n"},
		{fmt.Errorf("outer: %w", WithHint(a, "inner hint")), "outer: a\nhint: inner hint\n"},
	} {
		if got := Format(test.err, nil); got != test.want {
			t.Errorf("%v: got %q, want %q", test.err, got, test.want)
		}
	}
}

func TestPositionOfError(t *testing.T) {
	in := New(Options{})
	for src, want := range map[string]string{
		"x = 1\nfail('x')":    "test.star:2:1",
		"x = = 1":             "test.star:1:5",
		"x = 1\nprint(x, yy)": "test.star:2:10",
	} {
		if got := Position(in.RunSource(t.Context(), "test.star", src)).String(); got != want {
			t.Errorf("%q: got %s, want %s", src, got, want)
		}
	}
	if pos := Position(errors.New("x")); pos.IsValid() {
		t.Errorf("got %s, want none", pos)
	}
}

func TestDidYouMean(t *testing.T) {
	for _, test := range []struct{ name, want string }{
		{"prin", " (did you mean print?)"},
		{"pirnt", " (did you mean print?)"},
		{"Machine_Rfork", " (did you mean machine_rfork?)"},
		{"zzzz", ""},
		{"", ""},
	} {
		if got := didYouMean(test.name, []string{"print", "machine_rfork", "sleep"}); got != test.want {
			t.Errorf("%q: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestLineDiff(t *testing.T) {
	for _, test := range []struct{ a, b, want string }{
		{"a\nb", "a\nb\nc", "   a\n   b\n  +c"},
		{"a\nb\nc\nd\ne\nf", "a\nb\nc\nd\ne\nF", "  …\n   d\n   e\n  -f\n  +F"},
		{"a", "b", "  -a\n  +b"},
		{"", "x", "  -\n  +x"},
	} {
		if got := lineDiff(test.a, test.b); got != test.want {
			t.Errorf("%q, %q: got\n%s\nwant\n%s", test.a, test.b, got, test.want)
		}
	}
}

// FuzzLineDiff: taking the lines after "-" and " " gives a, those after "+" and " " give b.
func FuzzLineDiff(f *testing.F) {
	f.Add("a\nb\nc", "a\nc\nd")
	f.Add("", "\n\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		var backA, backB []string
		for _, line := range diffLines(strings.Split(a, "\n"), strings.Split(b, "\n")) {
			if line[0] != '+' {
				backA = append(backA, line[1:])
			}
			if line[0] != '-' {
				backB = append(backB, line[1:])
			}
		}
		if got := strings.Join(backA, "\n"); got != a {
			t.Errorf("got %q, want %q", got, a)
		}
		if got := strings.Join(backB, "\n"); got != b {
			t.Errorf("got %q, want %q", got, b)
		}
	})
}
