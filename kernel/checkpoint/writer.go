package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
)

// Options are how a file is written.
type Options struct {
	Level   Level
	Workers int // chunks compressed at a time; 0 is as many as there are cores, at most 2
}

// Writer writes a snapshot: the manifest, then sections one after another. It
// is not for several goroutines at a time. After an error nothing but Abort
// works.
type Writer struct {
	out     io.Writer
	file    *target // nil where the caller has given out
	codec   *codec
	workers int
	outline outline
	info    *Manifest
	busy    bool // a section is open
	done    bool
	mu      sync.Mutex  // guards err
	err     error       // the first; it stays
	idle    chan *chunk // chunks that are not in use; each has room of its own
	made    int         // chunks there are
}

// Info tells what is in a snapshot.
type Info struct {
	Manifest *Manifest
	Digest   string // "sha256:…", of SHA256SUMS: the snapshot's identity
	Size     int64  // of the file, bytes
	Sections []SectionInfo
}

// The names of sections that have a meaning here.
const (
	SectionUpper  = "upper"
	SectionMemory = "memory"
	SectionTree   = "tree." // the beginning: of another tree
)

// SectionRound is the name for the images of a pre-copy round, 1 being the first.
func SectionRound(n int) string { return fmt.Sprintf("%s.%d", SectionMemory, n) }

func isTree(section string) bool {
	return section == SectionUpper || strings.HasPrefix(section, SectionTree)
}

func isImages(section string) bool {
	return section == SectionMemory || strings.HasPrefix(section, SectionMemory+".")
}

// NewWriter writes to something that need not seek: a pipe, ssh's standard input.
// Commit does not close it.
func NewWriter(out io.Writer, o Options) (*Writer, error) {
	c, err := newCodec(o.Level)
	if err != nil {
		return nil, err
	}
	if o.Workers <= 0 {
		o.Workers = min(2, runtime.GOMAXPROCS(0))
	}
	// One more is being filled, and one written.
	return &Writer{out: out, codec: c, workers: o.Workers, idle: make(chan *chunk, o.Workers+2)}, nil
}

// Create writes to a file at path, which is not there, or as it was, until
// Commit: what is written has no name until then. Its mode is 0600, for memory
// has secrets in it.
func Create(path string, o Options) (*Writer, error) {
	f, err := newTarget(path, true)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	w, err := NewWriter(f, o)
	if err != nil {
		f.abort()
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	w.file = f
	return w, nil
}

// Manifest is written first, once. Its Format is set, and the annotations that
// follow from other fields are added, in the file and not in m.
func (w *Writer) Manifest(m *Manifest) error {
	if w.info != nil {
		return errors.New("write the manifest: it was written")
	}
	if err := w.ready(); err != nil {
		return err
	}
	c := *m
	c.Format = Format
	c.annotate()
	if err := c.check(); err != nil {
		return err
	}
	text, err := json.MarshalIndent(&c, "", "  ")
	if err != nil {
		return fmt.Errorf("write the manifest: %w", err)
	}
	text = append(text, '\n')
	if len(text) > maxManifest {
		return fmt.Errorf("write the manifest: got %d bytes, want at most %d", len(text), maxManifest)
	}
	n := int64(len(text))
	if err := w.member(&record{name: manifestName, size: n, raw: n, sum: sha256.Sum256(text)}, text); err != nil {
		return err
	}
	if w.info, err = parseManifest(text); err != nil { // as a reader will see it
		return w.fail(err)
	}
	w.outline.machines = w.info
	return nil
}

// ready tells why nothing can be written now.
func (w *Writer) ready() error {
	err := w.failed()
	switch {
	case err != nil:
		return err
	case w.done:
		return errors.New("write the snapshot: it was committed or given up")
	case w.busy:
		return errors.New("write the snapshot: a section is still open")
	}
	return nil
}

// member writes a record and its data.
func (w *Writer) member(r *record, data []byte) error {
	err := w.outline.add(r)
	for _, b := range [][]byte{r.head(), data, zeros[:pad(r.size)]} {
		if err == nil && len(b) > 0 {
			_, err = w.out.Write(b)
		}
	}
	if err != nil {
		return w.fail(fmt.Errorf("write the snapshot: %w", err))
	}
	return nil
}

// fail keeps the first error, and gives it back.
func (w *Writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return w.err
}

func (w *Writer) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Upper writes a machine's upper layer: all below a directory, which nothing
// may change meanwhile. The descriptor stays the caller's.
func (w *Writer) Upper(ctx context.Context, machine string, dir int) error {
	return w.tree(ctx, machine, SectionUpper, &packing{}, dir)
}

// Tree writes another tree, as Upper does. A place in it that something is mounted on
// is saved as an empty directory or file.
func (w *Writer) Tree(ctx context.Context, machine, section string, dir int) error {
	if !isTree(section) {
		return fmt.Errorf("write a tree of %s: section %q: want %sNAME", machine, section, SectionTree)
	}
	return w.tree(ctx, machine, section, &packing{covered: true}, dir)
}

// Images writes a directory of CRIU's images, as SectionMemory or a SectionRound.
func (w *Writer) Images(ctx context.Context, machine, section string, dir int) error {
	if !isImages(section) {
		return fmt.Errorf("write images of %s: section %q: want %q or one of a round", machine, section, SectionMemory)
	}
	return w.tree(ctx, machine, section, &packing{images: true}, dir)
}

func (w *Writer) tree(ctx context.Context, machine, section string, p *packing, dir int) error {
	s, err := w.begin(ctx, machine, section)
	if err != nil {
		return err
	}
	p.ctx, p.out = ctx, s
	if err := p.tree(dir); err != nil {
		s.abandon(err)
		return fmt.Errorf("pack %s of %s: %w", section, machine, err)
	}
	return s.Close()
}

// Stream opens a section of any other name, for bytes that this package does not
// look into. Close ends it; the error it gives counts.
func (w *Writer) Stream(ctx context.Context, machine, section string) (io.WriteCloser, error) {
	if isTree(section) || isImages(section) || !isSection(section) {
		return nil, fmt.Errorf("write a stream of %s: section %q: want a name of a-z, 0-9, - and ., at most %d long, that is not a tree's or memory's", machine, section, maxSection)
	}
	return w.begin(ctx, machine, section)
}

// Commit ends the file. One that was created is on the disk under its name when
// Commit returns, or not at all.
func (w *Writer) Commit() (*Info, error) {
	if err := w.ready(); err != nil {
		return nil, err
	}
	if w.info == nil {
		return nil, errors.New("commit the snapshot: it has no manifest")
	}
	if err := w.member(w.outline.sumsRecord(), w.outline.sums.Bytes()); err != nil {
		return nil, err
	}
	if _, err := w.out.Write(zeros[:endSize]); err != nil {
		return nil, w.fail(fmt.Errorf("write the snapshot: %w", err))
	}
	if w.file != nil {
		if err := w.file.commit(); err != nil {
			w.done = true // nothing is left to give up
			return nil, w.fail(fmt.Errorf("commit %s: %w", w.file.path, err))
		}
	}
	w.done = true
	w.codec.close()
	return w.outline.info(w.info), nil
}

func (o *outline) info(m *Manifest) *Info {
	sum := sha256.Sum256(o.sums.Bytes())
	return &Info{Manifest: m, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: o.size + endSize, Sections: o.sections}
}

// Abort gives the snapshot up: of one that was created nothing is left. After
// Commit it does nothing.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	if w.file != nil {
		return w.file.abort()
	}
	return nil
}
