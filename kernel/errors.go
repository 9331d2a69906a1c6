package kernel

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// ErrNotSupported is in the chain of every error that says that this kernel, or
// this host's set-up, lacks something. The error names the feature and the mend.
var ErrNotSupported = errors.New("not supported here")

// ErrDead is in the chain of errors that come from using a machine that has ended.
var ErrDead = errors.New("machine is dead")

// ParamError says that a parameter of a resource cannot be used: what came, what
// was wanted, and where it helps, the mend.
type ParamError struct {
	Kind, Param string
	Got, Want   string
	Mend        string
}

func (e *ParamError) Error() string {
	s := e.Kind
	if e.Param != "" {
		s += ": " + e.Param
	}
	s += ": "
	switch {
	case e.Got == "":
		s += e.Want
	case e.Want == "":
		s += "got " + e.Got
	default:
		s += "got " + e.Got + ", want " + e.Want
	}
	return s
}

// Hint is the mend, which the interpreter prints below the error.
func (e *ParamError) Hint() string { return e.Mend }

// bad makes a ParamError; got is printed as Go would quote it.
func bad(kind, param string, got any, want string) error {
	text := ""
	switch g := got.(type) {
	case nil:
	case string:
		text = fmt.Sprintf("%q", Short(g))
	default:
		text = Short(fmt.Sprint(g))
	}
	return &ParamError{Kind: kind, Param: param, Got: text, Want: want}
}

// Short is text that an error echoes, cut where it is longer than some 200 bytes:
// an argument may have megabytes.
func Short(text string) string {
	cut := 200
	if len(text) <= cut {
		return text
	}
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}

// hinted puts a mend beside an error.
type hinted struct {
	error
	mend string
}

func (e *hinted) Unwrap() error { return e.error }

// Hint is the mend.
func (e *hinted) Hint() string { return e.mend }

func withHint(err error, mend string) error {
	if err == nil || mend == "" {
		return err
	}
	return &hinted{err, mend}
}

// unsupported says what is missing and how to get it.
func unsupported(mend, format string, args ...any) error {
	return withHint(fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrNotSupported), mend)
}
