package kernel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
)

// A snapshot does not hold the lower layer of a machine's root. What of it has to be
// the same where the machine wakes is what its processes have open or mapped: a
// library that is another one would be mapped where the old one was, and crash them
// sooner or later. So these files are told by their digests.

// usedFile is a file of the lower layer that a process uses.
type usedFile struct {
	Path string // in the machine
	Size int64
	Sum  string // sha256, in hex
}

// usedFiles lists them; pids are the machine's processes, upper its upper layer, -1
// for none.
func usedFiles(source string, pids []int, upper int) ([]usedFile, error) {
	paths := map[string]bool{}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			continue // it has just ended
		}
		for line := range bytes.Lines(b) {
			// Five fields, and the path, which may have blanks in it.
			if i := bytes.IndexByte(line, '/'); i > 0 {
				paths[strings.TrimSuffix(string(line[i:]), "\n")] = true
			}
		}
	}
	root, err := unix.Open(source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", source, err)
	}
	defer unix.Close(root)
	var all []usedFile
	for path := range paths {
		if strings.HasSuffix(path, " (deleted)") || upper >= 0 && unix.Faccessat(upper, "."+path, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil {
			continue // it is in the snapshot
		}
		f, err := digestIn(root, path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOENT) {
			continue // in another mount of the machine's
		}
		if err != nil {
			return nil, err
		}
		if f != nil {
			all = append(all, *f)
		}
	}
	slices.SortFunc(all, func(a, b usedFile) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// digests remembers those of files that have not changed since: by all that the
// kernel tells of one.
var digests sync.Map

// digestIn is the digest of a regular file below a root; nil for any other.
func digestIn(root int, path string) (*usedFile, error) {
	f, err := openIn(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil
	}
	key := fmt.Sprint(st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim)
	if sum, ok := digests.Load(key); ok {
		return &usedFile{path, st.Size, sum.(string)}, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	sum := fmt.Sprintf("%x", h.Sum(nil))
	digests.Store(key, sum)
	return &usedFile{path, st.Size, sum}, nil
}

// identity is one digest for all of them.
func identity(files []usedFile) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%s %d %q\n", f.Sum, f.Size, f.Path)
	}
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}

// checkUsed tells whether the lower layer here has those files.
func checkUsed(source string, files []usedFile) error {
	root, err := unix.Open(source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", source, err)
	}
	defer unix.Close(root)
	var wrong []string
	for _, f := range files {
		now, err := digestIn(root, f.Path)
		switch {
		case err != nil || now == nil:
			wrong = append(wrong, f.Path+" is not there")
		case now.Sum != f.Sum:
			wrong = append(wrong, f.Path+" is another one")
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	if n := len(wrong); n > maxProblems {
		wrong = append(wrong[:maxProblems], fmt.Sprintf("and %d more", n-maxProblems))
	}
	return withHint(fmt.Errorf("its lower layer %s is not the one that it was saved over: %s", source, strings.Join(wrong, ", ")),
		"its programs have these mapped: put the same root there, as the package manager's versions tell")
}

// checkBase tells whether a lower layer is there.
func checkBase(b checkpoint.Base) error {
	st, err := os.Stat(b.Path)
	if err == nil && !st.IsDir() {
		err = errors.New("not a directory")
	}
	if err != nil {
		return withHint(fmt.Errorf("its lower layer %s is not here: %w", filepath.Clean(b.Path), err), "a snapshot holds what the machine has changed of its root, not the root itself: put that there first")
	}
	return nil
}
