package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Reader reads a snapshot from its beginning to its end. It is not for several
// goroutines at a time. After an error in what it reads, it goes no further.
type Reader struct {
	in      io.Reader
	file    *os.File // nil where the caller has given in
	outline outline
	info    *Manifest
	section *source // that Next gave
	at      Section // which one it is
	err     error
}

// Section is a part of a snapshot: one of a machine's.
type Section struct {
	Machine, Name string
}

// Open reads a file. One that is cut off, or whose list of digests does not
// fit what is in it, is refused here; a digest that does not fit its chunk, when
// the chunk is read.
func Open(path string) (*Reader, error) {
	f, _, err := open(path)
	if err != nil {
		return nil, err
	}
	r, err := NewReader(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	r.file = f
	return r, nil
}

// NewReader reads from something that need not seek. It takes no byte more than
// the snapshot has, and reads the manifest at once. Where in blocks, Next and the
// rest do: close in to end them.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: in}
	rec, err := r.head()
	if err == nil && rec == nil {
		err = corrupt("no manifest")
	}
	if err == nil {
		err = r.outline.add(rec)
	}
	if err != nil {
		return nil, other(err)
	}
	text, err := r.data(rec, nil)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(text) != rec.sum {
		return nil, corrupt("%s: its digest is another", rec.name)
	}
	if r.info, err = parseManifest(text); err != nil {
		return nil, err
	}
	r.outline.machines = r.info
	return r, nil
}

// Manifest is what the snapshot says of itself. Its digest was right.
func (r *Reader) Manifest() *Manifest { return r.info }

// head reads the next record's head; nil is a tar's end.
func (r *Reader) head() (*record, error) {
	var b [headSize]byte
	if err := r.full(b[:endSize]); err != nil {
		return nil, err
	}
	if bytes.Equal(b[:endSize], zeros[:endSize]) {
		return nil, nil
	}
	if err := r.full(b[endSize:]); err != nil {
		return nil, err
	}
	return parseHead(b[:])
}

func (r *Reader) full(b []byte) error {
	_, err := io.ReadFull(r.in, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return corrupt("it is cut off")
	}
	if err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	return nil
}

// data reads what belongs to a record, into room if there is enough. The size is
// only what the record says, so that memory is taken as the data come.
func (r *Reader) data(rec *record, room []byte) ([]byte, error) {
	total := rec.size + pad(rec.size)
	b := room[:0]
	for int64(len(b)) < total {
		n := int(min(total-int64(len(b)), maxStored))
		at := len(b)
		if cap(b)-at < n {
			grown := make([]byte, at, at+n)
			copy(grown, b)
			b = grown
		}
		b = b[:at+n]
		if err := r.full(b[at:]); err != nil {
			return nil, err
		}
	}
	if !bytes.Equal(b[rec.size:], zeros[:total-rec.size]) {
		return nil, corrupt("%s: something stands in the padding", rec.name)
	}
	return b[:rec.size], nil
}

// Next goes on to the next section; what is left of the last is checked and
// passed over. io.EOF tells that the snapshot is whole and was as it was written.
func (r *Reader) Next() (*Section, error) {
	s, err := r.next()
	if err != nil && r.err == nil {
		r.err = err
	}
	return s, r.err
}

func (r *Reader) next() (*Section, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.section != nil {
		if err := r.section.drain(); err != nil {
			return nil, err
		}
		r.section = nil
	}
	rec, err := r.head()
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, corrupt("it ends without %s", sumsName)
	}
	if err := r.outline.add(rec); err != nil {
		return nil, err
	}
	if r.outline.ended {
		return nil, r.end(rec)
	}
	s := r.outline.sections[len(r.outline.sections)-1]
	r.at = Section{s.Machine, s.Name}
	r.section = newSource(r, rec)
	return &Section{s.Machine, s.Name}, nil
}

// end reads the last record and the tar's end, and gives io.EOF.
func (r *Reader) end(rec *record) error {
	text, err := r.data(rec, nil)
	if err != nil {
		return err
	}
	if !bytes.Equal(text, r.outline.sums.Bytes()) {
		return corrupt("%s is not what was read", sumsName)
	}
	if rec, err = r.head(); err != nil {
		return err
	}
	if rec != nil {
		return corrupt("%q after the end", rec.name)
	}
	if r.file != nil {
		if n, err := r.file.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			return corrupt("something stands after the end")
		}
	}
	return io.EOF
}

