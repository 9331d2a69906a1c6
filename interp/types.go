package interp

import (
	"fmt"
	"slices"
	"strings"
)

// Type describes a type of values that words return, for help and the reference page: its attributes other than
// methods, which are words (see Word.Name).
type Type struct {
	Name  string // with a capital, as in the names of its methods
	Doc   string // a sentence
	Attrs []Attr // sorted by name
}

// Attr is one attribute of a Type.
type Attr struct{ Name, Doc string }

// Named describes a predeclared value that is no word.
type Named struct{ Name, Type, Doc string }

// Types returns those of the options.
func (in *Interp) Types() []Type { return in.opts.Types }

// Named returns the predeclared values that the options describe.
func (in *Interp) Named() []Named { return in.opts.Named }

// typeDoc returns a type's page, but for its methods; "" where there is none. Its name may be written small.
func (in *Interp) typeDoc(name string) string {
	i := slices.IndexFunc(in.opts.Types, func(t Type) bool { return strings.EqualFold(t.Name, name) })
	if i < 0 {
		return ""
	}
	t := in.opts.Types[i]
	width := 0
	for _, a := range t.Attrs {
		width = max(width, len(t.Name)+1+len(a.Name))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", t.Doc)
	for i, a := range t.Attrs {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%-*s  %s\n", width, t.Name+"."+a.Name, a.Doc)
	}
	return b.String()
}

// attrDoc returns the page of an attribute, as Machine.address; "" where there is none.
func (in *Interp) attrDoc(name string) string {
	owner, attr, _ := strings.Cut(name, ".")
	for _, t := range in.opts.Types {
		for _, a := range t.Attrs {
			if strings.EqualFold(t.Name, owner) && a.Name == attr {
				return fmt.Sprintf("%s.%s\n\n%s\n", t.Name, a.Name, a.Doc)
			}
		}
	}
	return ""
}
