package interp

import (
	"slices"
	"strings"

	"go.starlark.net/starlark"
)

// keywords are those a line can begin with or hold.
const keywords = "and break continue def elif else for if in lambda load not or pass return while"

// Complete returns what the end of line may become, sorted, and the number of bytes of it that are there already:
// a name; after a dot, an attribute; within a call, also the parameters of the function called.
// It looks names and attributes up, and calls nothing.
func (in *Interp) Complete(line string) (words []string, length int) {
	line = line[lineStart(line):]
	if inString(line) {
		return nil, 0
	}
	chain := trailingChain(line)
	owner, prefix, dotted := cutLast(chain, ".")
	if !dotted {
		prefix = chain
	}
	var all []string
	switch {
	case dotted:
		if v, ok := in.lookUp(owner).(starlark.HasAttrs); ok {
			all = v.AttrNames()
		}
	case prefix == "" && !strings.HasSuffix(strings.TrimSpace(line), "(") && !strings.HasSuffix(strings.TrimSpace(line), ","):
		return nil, 0 // nothing typed: everything there is would be no help
	default:
		all = in.parameters(line[:len(line)-len(chain)])
		if prefix != "" {
			all = slices.Concat(all, in.globals.Keys(), in.predeclared.Keys(), strings.Fields(keywords))
		}
	}
	for _, w := range all {
		if strings.HasPrefix(w, prefix) {
			words = append(words, w)
		}
	}
	slices.Sort(words)
	return slices.Compact(words), len(prefix)
}

// parameters returns the names of the parameters, each with "=", of the innermost call that is open at the end of line.
func (in *Interp) parameters(line string) []string {
	open := openParen(line)
	if open < 0 {
		return nil
	}
	var names []string
	switch fn := in.lookUp(trailingChain(line[:open])).(type) {
	case *Builtin:
		for _, p := range fn.word.Params {
			if !p.Rest && !p.Kwargs {
				names = append(names, p.Name+"=")
			}
		}
	case *starlark.Function:
		n := fn.NumParams()
		if fn.HasVarargs() {
			n--
		}
		if fn.HasKwargs() {
			n--
		}
		for i := range n {
			name, _ := fn.Param(i)
			names = append(names, name+"=")
		}
	}
	return slices.DeleteFunc(names, func(name string) bool {
		return strings.Contains(line[open:], name) // it is given already
	})
}

// lookUp returns the value of a chain of names, a.b.c, or nil.
func (in *Interp) lookUp(chain string) starlark.Value {
	names := strings.Split(chain, ".")
	v, ok := in.globals[names[0]]
	if !ok {
		v = in.predeclared[names[0]]
	}
	for _, name := range names[1:] {
		owner, ok := v.(starlark.HasAttrs)
		if !ok {
			return nil
		}
		v, _ = owner.Attr(name) // no such attribute: nothing to complete
	}
	return v
}

// trailingChain returns the names and dots at the end of line, or "" where they do not begin with a name.
func trailingChain(line string) string {
	start := len(line)
	for start > 0 && (isNameByte(line[start-1]) || line[start-1] == '.') {
		start--
	}
	chain := line[start:]
	if strings.HasPrefix(chain, ".") || chain != "" && chain[0] >= '0' && chain[0] <= '9' {
		return "" // an attribute of something other than a name, or a number
	}
	return chain
}

// lineStart is where the last line of text begins.
func lineStart(text string) int { return strings.LastIndexByte(text, '\n') + 1 }

func isNameByte(b byte) bool {
	return b == '_' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b >= 0x80
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+len(sep):], true
}

// scan goes through line, calls f for each byte outside strings, and reports whether it ends inside one.
func scan(line string, f func(i int, b byte)) (inside bool) {
	var quote byte
	for i := 0; i < len(line); i++ {
		switch b := line[i]; {
		case quote != 0 && b == '\\':
			i++
		case quote != 0:
			if b == quote {
				quote = 0
			}
		case b == '"' || b == '\'':
			quote = b
		case b == '#':
			return true // a comment is as closed to completion as a string
		default:
			f(i, b)
		}
	}
	return quote != 0
}

func inString(line string) bool { return scan(line, func(int, byte) {}) }

// openParen returns the index of the innermost ( that is not closed, or -1.
// An open [ or { in between is no call: a name there is not a parameter.
func openParen(line string) int {
	var open []int
	scan(line, func(i int, b byte) {
		switch b {
		case '(', '[', '{':
			open = append(open, i)
		case ')', ']', '}':
			if len(open) > 0 {
				open = open[:len(open)-1]
			}
		}
	})
	if len(open) == 0 || line[open[len(open)-1]] != '(' {
		return -1
	}
	return open[len(open)-1]
}
