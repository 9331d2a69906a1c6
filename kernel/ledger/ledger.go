// Package ledger writes down, ahead of each effect, how to take it back.
//
// A machine has one ledger, a file of JSON lines. What the kernel would not
// undo by itself (a control group, a claim on an exclusive thing) is written
// there before it is made; the entries in reverse are the teardown, on success,
// on failure and, by another process, after a crash. So an undo must bear
// finding nothing to undo.
//
//	l, err := ledger.Create(file)
//	err = l.Write("cgroup", group)   // then make it
//	err = l.Undo(func(e ledger.Entry) error { … })
//
// Beside it stands the host-wide Book of exclusive things.
package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"msh/kernel/rawfile"
)

// Entry is one undo: an operation of the kernel package and its argument.
type Entry struct {
	Op  string
	Arg json.RawMessage
}

// Ledger is the file and what is in it. It may be used by several goroutines.
type Ledger struct {
	mu      sync.Mutex
	file    *os.File
	entries []Entry
	newline bool  // whether the next entry must begin one
	size    int64 // of the file when it was opened
}

// Create makes the file, which must be new.
func Create(path string) (*Ledger, error) {
	f, err := open(path, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	return &Ledger{file: f}, nil
}

// open opens the file past the poller (see rawfile).
func open(path string, flags int) (*os.File, error) {
	fd, err := rawfile.Open(path, os.O_WRONLY|os.O_APPEND|flags, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Read reads the entries that another process, or an earlier run, has written. A
// line that is torn was being written when its writer died, or is still being
// written: its effect has not been made, and it is passed over.
func Read(path string) ([]Entry, error) {
	entries, _, err := read(path)
	return entries, err
}

func read(path string) (entries []Entry, size int64, err error) {
	b, err := rawfile.Read(path)
	if err != nil {
		return nil, 0, err
	}
	for line := range bytes.Lines(b) {
		var e Entry
		if !bytes.HasSuffix(line, []byte("\n")) || json.Unmarshal(line, &e) != nil {
			continue
		}
		entries = append(entries, e)
	}
	return entries, int64(len(b)), nil
}

// Open reads a ledger, and goes on writing it: on a new line, whatever its last
// writer has left. Nothing is cut off, since that writer may be alive.
func Open(path string) (*Ledger, error) {
	f, err := open(path, 0)
	if err != nil {
		return nil, err
	}
	entries, size, err := read(path)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Ledger{file: f, entries: entries, newline: true, size: size}, nil
}

// Grown tells whether the file has become longer since it was opened.
func (l *Ledger) Grown() (bool, error) {
	st, err := l.file.Stat()
	if err != nil {
		return false, err
	}
	return st.Size() > l.size, nil
}

// NewEntry lays out an entry, for whoever has time for it before it is to be written.
func NewEntry(op string, arg any) (Entry, error) {
	raw, err := json.Marshal(arg)
	return Entry{op, raw}, err
}

// Write adds an entry. Only when it returns nil may the effect be made.
func (l *Ledger) Write(op string, arg any) error {
	e, err := NewEntry(op, arg)
	if err != nil {
		return err
	}
	return l.Append(e)
}

// Append is Write for an entry that is laid out.
func (l *Ledger) Append(e Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	// As json.Marshal has it, which would go through the argument once more.
	line := fmt.Appendf(nil, "{\"Op\":%q,\"Arg\":%s}\n", e.Op, e.Arg)
	if l.newline {
		line = append([]byte{'\n'}, line...)
	}
	// One write(2), no fsync: what a power failure loses, it undoes as well.
	if _, err := l.file.Write(line); err != nil {
		l.newline = true
		return fmt.Errorf("write ahead %s: %w", e.Op, err)
	}
	l.newline = false
	l.entries = append(l.entries, e)
	return nil
}

// Undo calls undo for each entry, last first. It goes on past errors and joins
// them. What could be undone is no longer in l, so that a second Undo does the rest.
func (l *Ledger) Undo(undo func(Entry) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	var left []Entry
	for _, e := range slices.Backward(l.entries) {
		if err := undo(e); err != nil {
			errs = append(errs, err)
			left = append(left, e)
		}
	}
	slices.Reverse(left)
	l.entries = left
	return errors.Join(errs...)
}

// Len is how many entries there are to undo.
func (l *Ledger) Len() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.entries) }

// Close closes the file; the entries stay.
func (l *Ledger) Close() error { return l.file.Close() }
