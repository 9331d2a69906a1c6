package interp

import (
	"fmt"
	"strings"

	"go.starlark.net/starlark"
)

// short is how long two values may be together and still be compared on one line.
const short = 100

// mismatch tells how got differs from want.
func mismatch(got, want starlark.Value) string {
	g, w := got.String(), want.String()
	gotText, gotIsText := starlark.AsString(got)
	wantText, wantIsText := starlark.AsString(want)
	lines := strings.Contains(gotText, "\n") || strings.Contains(wantText, "\n")
	switch {
	case gotIsText && wantIsText && lines:
		return "got and want differ (-want +got):\n" + lineDiff(wantText, gotText)
	case len(g)+len(w) <= short:
		return fmt.Sprintf("got %s, want %s", g, w)
	}
	return fmt.Sprintf("got and want differ:\n   got: %s\n  want: %s", g, w)
}

// gotten ends an error with the value that came: whole, and a text of several lines on lines of its own.
func gotten(v starlark.Value) string {
	text, _ := starlark.AsString(v)
	if text = strings.TrimRight(text, "\n"); strings.Contains(text, "\n") {
		return "got:\n  " + strings.ReplaceAll(text, "\n", "\n  ")
	}
	return "got " + v.String()
}

// lineDiff shows the lines that differ, those only in a with "-" and those only in b with "+",
// with up to two equal lines of context around them.
func lineDiff(a, b string) string {
	const context = 2
	edits := diffLines(strings.Split(a, "\n"), strings.Split(b, "\n"))
	near := make([]bool, len(edits)) // an edit is within reach
	for i, e := range edits {
		if e[0] != ' ' {
			for j := max(0, i-context); j < min(len(edits), i+context+1); j++ {
				near[j] = true
			}
		}
	}
	var out []string
	for i, e := range edits {
		switch {
		case near[i]:
			out = append(out, "  "+e)
		case i == 0 || near[i-1]:
			out = append(out, "  …")
		}
	}
	return strings.Join(out, "\n")
}

// diffLines returns the lines of a and b, each after ' ', '-' or '+', by their longest common subsequence.
func diffLines(a, b []string) []string {
	const most = 4 << 20 // cells of the table; beyond that, all of a goes and all of b comes
	var edits, tail []string
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		edits = append(edits, " "+a[0])
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append([]string{" " + a[len(a)-1]}, tail...)
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	if (len(a)+1)*(len(b)+1) > most {
		a, b, edits = nil, nil, append(append(edits, prefixed("-", a)...), prefixed("+", b)...)
	}
	// common[i][j] is the length of the longest common subsequence of a[i:] and b[j:].
	common := make([][]int, len(a)+1)
	for i := len(a); i >= 0; i-- {
		common[i] = make([]int, len(b)+1)
		for j := len(b) - 1; j >= 0 && i < len(a); j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		switch {
		case a[i] == b[j]:
			edits = append(edits, " "+a[i])
			i, j = i+1, j+1
		case common[i+1][j] >= common[i][j+1]:
			edits = append(edits, "-"+a[i])
			i++
		default:
			edits = append(edits, "+"+b[j])
			j++
		}
	}
	edits = append(append(edits, prefixed("-", a[i:])...), prefixed("+", b[j:])...)
	return append(edits, tail...)
}

func prefixed(prefix string, lines []string) []string {
	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = prefix + line
	}
	return out
}
