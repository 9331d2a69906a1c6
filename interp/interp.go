package interp

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.starlark.net/lib/json"
	"go.starlark.net/lib/math"
	"go.starlark.net/lib/time"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
)

// fileOptions are those of every script, file and REPL input alike. A script is written like a shell script:
// control flow stands at the top level, and there a name may be bound again, without which a loop there could not count.
var fileOptions = syntax.FileOptions{
	Set:             true,
	While:           true,
	TopLevelControl: true,
	GlobalReassign:  true,
	Recursion:       true,
}

// universe lists the names of Starlark's own that scripts see. A test compares it with starlark.Universe,
// so that a new version of the library adds no word to the language unnoticed.
const universe = "None True False abs any all bool bytes chr dict dir enumerate fail float getattr hasattr hash int len list " +
	"max min ord print range repr reversed set sorted str tuple type zip"

// Options say what an interpreter gives its scripts. The zero value is a plain Starlark with the standard streams.
type Options struct {
	// Dry runs scripts without doing anything (msh -n): see Unknown.
	Dry bool
	// Args are the script's arguments, its predeclared `args`.
	Args []string
	// Nil streams stand for the process's own.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Words and Values are predeclared beside the interpreter's own.
	Words  []*Word
	Values starlark.StringDict
	// Types and Named describe the values, for help and the reference page.
	Types []Type
	Named []Named
	// Stdlib is what load("@msh//x.star", …) reads; nil for none.
	Stdlib fs.FS
	// Ready, if any, is closed when a script may begin to do things; until then it is only read, and makes values.
	Ready <-chan struct{}
}

// Interp runs scripts. Its methods may be called from several goroutines, but it runs one script, or one REPL, at a time.
type Interp struct {
	opts        Options
	words       func() []*Word      // sorted by name
	predeclared starlark.StringDict // what scripts can name
	hidden      starlark.StringDict // predeclared, and what only rewritten scripts name: see hide
	hides       bool                // the two differ

	globals  starlark.StringDict // of the last script, and of the REPL
	failures int                 // of the REPL's inputs

	mu       sync.Mutex // guards what follows
	sources  map[string]string
	captured map[string][]string // by file: the names its functions use
	modules  map[string]*module  // by absolute path
	deferred []starlark.Callable

	printing    sync.Mutex
	madeUnknown atomic.Int64 // how many calls have given an Unknown so far
}

// New returns an interpreter. It runs nothing yet.
func New(opts Options) *Interp {
	if opts.Stdin == nil {
		opts.Stdin = os.Stdin
	}
	if opts.Stdout == nil {
		opts.Stdout = os.Stdout
	}
	if opts.Stderr == nil {
		opts.Stderr = os.Stderr
	}
	in := &Interp{
		opts:     opts,
		globals:  make(starlark.StringDict),
		sources:  make(map[string]string),
		captured: make(map[string][]string),
		modules:  make(map[string]*module),
	}
	words := slices.Concat(ownWords(), opts.Words)
	in.words = sync.OnceValue(func() []*Word {
		slices.SortFunc(words, func(a, b *Word) int { return strings.Compare(a.Name, b.Name) })
		return words
	})
	in.predeclare(words)
	return in
}

// Words returns all words, those of the interpreter and those of Options, sorted by name.
func (in *Interp) Words() []*Word { return in.words() }

// Globals returns the global variables of the script that ran last, or of the REPL.
func (in *Interp) Globals() starlark.StringDict { return in.globals }

// ready waits until the script may do things.
func (in *Interp) ready() {
	if in != nil && in.opts.Ready != nil {
		<-in.opts.Ready
	}
}

func (in *Interp) dry() bool { return in != nil && in.opts.Dry }

