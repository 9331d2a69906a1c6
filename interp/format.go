package interp

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Hinter is an error that knows what its reader could do about it. Format prints the hint of the first one in a chain.
type Hinter interface{ Hint() string }

// WithHint returns err with a hint.
func WithHint(err error, hint string) error { return &hinted{err, hint} }

type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }
func (h *hinted) Hint() string  { return h.hint }

// FormatError returns the error as a user should read it: Format, with the files that the interpreter has read.
func (in *Interp) FormatError(err error) string {
	return Format(err, func(name string) (string, bool) {
		in.mu.Lock()
		defer in.mu.Unlock()
		src, ok := in.sources[name]
		return src, ok
	})
}

// Format returns the error as a user should read it, ending in a newline:
//
//	lab.star:12:5: cpu: quota: got -1, want a percentage above 0
//	traceback (most recent call last):
//	  lab.star:20:1: in <toplevel>
//	  lab.star:12:5: in node
//	   12 | m = machine_rfork(resources=[cpu(quota=-1)])
//	      |                              ^
//	hint: …
//
// The first line has the position of the innermost call in a script. Frames of other threads, such as those of parallel,
// follow the frames that waited for them. sources gives the text of a file; it may be nil.
// Several errors, joined, or those of the resolver, come one after the other.
func Format(err error, sources func(name string) (string, bool)) string {
	if err == nil {
		return ""
	}
	if all := joined(err); all != nil {
		var b strings.Builder
		for _, e := range all {
			b.WriteString(Format(e, sources))
		}
		return b.String()
	}
	frames := traceback(err)
	faults := static(err)
	if faults == nil {
		fault := fault{msg: message(err)}
		if len(frames) > 0 {
			fault.pos = frames[len(frames)-1].Pos
		}
		faults = append(faults, fault)
	}
	var b strings.Builder
	for i, f := range faults {
		if inScript(f.pos) {
			fmt.Fprintf(&b, "%s: ", f.pos)
		}
		fmt.Fprintf(&b, "%s\n", f.msg)
		if i == 0 {
			writeTraceback(&b, frames)
		}
		writeSource(&b, f.pos, sources)
	}
	if h := hint(err); h != "" {
		fmt.Fprintf(&b, "hint: %s\n", strings.ReplaceAll(h, "\n", "\n      "))
	}
	return b.String()
}

// joined returns the parts of an error of errors.Join. One that merely wraps several, as fmt.Errorf makes it,
// has a message of its own and is a single error.
func joined(err error) []error {
	several, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var msgs []string
	for _, e := range several.Unwrap() {
		msgs = append(msgs, e.Error())
	}
	if err.Error() != strings.Join(msgs, "\n") {
		return nil
	}
	return several.Unwrap()
}

// Position returns where in the scripts the error is, as the first line of Format has it.
// It is the zero Position for an error that no script made.
func Position(err error) syntax.Position {
	if faults := static(err); faults != nil {
		return faults[0].pos
	}
	if frames := traceback(err); len(frames) > 0 {
		return frames[len(frames)-1].Pos
	}
	return syntax.Position{}
}

// fault is a message about a place in a script.
type fault struct {
	pos syntax.Position
	msg string
}

// static returns what the parser or the resolver found; nil if the error is another one.
func static(err error) []fault {
	if list := resolve.ErrorList(nil); errors.As(err, &list) {
		var faults []fault
		for _, e := range list {
			faults = append(faults, fault{e.Pos, e.Msg})
		}
		return faults
	}
	if e := (resolve.Error{}); errors.As(err, &e) {
		return []fault{{e.Pos, e.Msg}}
	}
	if e := (syntax.Error{}); errors.As(err, &e) {
		return []fault{{e.Pos, e.Msg}}
	}
	return nil
}

// message returns the text of err, without the "cannot load x: " that Starlark puts before an error
// in a loaded file: the traceback shows the load.
func message(err error) string {
	if through := (*loadError)(nil); errors.As(err, &through) {
		return message(through.err)
	}
	return err.Error()
}

// traceback returns the frames of the scripts' functions, the innermost last, across all threads.
func traceback(err error) []starlark.CallFrame {
	var frames []starlark.CallFrame
	var eval *starlark.EvalError
	for errors.As(err, &eval) {
		stack := scriptFrames(eval.CallStack)
		if isPrefix(frames, stack) {
			frames = stack // an error passed on by a builtin that called back on the same thread
		} else {
			frames = append(frames, stack...)
		}
		err = eval.Unwrap()
	}
	return frames
}

