package interp

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
)

func helpWord() *Word {
	return &Word{
		Name: "help",
		Doc:  "Prints what a word does. Without one it lists all words.",
		Params: []Param{
			{Name: "word", Type: "function, module or string", Default: "None", Pos: true, Doc: `the word itself, or its name as a string: help(sleep), help("sleep"), help(expect)`},
		},
		Errors:  "A word that there is not.",
		Example: `help(sleep)`,
		Output: `sleep(d)

Waits. In a dry run it does not.

  d: duration
      how long: "10ms", "1.5s", "2m", or a duration of the time module

Errors: A number without a unit, or a negative duration.

Example:
    sleep("1ms")
    sleep(2 * time.millisecond)
    print("awake")
prints:
    awake
`,
		TakesUnknown: true,
		Fn:           help,
	}
}

func help(c *Call) (starlark.Value, error) {
	var subject starlark.Value
	if err := c.Unpack(&subject); err != nil {
		return nil, err
	}
	in := c.Interp()
	text, err := in.helpOn(subject)
	if err != nil {
		return nil, err
	}
	in.printing.Lock()
	defer in.printing.Unlock()
	_, err = io.WriteString(in.opts.Stdout, text)
	return nil, err
}

func (in *Interp) helpOn(subject starlark.Value) (string, error) {
	switch v := subject.(type) {
	case nil:
		return in.Doc("")
	case *Builtin:
		return v.word.Help(), nil
	case *starlarkstruct.Module:
		return in.Doc(v.Name)
	case starlark.String:
		return in.Doc(string(v))
	case *starlark.Function:
		if v.Doc() != "" {
			return v.Name() + "\n\n" + strings.TrimSpace(v.Doc()) + "\n", nil
		}
		return "", fmt.Errorf("help: function %s: it has no doc string", v.Name())
	case *starlark.Builtin:
		return "", fmt.Errorf("help: %s: a builtin of Starlark; see https://github.com/bazelbuild/starlark/blob/master/spec.md", v.Name())
	}
	return in.Doc(subject.Type())
}

// Doc returns the page of a word, the list of what belongs to a module or a type (expect, Machine),
// or for the empty name the list of all words.
func (in *Interp) Doc(name string) (string, error) {
	if i := slices.IndexFunc(in.words, func(w *Word) bool { return w.Name == name }); i >= 0 {
		return in.words[i].Help() + in.list(name), nil
	}
	if list := in.list(name); list != "" {
		return strings.TrimPrefix(list, "\n"), nil
	}
	var names []string
	for _, w := range in.words {
		names = append(names, w.Name)
		if owner, _, dotted := strings.Cut(w.Name, "."); dotted {
			names = append(names, owner)
		}
	}
	return "", fmt.Errorf("find word %s: there is none%s", name, didYouMean(name, names))
}

// list returns a line for each word below owner, "" being above all of them; it is empty where there is none.
func (in *Interp) list(owner string) string {
	var words []*Word
	width := 0
	for _, w := range in.words {
		// A type's name may be written small: help(m) asks for what m.Type() says.
		if o, _, dotted := strings.Cut(w.Name, "."); owner == "" || dotted && strings.EqualFold(o, owner) {
			words = append(words, w)
			width = max(width, len(w.Name))
		}
	}
	var b strings.Builder
	for i, w := range words {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%-*s  %s\n", width, w.Name, w.Summary())
	}
	return b.String()
}

// Help returns the word's page of the reference: signature, doc, parameters, results, errors and example.
func (w *Word) Help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n%s\n", w.Signature(), strings.TrimSpace(w.Doc))
	for i, p := range w.Params {
		if i == 0 {
			b.WriteByte('\n')
		}
		stars := ""
		switch {
		case p.Rest:
			stars = "*"
		case p.Kwargs:
			stars = "**"
		}
		fmt.Fprintf(&b, "  %s%s", stars, p.Name)
		if p.Type != "" {
			fmt.Fprintf(&b, ": %s", p.Type)
		}
		if p.Default != "" {
			fmt.Fprintf(&b, " = %s", p.Default)
		}
		fmt.Fprintf(&b, "\n%s", indented(p.Doc, "      "))
	}
	if w.Returns != "" {
		fmt.Fprintf(&b, "\nReturns: %s\n", w.Returns)
	}
	if w.Errors != "" {
		fmt.Fprintf(&b, "\nErrors: %s\n", w.Errors)
	}
	if w.Example != "" {
		needs := ""
		if w.Needs != "" {
			needs = " (needs " + w.Needs + ")"
		}
		fmt.Fprintf(&b, "\nExample%s:\n%s", needs, indented(w.Example, "    "))
	}
	if w.Output != "" {
		fmt.Fprintf(&b, "prints:\n%s", indented(w.Output, "    "))
	}
	return b.String()
}

// indented puts a margin before each line that is not empty.
func indented(text, margin string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		if line != "" {
			b.WriteString(margin + line)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