// predeclare makes the names that scripts see, and the hidden ones. Every script waits for it, so it sorts and copies
// nothing, and knows how many there will be.
func (in *Interp) predeclare(words []*Word) {
	names := make(starlark.StringDict, len(words)+len(in.opts.Values)+48)
	names["json"] = json.Module
	names["math"] = math.Module
	names["time"] = time.Module
	names["struct"] = starlark.NewBuiltin("struct", starlarkstruct.Make)
	for name := range strings.FieldsSeq(universe) {
		names[name] = starlark.Universe[name]
	}
	args := make([]starlark.Value, len(in.opts.Args))
	for i, arg := range in.opts.Args {
		args[i] = starlark.String(arg)
	}
	names["args"] = starlark.NewList(args)

	for _, w := range words {
		owner, member, dotted := strings.Cut(w.Name, ".")
		switch {
		case !dotted:
			names[w.Name] = w.Value()
		case !w.IsMethod():
			mod, ok := names[owner].(*starlarkstruct.Module)
			if !ok {
				mod = &starlarkstruct.Module{Name: owner, Members: make(starlark.StringDict)}
				names[owner] = mod
			}
			mod.Members[member] = w.Value()
		}
	}
	for name, v := range in.opts.Values {
		names[name] = v
	}
	names.Freeze()
	in.predeclared, in.hidden = names, names
	if in.opts.Dry {
		in.hide(in.dryFunctions())
	}
}

// hide makes names that only a rewritten script can have: of a dry run, and of the REPL.
func (in *Interp) hide(names starlark.StringDict) {
	if !in.hides {
		in.hidden, in.hides = maps.Clone(in.predeclared), true
	}
	maps.Copy(in.hidden, names)
}

// RunFile runs the script at path. When ctx ends the script is stopped, and errors.Is(err, context.Canceled) holds,
// or DeadlineExceeded. FormatError turns the error into what a user should read. Functions given to defer wait for Close.
func (in *Interp) RunFile(ctx context.Context, path string) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("run %s: %w", path, cause(err))
	}
	return in.RunSource(ctx, path, string(src))
}

// RunSource runs src as RunFile does; name stands for the path, in positions and for what load is relative to.
func (in *Interp) RunSource(ctx context.Context, name, src string) error {
	prog, err := in.compile(name, src)
	if err != nil {
		return err
	}
	thread, stop := in.newThread(ctx, name)
	defer stop()
	thread.SetLocal(localLoading, &loading{key: moduleKey(name), name: name})
	in.globals, err = prog.Init(thread, in.hidden)
	return canceled(ctx, err)
}

// compile parses, rewrites and resolves one file, and keeps its text for error messages.
func (in *Interp) compile(name, src string) (*starlark.Program, error) {
	in.addSource(name, src)
	f, err := fileOptions.Parse(name, src, 0)
	if err != nil {
		return nil, err
	}
	in.noteCaptured(f)
	return in.program(f)
}

// program rewrites and resolves a parsed file.
func (in *Interp) program(f *syntax.File) (*starlark.Program, error) {
	pointCalls(f)
	if in.opts.Dry {
		rewriteDry(f)
	}
	prog, err := starlark.FileProgram(f, in.hidden.Has)
	if err != nil {
		return nil, in.suggest(err)
	}
	return prog, nil
}

func (in *Interp) addSource(name, src string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.sources[name] = src
}

// print writes one line at once, so that the lines of parallel threads do not mix.
func (in *Interp) print(thread *starlark.Thread, msg string) {
	in.ready()
	in.printing.Lock()
	_, err := io.WriteString(in.opts.Stdout, msg+"\n")
	in.printing.Unlock()
	if err != nil {
		// The hook cannot return an error, and a script whose reader is gone should end, as under sh.
		thread.Cancel(fmt.Sprintf("print: %v", err))
	}
}

// Stdin and Stdout are those of the options, for words that talk to the user.
func (in *Interp) Stdin() io.Reader { return in.opts.Stdin }

// Stdout is where print writes.
func (in *Interp) Stdout() io.Writer { return in.opts.Stdout }
