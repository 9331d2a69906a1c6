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
		Doc:  "Prints what a word does; also what a type has, a module of the standard library or a function of one. Without a word it lists all there are.",
		Params: []Param{
			{Name: "word", Type: "any", Default: "None", Pos: true, Doc: `the word itself, a value of a type, or a name as a string: help(sleep), help("Machine"), help(host), help("@msh//net.star"), help("iperf")`},
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
		if name := v.Position().Filename(); strings.HasPrefix(name, stdlibPrefix) {
			if text, err := in.moduleDoc(v.Name()); text != "" || err != nil {
				return text, err
			}
		}
		if v.Doc() != "" {
			return v.Name() + "\n\n" + strings.TrimSpace(v.Doc()) + "\n", nil
		}
		return "", fmt.Errorf("help: function %s: it has no doc string", v.Name())
	case *starlark.Builtin:
		return "", fmt.Errorf("help: %s: a builtin of Starlark; see https://github.com/bazelbuild/starlark/blob/master/spec.md", v.Name())
	}
	return in.Doc(subject.Type())
}

// Doc returns the page of a word, of a predeclared value, of a module of the standard library or of a function of one;
// what belongs to a predeclared module or a type (expect, Machine); or for the empty name the list of all there is.
func (in *Interp) Doc(name string) (string, error) {
	if name == "" {
		modules, err := in.moduleList()
		return strings.TrimPrefix(in.list("")+modules, "\n"), err
	}
	if i := slices.IndexFunc(in.words(), func(w *Word) bool { return w.Name == name }); i >= 0 {
		return in.words()[i].Help() + in.list(name), nil
	}
	if i := slices.IndexFunc(in.opts.Named, func(n Named) bool { return n.Name == name }); i >= 0 {
		n := in.opts.Named[i]
		return fmt.Sprintf("%s: %s\n\n%s\n\n%s%s", n.Name, n.Type, n.Doc, in.typeDoc(n.Type), in.list(n.Type)), nil
	}
	if text := in.typeDoc(name) + in.list(name); text != "" {
		return strings.TrimPrefix(text, "\n"), nil
	}
	if text := in.attrDoc(name); text != "" {
		return text, nil
	}
	if text, err := in.moduleDoc(name); text != "" || err != nil {
		return text, err
	}
	names := in.moduleNames()
	for _, w := range in.words() {
		names = append(names, w.Name)
		if owner, _, dotted := strings.Cut(w.Name, "."); dotted {
			names = append(names, owner)
		}
	}
	for _, t := range in.opts.Types {
		names = append(names, t.Name)
		for _, a := range t.Attrs {
			names = append(names, t.Name+"."+a.Name)
		}
	}
	return "", fmt.Errorf("find word %s: there is none%s", name, didYouMean(name, names))
}

// list returns a line for each word below owner, "" being above all of them; it is empty where there is none.
func (in *Interp) list(owner string) string {
	var words []*Word
	width := 0
	for _, w := range in.words() {
		// A type's name may be written small: help(m) asks for what m.Type() says.
		if o, _, dotted := strings.Cut(w.Name, "."); owner == "" || dotted && strings.EqualFold(o, owner) {
			words = append(words, w)
			width = max(width, len(w.Name))
		}
	}
	var lines []string
	for _, w := range words {
		lines = append(lines, fmt.Sprintf("%-*s  %s\n", width, w.Name, w.Summary()))
	}
	if owner == "" {
		for _, n := range in.opts.Named {
			lines = append(lines, fmt.Sprintf("%-*s  %s\n", width, n.Name, firstSentence(n.Doc)))
		}
		slices.Sort(lines)
	}
	if len(lines) == 0 {
		return ""
	}
	return "\n" + strings.Join(lines, "")
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
