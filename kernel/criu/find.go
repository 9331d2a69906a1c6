package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Version is a release of criu.
type Version struct{ Major, Minor, Patch int }

func (v Version) String() string {
	s := fmt.Sprintf("%d.%d", v.Major, v.Minor)
	if v.Patch != 0 {
		s += fmt.Sprintf(".%d", v.Patch)
	}
	return s
}

// Less tells whether v is older.
func (v Version) Less(o Version) bool {
	if v.Major != o.Major {
		return v.Major < o.Major
	}
	if v.Minor != o.Minor {
		return v.Minor < o.Minor
	}
	return v.Patch < o.Patch
}

// Wanted is the oldest release that will do: 4.1 cannot dump an inet socket on
// Linux 6.16 and later (SO_PASSCRED, criu issue 2705), 3.17 does not start on 6.13
// and later (its search for the vDSO). scripts/criu holds the same number.
var Wanted = Version{4, 2, 0}

// Criu is a program that Find has found.
type Criu struct {
	Path    string
	Version Version
	// Keep is a file in which what criu has found out about the running kernel
	// may be kept from one call to the next, where /run is no tmpfs for criu to
	// keep it itself; "" keeps it in memory. Boot names this boot: what was found out
	// in another is passed over, as a /run on a disk outlives the kernel.
	Keep, Boot string
}

// ErrMissing says that there is no criu, or none that is new enough.
type ErrMissing struct {
	Tried []string // "/usr/sbin/criu is 3.17.1"
}

func (e *ErrMissing) Error() string {
	s := fmt.Sprintf("no CRIU %v or newer", Wanted)
	if len(e.Tried) > 0 {
		s += ": " + strings.Join(e.Tried, ", ")
	}
	return s
}

// Hint is the mend.
func (*ErrMissing) Hint() string {
	return fmt.Sprintf("install the package criu (Debian forky or sid has %v; in msh's own source tree scripts/criu fetches it), or name the program in MSH_CRIU", Wanted)
}

// Find looks for criu: where MSH_CRIU says, in PATH and the directories of
// root's commands, and where scripts/criu has put one. The error is an *ErrMissing
// where none is new enough.
func Find(ctx context.Context) (*Criu, error) {
	if named := os.Getenv("MSH_CRIU"); named != "" {
		v, err := version(ctx, named)
		if err != nil {
			return nil, fmt.Errorf("MSH_CRIU: %w", err)
		}
		if v.Less(Wanted) {
			return nil, &ErrMissing{[]string{fmt.Sprintf("MSH_CRIU is %s, which is %v", named, v)}}
		}
		return &Criu{Path: named, Version: v}, nil
	}
	var tried []string
	for _, path := range candidates() {
		v, err := version(ctx, path)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			tried = append(tried, err.Error())
		case v.Less(Wanted):
			tried = append(tried, fmt.Sprintf("%s is %v", path, v))
		default:
			return &Criu{Path: path, Version: v}, nil
		}
	}
	return nil, &ErrMissing{tried}
}

// candidates are the programs that there are.
func candidates() []string {
	var all []string
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin") {
		all = append(all, filepath.Join(dir, "criu"))
	}
	if dir, err := os.UserCacheDir(); err == nil {
		all = append(all, filepath.Join(dir, "msh/criu/criu"))
	}
	var there []string
	seen := map[string]bool{}
	for _, path := range all {
		if !filepath.IsAbs(path) {
			continue
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			there = append(there, path)
		}
	}
	return there
}

// versions remembers what programs have said, by path, size and time.
var versions sync.Map

// version asks a program for its release.
func version(ctx context.Context, path string) (Version, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Version{}, err
	}
	key := fmt.Sprint(path, st.Size(), st.ModTime().UnixNano())
	if v, ok := versions.Load(key); ok {
		return v.(Version), nil
	}
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		text, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if text == "" {
			text = err.Error()
		}
		return Version{}, fmt.Errorf("%s does not start: %s", path, text)
	}
	for line := range strings.Lines(string(out)) {
		if text, ok := strings.CutPrefix(line, "Version:"); ok {
			v, err := parseVersion(strings.TrimSpace(text))
			if err == nil {
				versions.Store(key, v)
			}
			return v, err
		}
	}
	return Version{}, fmt.Errorf("%s is no criu: it tells no version", path)
}

func parseVersion(text string) (Version, error) {
	var v Version
	for i, f := range strings.SplitN(text, ".", 3) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return Version{}, fmt.Errorf("version %q: %w", text, errors.Unwrap(err))
		}
		*[]*int{&v.Major, &v.Minor, &v.Patch}[i] = n
	}
	return v, nil
}

// environment is what criu gets: configuration of the caller's must not change
// what is asked of it.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/nonexistent"}
}
