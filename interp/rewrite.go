package interp

import "go.starlark.net/syntax"

// rewriter changes a syntax tree in place, before it is resolved. Each function is given a node whose own parts
// have been rewritten, and returns what takes its place; nil functions change nothing.
type rewriter struct {
	expr   func(syntax.Expr) syntax.Expr   // every expression that is evaluated
	cond   func(syntax.Expr) syntax.Expr   // … and decides: after if, while, not; before and, or
	iter   func(syntax.Expr) syntax.Expr   // … and is iterated over
	target func(*syntax.Ident) syntax.Expr // every variable that is assigned to
	after  func(syntax.Stmt) []syntax.Stmt // statements to follow this one
}

func (r *rewriter) file(f *syntax.File) { f.Stmts = r.stmts(f.Stmts) }

func (r *rewriter) stmts(list []syntax.Stmt) []syntax.Stmt {
	var out []syntax.Stmt // nil for none: an if without else has a nil list
	for _, stmt := range list {
		r.stmt(stmt)
		out = append(out, stmt)
		if r.after != nil {
			out = append(out, r.after(stmt)...)
		}
	}
	return out
}

func (r *rewriter) stmt(stmt syntax.Stmt) {
	switch s := stmt.(type) {
	case *syntax.AssignStmt:
		s.RHS = r.eval(s.RHS)
		switch s.LHS.(type) {
		case *syntax.TupleExpr, *syntax.ListExpr: // a, b = x iterates over x
			s.RHS = apply(r.iter, s.RHS)
		}
		s.LHS = r.assign(s.LHS)
	case *syntax.DefStmt:
		r.params(s.Params)
		s.Body = r.stmts(s.Body)
	case *syntax.ExprStmt:
		s.X = r.eval(s.X)
	case *syntax.ForStmt:
		s.X = apply(r.iter, r.eval(s.X))
		s.Vars = r.assign(s.Vars)
		s.Body = r.stmts(s.Body)
	case *syntax.IfStmt:
		s.Cond = apply(r.cond, r.eval(s.Cond))
		s.True = r.stmts(s.True)
		s.False = r.stmts(s.False)
	case *syntax.ReturnStmt:
		s.Result = r.eval(s.Result)
	case *syntax.WhileStmt:
		s.Cond = apply(r.cond, r.eval(s.Cond))
		s.Body = r.stmts(s.Body)
	}
}

// assign rewrites what stands left of =.
func (r *rewriter) assign(lhs syntax.Expr) syntax.Expr {
	switch x := lhs.(type) {
	case *syntax.Ident:
		if r.target != nil {
			return r.target(x)
		}
	case *syntax.ParenExpr:
		x.X = r.assign(x.X)
	case *syntax.TupleExpr:
		for i := range x.List {
			x.List[i] = r.assign(x.List[i])
		}
	case *syntax.ListExpr:
		for i := range x.List {
			x.List[i] = r.assign(x.List[i])
		}
	case *syntax.IndexExpr:
		x.X, x.Y = r.eval(x.X), r.eval(x.Y)
	case *syntax.DotExpr:
		x.X = r.eval(x.X)
	}
	return lhs
}

// params rewrites the defaults in a list of parameters.
func (r *rewriter) params(params []syntax.Expr) {
	for _, p := range params {
		if p, ok := p.(*syntax.BinaryExpr); ok {
			p.Y = r.eval(p.Y)
		}
	}
}

func (r *rewriter) list(exprs []syntax.Expr) {
	for i := range exprs {
		exprs[i] = r.eval(exprs[i])
	}
}

