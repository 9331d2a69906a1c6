package interp

import (
	"slices"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Starlark's lists and dicts are not safe for several threads. Freezing a function freezes what it closes over,
// but not the globals of its file, which it reaches as well. To freeze them all would freeze too much: a list that
// the script fills as it goes. So the names used inside the file's functions are noted when it is compiled,
// and those are what parallel freezes.

// noteCaptured notes the names that the file's functions use.
func (in *Interp) noteCaptured(f *syntax.File) {
	var names []string
	inFunction := func(n syntax.Node) bool {
		if id, ok := n.(*syntax.Ident); ok {
			names = append(names, id.Name)
		}
		return true
	}
	syntax.Walk(f, func(n syntax.Node) bool {
		switch n.(type) {
		case *syntax.DefStmt, *syntax.LambdaExpr:
			syntax.Walk(n, inFunction)
			return false
		}
		return true
	})
	in.mu.Lock()
	defer in.mu.Unlock()
	names = append(names, in.captured[f.Path]...) // of earlier inputs to the REPL
	slices.Sort(names)
	in.captured[f.Path] = slices.Compact(names)
}

// freezeCaptured freezes the globals that functions can reach: those of fn's file,
// and of every file that has a function under way on the thread.
func (in *Interp) freezeCaptured(thread *starlark.Thread, fn starlark.Callable) {
	freeze := func(fn starlark.Callable) {
		f, ok := fn.(*starlark.Function)
		if !ok {
			return
		}
		file := f.Position().Filename()
		in.mu.Lock()
		names := in.captured[file]
		in.mu.Unlock()
		globals := f.Globals()
		if file == sessionName { // whose inputs keep theirs elsewhere: see hiddenSession
			globals = in.globals
		}
		for _, name := range names {
			if v, ok := globals[name]; ok {
				v.Freeze()
			}
		}
	}
	freeze(fn)
	for depth := range thread.CallStackDepth() {
		freeze(thread.DebugFrame(depth).Callable())
	}
}
