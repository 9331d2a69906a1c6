package interp

import (
	"context"
	"fmt"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Each input to the REPL is a file of its own, and Starlark binds a function's globals to the file it was compiled in:
// one defined earlier would not see a variable that is assigned again. So the globals of the REPL are the attributes of
// one hidden value, and an input is rewritten to use them:
//
//	x = y + 1          ~session~.x = ~session~.y + 1
//	def f(): …         def f(): …; ~session~.f = f
//	load("a", "b")     load("a", "b"); ~session~.b = b
//	1 + 2              ~session~._ = 1 + 2
//
// Which names are globals is the resolver's business: it resolves a second copy of the input, and says.
const hiddenSession = "~session~"

// sessionName is the file that positions in the REPL's input name.
const sessionName = "<stdin>"

// session is the hidden value.
type session struct{ globals starlark.StringDict }

var _ starlark.HasSetField = session{}

func (session) String() string        { return "session" }
func (session) Type() string          { return "session" }
func (session) Freeze()               {}
func (session) Truth() starlark.Bool  { return true }
func (session) Hash() (uint32, error) { return 0, fmt.Errorf("unhashable type: session") }
func (session) AttrNames() []string   { return nil }

func (s session) Attr(name string) (starlark.Value, error) {
	if v, ok := s.globals[name]; ok {
		return v, nil
	}
	return nil, fmt.Errorf("global variable %s referenced before assignment", name)
}

func (s session) SetField(name string, v starlark.Value) error {
	s.globals[name] = v
	return nil
}

// runInput runs one input of the REPL, whose text begins at the given line of the session.
// It returns the value of an input that is an expression, and nil for any other.
func (in *Interp) runInput(ctx context.Context, text string, line int) (starlark.Value, error) {
	opts := fileOptions
	opts.LoadBindsGlobally = true
	parse := func() (*syntax.File, error) {
		return opts.Parse(sessionName, syntax.FilePortion{Content: []byte(text), FirstLine: int32(line), FirstCol: 1}, 0)
	}
	copied, err := parse()
	if err != nil {
		return nil, err
	}
	f, err := parse()
	if err != nil {
		return nil, err
	}
	if len(f.Stmts) == 0 {
		return nil, nil
	}
	if err := resolve.REPLChunk(copied, in.globals.Has, in.predeclared.Has, starlark.Universe.Has); err != nil {
		return nil, in.suggest(err)
	}
	in.noteCaptured(f)
	isExpr := bindSession(f, globalsOf(f, copied))

	in.hide(starlark.StringDict{hiddenSession: session{in.globals}})
	prog, err := in.program(f)
	if err != nil {
		return nil, err
	}
	thread, stop := in.newThread(ctx, sessionName)
	defer stop()
	if _, err := prog.Init(thread, in.hidden); err != nil {
		return nil, canceled(ctx, err)
	}
	if isExpr {
		return in.globals["_"], nil
	}
	return nil, nil
}

// globalsOf returns the identifiers of f that name globals, according to its resolved copy.
func globalsOf(f, resolved *syntax.File) map[*syntax.Ident]bool {
	idents := func(f *syntax.File) (list []*syntax.Ident) {
		syntax.Walk(f, func(n syntax.Node) bool {
			if id, ok := n.(*syntax.Ident); ok {
				list = append(list, id)
			}
			return true
		})
		return list
	}
	globals := make(map[*syntax.Ident]bool)
	twins := idents(resolved)
	for i, id := range idents(f) {
		if b, ok := twins[i].Binding.(*resolve.Binding); ok && b.Scope == resolve.Global {
			globals[id] = true
		}
	}
	return globals
}

// bindSession rewrites an input to keep its globals in the session. It reports whether the input is an expression.
func bindSession(f *syntax.File, globals map[*syntax.Ident]bool) (isExpr bool) {
	attr := func(id *syntax.Ident) syntax.Expr {
		return &syntax.DotExpr{
			X:       &syntax.Ident{NamePos: id.NamePos, Name: hiddenSession},
			Dot:     id.NamePos,
			NamePos: id.NamePos,
			Name:    &syntax.Ident{NamePos: id.NamePos, Name: id.Name},
		}
	}
	set := func(id *syntax.Ident, v syntax.Expr) syntax.Stmt {
		return &syntax.AssignStmt{OpPos: id.NamePos, Op: syntax.EQ, LHS: attr(id), RHS: v}
	}
	r := &rewriter{
		expr: func(x syntax.Expr) syntax.Expr {
			if id, ok := x.(*syntax.Ident); ok && globals[id] {
				return attr(id)
			}
			return x
		},
		target: func(id *syntax.Ident) syntax.Expr {
			if globals[id] {
				return attr(id)
			}
			return id
		},
		after: func(stmt syntax.Stmt) (more []syntax.Stmt) {
			switch s := stmt.(type) {
			case *syntax.DefStmt:
				if globals[s.Name] {
					more = append(more, set(s.Name, &syntax.Ident{NamePos: s.Name.NamePos, Name: s.Name.Name}))
				}
			case *syntax.LoadStmt:
				for _, id := range s.To {
					more = append(more, set(id, &syntax.Ident{NamePos: id.NamePos, Name: id.Name}))
				}
			}
			return more
		},
	}
	r.file(f)
	if len(f.Stmts) == 1 {
		if s, ok := f.Stmts[0].(*syntax.ExprStmt); ok {
			result := &syntax.Ident{NamePos: syntax.Start(s), Name: "_"}
			f.Stmts[0] = set(result, s.X)
			return true
		}
	}
	return false
}