func (r *rewriter) eval(expr syntax.Expr) syntax.Expr {
	switch x := expr.(type) {
	case nil:
		return nil
	case *syntax.BinaryExpr:
		x.X, x.Y = r.eval(x.X), r.eval(x.Y)
		if x.Op == syntax.AND || x.Op == syntax.OR {
			x.X = apply(r.cond, x.X)
		}
	case *syntax.CallExpr:
		x.Fn = r.eval(x.Fn)
		r.args(x.Args)
	case *syntax.Comprehension:
		r.clauses(x.Clauses)
		if entry, ok := x.Body.(*syntax.DictEntry); ok {
			entry.Key, entry.Value = r.eval(entry.Key), r.eval(entry.Value)
		} else {
			x.Body = r.eval(x.Body)
		}
	case *syntax.CondExpr:
		x.Cond = apply(r.cond, r.eval(x.Cond))
		x.True, x.False = r.eval(x.True), r.eval(x.False)
	case *syntax.DictExpr:
		for _, e := range x.List {
			entry := e.(*syntax.DictEntry)
			entry.Key, entry.Value = r.eval(entry.Key), r.eval(entry.Value)
		}
	case *syntax.DotExpr:
		x.X = r.eval(x.X)
	case *syntax.IndexExpr:
		x.X, x.Y = r.eval(x.X), r.eval(x.Y)
	case *syntax.LambdaExpr:
		r.params(x.Params)
		x.Body = r.eval(x.Body)
	case *syntax.ListExpr:
		r.list(x.List)
	case *syntax.ParenExpr:
		x.X = r.eval(x.X)
	case *syntax.SliceExpr:
		x.X, x.Lo, x.Hi, x.Step = r.eval(x.X), r.eval(x.Lo), r.eval(x.Hi), r.eval(x.Step)
	case *syntax.TupleExpr:
		r.list(x.List)
	case *syntax.UnaryExpr:
		x.X = r.eval(x.X)
		if x.Op == syntax.NOT {
			x.X = apply(r.cond, x.X)
		}
	}
	return apply(r.expr, expr)
}

// args rewrites the arguments of a call; the forms name=x, *x and **x stay, for they are not expressions.
func (r *rewriter) args(args []syntax.Expr) {
	for i, arg := range args {
		if named, ok := arg.(*syntax.BinaryExpr); ok && named.Op == syntax.EQ {
			named.Y = r.eval(named.Y)
		} else if star, ok := arg.(*syntax.UnaryExpr); ok && star.Op == syntax.STAR {
			star.X = apply(r.iter, r.eval(star.X))
		} else if ok && star.Op == syntax.STARSTAR {
			star.X = apply(r.iter, r.eval(star.X))
		} else {
			args[i] = r.eval(arg)
		}
	}
}

func (r *rewriter) clauses(clauses []syntax.Node) {
	for _, clause := range clauses {
		switch c := clause.(type) {
		case *syntax.ForClause:
			c.X = apply(r.iter, r.eval(c.X))
			c.Vars = r.assign(c.Vars)
		case *syntax.IfClause:
			c.Cond = apply(r.cond, r.eval(c.Cond))
		}
	}
}

func apply(f func(syntax.Expr) syntax.Expr, x syntax.Expr) syntax.Expr {
	if f == nil || x == nil {
		return x
	}
	return f(x)
}

// hiddenCall is a call of a hidden function, whose errors are at pos. Its name cannot be written in a script.
func hiddenCall(name string, pos syntax.Position, args ...syntax.Expr) *syntax.CallExpr {
	return &syntax.CallExpr{
		Fn:     &syntax.Ident{NamePos: pos, Name: name},
		Lparen: pos,
		Args:   args,
		Rparen: pos,
	}
}

// pointCalls moves the position of each call from its parenthesis to the name that is called, and that of
// each attribute from its dot to its name, which is where a reader looks first.
func pointCalls(f *syntax.File) {
	syntax.Walk(f, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.DotExpr:
			n.Dot = n.Name.NamePos
		case *syntax.CallExpr:
			switch fn := n.Fn.(type) {
			case *syntax.Ident:
				n.Lparen = fn.NamePos
			case *syntax.DotExpr:
				n.Lparen = fn.Name.NamePos
			}
		}
		return true
	})
}
