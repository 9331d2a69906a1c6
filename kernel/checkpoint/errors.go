package checkpoint

import (
	"errors"
	"fmt"
	"strings"
)

// What is wrong with a snapshot that is refused. One of the three is in the
// chain of every error that a reader gives for what it has read; an error
// without one of them comes from reading or from the directory unpacked to.
var (
	// ErrCorrupt: cut off, or not what was written.
	ErrCorrupt = errors.New("the snapshot is damaged")
	// ErrNewer: its format is one this msh does not know.
	ErrNewer = errors.New("the snapshot was made by a newer msh")
	// ErrHostile: whole, but such as msh does not make.
	ErrHostile = errors.New("the snapshot is not such as msh makes")
)

// NewerError tells which msh made the snapshot. It is an ErrNewer.
type NewerError struct {
	Format int    // what it has; this package knows up to Format
	Msh    string // the version of the msh that made it, "" where it does not say
}

func (e *NewerError) Error() string {
	by := ""
	if e.Msh != "" {
		by = fmt.Sprintf(", by msh %s", short(e.Msh))
	}
	return fmt.Sprintf("%v: it has format %d%s; this one reads up to format %d", ErrNewer, e.Format, by, Format)
}

// Unwrap is ErrNewer.
func (e *NewerError) Unwrap() error { return ErrNewer }

// Hint is the mend.
func (e *NewerError) Hint() string {
	if e.Msh != "" {
		return "wake it with msh " + short(e.Msh) + " or newer"
	}
	return "wake it with the msh that made it, or a newer one"
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func hostile(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrHostile, fmt.Sprintf(format, args...))
}

// short cuts a text from a file that an error echoes.
func short(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}

// otherFile is ErrCorrupt of one that may be no snapshot at all.
type otherFile struct{ cause error }

func (e *otherFile) Error() string {
	return "it is no snapshot of msh's, or damaged where it begins: " + strings.TrimPrefix(e.cause.Error(), ErrCorrupt.Error()+": ")
}

func (e *otherFile) Unwrap() error { return e.cause }

func other(err error) error {
	if errors.Is(err, ErrCorrupt) {
		return &otherFile{err}
	}
	return err
}
