package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// open opens a file and goes through its heads: it is whole, and its list of
// digests fits them. That the chunks fit their digests is still to be seen.
func open(path string) (*os.File, *Info, error) {
	// Not to wait for a writer if it is a fifo.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("want a regular file")
	}
	var info *Info
	if err == nil {
		info, err = survey(f, st.Size)
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return f, info, nil
}

// survey reads manifest, heads and list of digests of so many bytes.
func survey(f io.ReaderAt, size int64) (*Info, error) {
	at := int64(0)
	// Each record is one section of the file for a reader of its own.
	reader := func() *Reader { return &Reader{in: io.NewSectionReader(f, at, size-at)} }
	first, err := NewReader(reader().in)
	if err != nil {
		return nil, err
	}
	o := &first.outline
	for at = o.size; !o.ended; at = o.size {
		r := reader()
		rec, err := r.head()
		if err == nil && rec == nil {
			err = corrupt("it ends without %s", sumsName)
		}
		if err == nil {
			err = o.add(rec)
		}
		if err != nil {
			return nil, err
		}
		if !o.ended {
			continue
		}
		text, err := r.data(rec, nil)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(text, o.sums.Bytes()) {
			return nil, corrupt("%s does not fit what it lists", sumsName)
		}
		if rec, err = r.head(); err != nil {
			return nil, err
		} else if rec != nil {
			return nil, corrupt("%q after the end", rec.name)
		}
	}
	info := o.info(first.info)
	if info.Size != size {
		return nil, corrupt("it has %d bytes, of %d", size, info.Size)
	}
	return info, nil
}

// Inspect tells what is in a file, from the manifest, the heads of the chunks
// and the list of their digests, all of which have to fit; the chunks themselves
// are not read.
func Inspect(path string) (*Info, error) {
	f, info, err := open(path)
	if err != nil {
		return nil, err
	}
	return info, f.Close()
}

// Verify reads a file to its end and checks every digest.
func Verify(ctx context.Context, path string) (*Info, error) {
	r, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if _, err := r.Next(); err == io.EOF {
			return r.Info()
		} else if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
}
