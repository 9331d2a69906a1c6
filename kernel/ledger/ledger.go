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
}

// Create makes the file, which must be new.
func Create(path string) (*Ledger, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &Ledger{file: f}, nil
}

// Read reads the entries that another process, or an earlier run, has written. A
// last line without its end was being written when its writer died: its effect
// has not been made.
func Read(path string) ([]Entry, error) {
	entries, _, err := read(path)
	return entries, err
}

// read also tells where a torn last line begins; -1 where there is none.
func read(path string) (entries []Entry, torn int64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, -1, err
	}
	torn = -1
	whole := bytes.LastIndexByte(b, '\n') + 1
	if whole < len(b) {
		torn = int64(whole)
	}
	for line := range bytes.Lines(b[:whole]) {
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, -1, fmt.Errorf("%s: line %q: %w", path, line, err)
		}
		entries = append(entries, e)
	}
	return entries, torn, nil
}

// Open reads a ledger, and goes on writing it.
func Open(path string) (*Ledger, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	l := &Ledger{file: f}
	var torn int64
	if l.entries, torn, err = read(path); err == nil && torn >= 0 {
		err = f.Truncate(torn)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// Write adds an entry. Only when it returns nil may the effect be made.
func (l *Ledger) Write(op string, arg any) error {
	raw, err := json.Marshal(arg)
	if err != nil {
		return err
	}
	e := Entry{op, raw}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// One write(2), no fsync: what a power failure loses, it undoes as well.
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write ahead %s: %w", op, err)
	}
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

// Close closes the file; the entries stay.
func (l *Ledger) Close() error { return l.file.Close() }
