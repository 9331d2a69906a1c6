package interp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"go.starlark.net/starlark"
)

// stdlibPrefix begins the names of the modules that come with msh.
const stdlibPrefix = "@msh//"

// module is a loaded file: what it made, or how it failed.
type module struct {
	globals starlark.StringDict
	err     error
}

// loading is the chain of files under way on a thread, the innermost first.
type loading struct {
	key, name string
	by        *loading
}

// load is the threads' Load hook. A name is relative to the file that loads it; each file runs once.
func (in *Interp) load(thread *starlark.Thread, name string) (starlark.StringDict, error) {
	by, _ := thread.Local(localLoading).(*loading)
	display := resolveModule(by, name)
	this := &loading{key: moduleKey(display), name: display, by: by}
	for l := by; l != nil; l = l.by {
		if l.key == this.key {
			return nil, &loadError{fmt.Errorf("load %q: it is being loaded already: %s", name, this.chain(l))}
		}
	}

	in.mu.Lock()
	m := in.modules[this.key]
	in.mu.Unlock()
	if m == nil {
		m = &module{}
		m.globals, m.err = in.loadModule(thread, name, this)
		in.mu.Lock()
		in.modules[this.key] = m
		in.mu.Unlock()
	}
	if m.err != nil {
		return nil, &loadError{m.err}
	}
	return m.globals, nil
}

func (in *Interp) loadModule(parent *starlark.Thread, name string, this *loading) (starlark.StringDict, error) {
	src, err := in.readModule(name, this)
	if err != nil {
		return nil, err
	}
	prog, err := in.compile(this.name, src)
	if err != nil {
		return nil, err
	}
	ctx := Context(parent)
	thread, stop := in.newThread(ctx, this.name)
	defer stop()
	thread.SetLocal(localLoading, this)
	globals, err := prog.Init(thread, in.hidden)
	globals.Freeze()
	return globals, canceled(ctx, err)
}

func (in *Interp) readModule(name string, this *loading) (string, error) {
	if file, ok := strings.CutPrefix(this.name, stdlibPrefix); ok {
		return in.readStdlib(name, file)
	}
	src, err := os.ReadFile(this.name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("load %q: no such file: looked at %s", name, this.name)
	}
	if err != nil {
		return "", fmt.Errorf("load %q: %s: %w", name, this.name, cause(err))
	}
	return string(src), nil
}

func (in *Interp) readStdlib(name, file string) (string, error) {
	if in.opts.Stdlib == nil {
		return "", fmt.Errorf("load %q: there is no standard library here", name)
	}
	src, err := fs.ReadFile(in.opts.Stdlib, file)
	if err == nil {
		return string(src), nil
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid) {
		return "", fmt.Errorf("load %q: %w", name, cause(err))
	}
	have, err := fs.Glob(in.opts.Stdlib, "*.star")
	if err != nil {
		return "", fmt.Errorf("load %q: %w", name, err)
	}
	return "", fmt.Errorf("load %q: no such file in the standard library%s: it has %s",
		name, didYouMean(file, have), strings.Join(have, ", "))
}

// resolveModule returns the name of a module as positions show it: in the user's terms, not absolute
// where the script's own name was not.
func resolveModule(by *loading, name string) string {
	if file, ok := strings.CutPrefix(name, stdlibPrefix); ok {
		return stdlibPrefix + path.Clean(file)
	}
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	if by == nil {
		return filepath.Clean(name)
	}
	if file, ok := strings.CutPrefix(by.name, stdlibPrefix); ok {
		return stdlibPrefix + path.Join(path.Dir(file), name)
	}
	return filepath.Join(filepath.Dir(by.name), name)
}

// moduleKey is one for all the names of a file.
func moduleKey(display string) string {
	if strings.HasPrefix(display, stdlibPrefix) {
		return display
	}
	abs, err := filepath.Abs(display)
	if err != nil { // the working directory is gone: relative names are all there is
		return display
	}
	return abs
}

// chain shows the way from l, the first time round, to l, the second.
func (l *loading) chain(first *loading) string {
	names := []string{l.name}
	for p := l.by; ; p = p.by {
		names = append([]string{p.name}, names...)
		if p == first {
			return strings.Join(names, " -> ")
		}
	}
}

// loadError marks an error that came through load: the loading file's traceback says so already,
// so Format leaves out the words that Starlark puts before it.
type loadError struct{ err error }

func (e *loadError) Error() string { return e.err.Error() }
func (e *loadError) Unwrap() error { return e.err }

// cause takes the operation and the path off an error of os, for those who have named them already.
func cause(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