func scriptFrames(stack starlark.CallStack) []starlark.CallFrame {
	var frames []starlark.CallFrame
	for _, fr := range stack {
		if inScript(fr.Pos) {
			frames = append(frames, fr)
		}
	}
	return frames
}

func isPrefix(prefix, stack []starlark.CallFrame) bool {
	if len(prefix) > len(stack) {
		return false
	}
	for i, fr := range prefix {
		if fr.Name != stack[i].Name || fr.Pos.String() != stack[i].Pos.String() {
			return false
		}
	}
	return true
}

// writeTraceback leaves out the middle of a long one: a stack that overflowed has 100 000 frames.
func writeTraceback(b *strings.Builder, frames []starlark.CallFrame) {
	const ends = 12
	if len(frames) == 0 {
		return
	}
	b.WriteString("traceback (most recent call last):\n")
	for i, fr := range frames {
		switch skipped := len(frames) - 2*ends; {
		case skipped > 1 && i == ends:
			fmt.Fprintf(b, "  … %d more\n", skipped)
		case skipped > 1 && i > ends && i < len(frames)-ends:
		default:
			fmt.Fprintf(b, "  %s: in %s\n", fr.Pos, fr.Name)
		}
	}
}

// writeSource shows the line and, below it, a caret at the column.
func writeSource(b *strings.Builder, pos syntax.Position, sources func(string) (string, bool)) {
	if !inScript(pos) || sources == nil {
		return
	}
	src, ok := sources(pos.Filename())
	if !ok {
		data, err := os.ReadFile(pos.Filename())
		if err != nil {
			return // the message stands without its source
		}
		src = string(data)
	}
	lines := strings.Split(src, "\n")
	if int(pos.Line) > len(lines) {
		return
	}
	line := strings.TrimRight(lines[pos.Line-1], "\r")
	fmt.Fprintf(b, "%5d | %s\n", pos.Line, line)
	if pos.Col < 1 || int(pos.Col) > utf8.RuneCountInString(line)+1 {
		return
	}
	// Tabs stay tabs, so that the caret stands below its column whatever their width.
	before := strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, string([]rune(line)[:pos.Col-1]))
	fmt.Fprintf(b, "      | %s^\n", before)
}

// hint returns the hint that the error carries, or one for the errors of Starlark's own that puzzle.
func hint(err error) string {
	if h := Hinter(nil); errors.As(err, &h) {
		return h.Hint()
	}
	msg := err.Error()
	switch {
	case strings.Contains(msg, "frozen list"), strings.Contains(msg, "frozen hash table"):
		return "values from a loaded file, and those that functions called by parallel can reach, cannot be changed; make a new one, or return results"
	case strings.Contains(msg, "got unknown"):
		return "unknown stands for what only running can tell; nothing is done in a dry run (msh -n)"
	}
	return ""
}

// suggest completes the resolver's "undefined" errors: it knows the names in the file, but not the predeclared ones.
func (in *Interp) suggest(err error) error {
	var list resolve.ErrorList
	if !errors.As(err, &list) {
		return err
	}
	for i, e := range list {
		name, ok := strings.CutPrefix(e.Msg, "undefined: ")
		if !ok {
			continue
		}
		names := slices.Concat(in.predeclared.Keys(), in.globals.Keys())
		name, own, found := strings.Cut(name, " (did you mean ")
		if found {
			names = append(names, strings.TrimSuffix(own, "?)"))
		}
		list[i].Msg = "undefined: " + name + didYouMean(name, names)
	}
	// The resolver looks into functions last; a reader goes from top to bottom.
	slices.SortStableFunc(list, func(a, b resolve.Error) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Col, b.Pos.Col))
	})
	for _, e := range list {
		// What other shells are left with.
		if name, ok := strings.CutPrefix(e.Msg, "undefined: "); ok && e.Pos.Filename() == sessionName {
			if name, _, _ := strings.Cut(name, " "); name == "exit" || name == "quit" {
				return WithHint(list, "Ctrl-D ends the session")
			}
		}
	}
	return list
}