// Info tells what was in the snapshot, once Next has given io.EOF.
func (r *Reader) Info() (*Info, error) {
	if r.err != io.EOF {
		return nil, errors.New("the snapshot was not read to its end")
	}
	return r.outline.info(r.info), nil
}

// Read reads the section as it was before it was compressed: of SectionUpper and
// images the tar, of others what was written. Nothing that it gives is unchecked.
func (r *Reader) Read(b []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.section == nil {
		return 0, errors.New("read the snapshot: Next comes first")
	}
	return r.section.Read(b)
}

// UnpackOptions are bounds beside the manifest's, and what is let through.
type UnpackOptions struct {
	MaxBytes int64 // contents of files; 0 is no bound beside the manifest's
	MaxFiles int64 // names; 0 is no bound beside the manifest's
	Devices  bool  // device nodes other than whiteouts are made; else they are ErrHostile
	// Xattr says under which name an extended attribute is set, "" for not at
	// all: an overlay's trusted.overlay.opaque is user.overlay.opaque in a user
	// namespace, and trusted.overlay.origin means nothing on another host. Nil
	// sets all as they were.
	Xattr func(name string) string
}

// UnpackUpper unpacks a SectionUpper, or a SectionTree, into an empty directory, which gets owner,
// mode, times and attributes as well. Where it fails the directory is empty again.
func (r *Reader) UnpackUpper(ctx context.Context, dir int, o UnpackOptions) error {
	return r.unpack(ctx, dir, o, false)
}

// UnpackImages unpacks a SectionMemory or SectionRound into an empty directory,
// with mode 0600 and the caller for an owner. Long runs of zeros become holes.
func (r *Reader) UnpackImages(ctx context.Context, dir int, o UnpackOptions) error {
	return r.unpack(ctx, dir, o, true)
}

func (r *Reader) unpack(ctx context.Context, dir int, o UnpackOptions, images bool) error {
	if r.err != nil {
		return r.err
	}
	if r.section == nil || r.section.begun {
		return errors.New("unpack the snapshot: Next comes first")
	}
	s := r.at
	if images && !isImages(s.Name) || !images && !isTree(s.Name) {
		return fmt.Errorf("unpack the snapshot: section %s is of another kind", s.Name)
	}
	if b := r.info.Machine(s.Machine).Bounds; b != nil {
		if images {
			o.MaxBytes = tighter(o.MaxBytes, b.MemoryBytes)
		} else {
			o.MaxBytes, o.MaxFiles = tighter(o.MaxBytes, b.UpperBytes), tighter(o.MaxFiles, b.UpperFiles)
		}
	}
	r.section.ctx = ctx
	u := &unpacking{ctx: ctx, in: r.section, options: o, images: images}
	if err := u.tree(dir); err != nil {
		r.section.close()
		r.err = fmt.Errorf("unpack %s of %s: %w", s.Name, s.Machine, err)
		return r.err
	}
	return nil
}

// UnpackFile unpacks a section of bytes into an empty file, where long runs of zeros
// become holes. It may have no more bytes than the manifest lets images have.
func (r *Reader) UnpackFile(ctx context.Context, fd int) error {
	if r.err != nil {
		return r.err
	}
	if r.section == nil || r.section.begun {
		return errors.New("unpack the snapshot: Next comes first")
	}
	most := int64(0)
	if b := r.info.Machine(r.at.Machine).Bounds; b != nil {
		most = b.MemoryBytes
	}
	r.section.ctx = ctx
	for size := int64(0); ; {
		b, err := r.section.take(chunkSize)
		if r.section.err == io.EOF {
			return unix.Ftruncate(fd, size)
		}
		if err == nil && most != 0 && int64(len(b)) > most-size {
			err = hostile("%s: more than the %d bytes that it may have", r.at.Name, most)
		}
		if err == nil {
			_, err = writeRuns(fd, b, size)
		}
		if err != nil {
			r.section.close()
			r.err = fmt.Errorf("unpack %s of %s: %w", r.at.Name, r.at.Machine, err)
			return r.err
		}
		size += int64(len(b))
	}
}

// tighter is the smaller of two bounds, of which 0 is none.
func tighter(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// Close lets go of the file that Open opened, and stops reading ahead.
func (r *Reader) Close() error {
	if r.section != nil {
		r.section.close()
	}
	if r.err == nil {
		r.err = errors.New("read the snapshot: it was closed")
	}
	if r.file != nil {
		return r.file.Close()
	}
	return nil
}
