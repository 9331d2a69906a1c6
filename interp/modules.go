package interp

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"go.starlark.net/syntax"
)

// Module is a file of the standard library, as its own text describes it.
type Module struct {
	Name  string // as load takes it: "@msh//net.star"
	Doc   string // the doc string at its top
	Funcs []Func // those that it exports, in its order
}

// Func is a function that a Module exports.
type Func struct{ Name, Signature, Doc string }

// Modules reads the standard library; it runs nothing of it.
func (in *Interp) Modules() ([]Module, error) {
	if in.opts.Stdlib == nil {
		return nil, nil
	}
	files, err := fs.Glob(in.opts.Stdlib, "*.star")
	if err != nil {
		return nil, fmt.Errorf("list the standard library: %w", err)
	}
	var all []Module
	for _, file := range files {
		src, err := fs.ReadFile(in.opts.Stdlib, file)
		if err != nil {
			return nil, fmt.Errorf("read %s%s: %w", stdlibPrefix, file, cause(err))
		}
		m, err := readModule(stdlibPrefix+file, string(src))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func readModule(name, src string) (Module, error) {
	f, err := fileOptions.Parse(name, src, 0)
	if err != nil {
		return Module{}, err
	}
	m := Module{Name: name, Doc: docString(f.Stmts)}
	lines := strings.Split(src, "\n")
	for _, s := range f.Stmts {
		if def, ok := s.(*syntax.DefStmt); ok && !strings.HasPrefix(def.Name.Name, "_") {
			m.Funcs = append(m.Funcs, Func{def.Name.Name, signature(def, lines), docString(def.Body)})
		}
	}
	return m, nil
}

// docString is the text that a file or a function begins with, without its margin.
func docString(body []syntax.Stmt) string {
	if len(body) == 0 {
		return ""
	}
	s, ok := body[0].(*syntax.ExprStmt)
	if !ok {
		return ""
	}
	lit, ok := s.X.(*syntax.Literal)
	if !ok || lit.Token != syntax.STRING {
		return ""
	}
	return undented(lit.Value.(string), int(lit.TokenPos.Col)-1)
}

// undented takes a margin of so many spaces off each line of a doc string.
func undented(doc string, margin int) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(doc)) {
		b.WriteString(strings.TrimPrefix(line, strings.Repeat(" ", margin)))
	}
	return b.String()
}

// signature writes a function as the words' signatures are written: retry(fn, times=3, every="1s").
func signature(def *syntax.DefStmt, lines []string) string {
	var parts []string
	for _, p := range def.Params {
		switch p := p.(type) {
		case *syntax.Ident:
			parts = append(parts, p.Name)
		case *syntax.UnaryExpr: // *, *args or **kwargs
			text := p.Op.String()
			if id, ok := p.X.(*syntax.Ident); ok {
				text += id.Name
			}
			parts = append(parts, text)
		case *syntax.BinaryExpr:
			parts = append(parts, source(p.X, lines)+"="+source(p.Y, lines))
		}
	}
	return def.Name.Name + "(" + strings.Join(parts, ", ") + ")"
}

// source is the text of a node on one line; "…" of a longer one.
func source(n syntax.Node, lines []string) string {
	start, end := n.Span()
	if start.Line != end.Line {
		return "…"
	}
	return string([]rune(lines[start.Line-1])[start.Col-1 : end.Col-1])
}

// Page returns what help shows of a module: its doc string, and a line for each function.
func (m Module) Page() string {
	width := 0
	for _, f := range m.Funcs {
		width = max(width, len(f.Name))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n%s\n", m.Name, m.Doc)
	for i, f := range m.Funcs {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%-*s  %s\n", width, f.Name, firstSentence(f.Doc))
	}
	return b.String()
}

// Load returns the line with which a script gets a function of the module.
func (m Module) Load(f Func) string { return fmt.Sprintf("load(%q, %q)", m.Name, f.Name) }

func (m Module) help(f Func) string {
	return fmt.Sprintf("%s\n\n%s\n\n%s\n", f.Signature, m.Load(f), f.Doc)
}

// moduleDoc returns the page of a module, or those of the functions of that name; "" where there is none.
// A module may be named without what stands before its file.
func (in *Interp) moduleDoc(name string) (string, error) {
	all, err := in.Modules()
	if err != nil {
		return "", err
	}
	var pages []string
	for _, m := range all {
		if m.Name == name || m.Name == stdlibPrefix+name {
			return m.Page(), nil
		}
		if i := slices.IndexFunc(m.Funcs, func(f Func) bool { return f.Name == name }); i >= 0 {
			pages = append(pages, m.help(m.Funcs[i]))
		}
	}
	return strings.Join(pages, "\n"), nil
}

// moduleNames are those of the modules and of their functions.
func (in *Interp) moduleNames() []string {
	var names []string
	all, _ := in.Modules() // moduleDoc has told what is wrong with them
	for _, m := range all {
		names = append(names, m.Name)
		for _, f := range m.Funcs {
			names = append(names, f.Name)
		}
	}
	return names
}

// moduleList returns a line for each module, for the list of all there is.
func (in *Interp) moduleList() (string, error) {
	all, err := in.Modules()
	if err != nil {
		return "", err
	}
	width := 0
	for _, m := range all {
		width = max(width, len(m.Name))
	}
	var b strings.Builder
	for i, m := range all {
		if i == 0 {
			b.WriteString("\nModules, of which load(\"@msh//…\", \"name\") gets what they hold:\n\n")
		}
		fmt.Fprintf(&b, "%-*s  %s\n", width, m.Name, firstSentence(m.Doc))
	}
	return b.String(), nil
}
