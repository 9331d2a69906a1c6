package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Claim is one exclusive thing and who has it.
type Claim struct {
	Kind   string // "cpu", "memory", "uid", …
	Name   string // which one, a file name: "3", "1879048192"
	Amount int64  `json:",omitempty"` // bytes of memory, or how many ids
	Owner  string // LAB/MACHINE
	Note   string `json:",omitempty"` // what its kind must remember of it
	From   string `json:",omitempty"` // the ancestor it is taken from; "" is the host
}

// ErrTaken is what Take answers for a thing that somebody has.
var ErrTaken = errors.New("taken")

// Book is the host-wide list of exclusive things that machines have: a file per
// claim in one directory, so that a crash cannot tear it.
type Book struct{ Dir string }

// flock(2) holds off other processes, and this one's goroutines too, but those
// had better wait here than in the kernel.
var bookMu sync.Mutex

// Lock keeps every other msh on this host from changing the book until the
// returned function is called. The directory itself is what is locked, so that
// an unused book leaves no file.
func (b *Book) Lock() (unlock func(), err error) {
	bookMu.Lock()
	for {
		fd, err := b.lock()
		if err != nil {
			bookMu.Unlock()
			return nil, fmt.Errorf("lock the book: %w", err)
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Nlink > 0 {
			return func() { unix.Close(fd); bookMu.Unlock() }, nil
		}
		unix.Close(fd) // removed by another msh, which was done with it
	}
}

func (b *Book) lock() (int, error) {
	for {
		if err := os.MkdirAll(b.Dir, 0o755); err != nil {
			return -1, err
		}
		fd, err := unix.Open(b.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return -1, err
		}
		for {
			err = unix.Flock(fd, unix.LOCK_EX)
			if err != unix.EINTR {
				break
			}
		}
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
}

func (b *Book) file(kind, name string) string { return filepath.Join(b.Dir, kind+"-"+name) }

// half is the file that a claim is written to before it is one.
func (b *Book) half() string { return filepath.Join(b.Dir, ".new") }

// Claims lists the claims of one kind, or all for "".
func (b *Book) Claims(kind string) ([]Claim, error) {
	entries, err := os.ReadDir(b.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var claims []Claim
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || kind != "" && !strings.HasPrefix(e.Name(), kind+"-") {
			continue
		}
		c, err := readClaim(filepath.Join(b.Dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // released since
		}
		if err != nil {
			return nil, err
		}
		claims = append(claims, c)
	}
	return claims, nil
}

func readClaim(file string) (Claim, error) {
	var c Claim
	raw, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// Take writes a claim down. It needs the lock. Somebody else's claim on the same
// thing is returned with ErrTaken.
func (b *Book) Take(c Claim) (holder Claim, err error) {
	file := b.file(c.Kind, c.Name)
	if holder, err := readClaim(file); err == nil {
		return holder, ErrTaken
	} else if !errors.Is(err, fs.ErrNotExist) {
		return holder, err
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return c, err
	}
	// Renamed into place: a claim is whole or not there.
	if err := os.WriteFile(b.half(), raw, 0o600); err != nil {
		return c, err
	}
	return c, os.Rename(b.half(), file)
}

// Release takes a claim back, if it is still its owner's. It needs the lock.
func (b *Book) Release(c Claim) error {
	file := b.file(c.Kind, c.Name)
	holder, err := readClaim(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if holder.Owner != c.Owner {
		return nil
	}
	return os.Remove(file)
}

// Tidy removes the book if it is empty, but for the half-written claim of a writer
// that died. That too needs the lock: whoever has it is about to write.
func (b *Book) Tidy() {
	if _, err := os.Stat(b.Dir); err != nil {
		return
	}
	if unlock, err := b.Lock(); err == nil {
		os.Remove(b.half())
		os.Remove(b.Dir)
		unlock()
	}
}
