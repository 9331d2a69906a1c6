package checkpoint

import (
	"bytes"
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// file makes a regular file and its contents.
func (u *unpacking) file(dir int, name string, e *entry, stored int64) error {
	spans := []span{{0, e.size}}
	if e.sparse {
		t := &spanReader{next: u.in.full}
		var table int64
		var err error
		if spans, table, err = t.spans(e.size, stored); err != nil {
			return fmt.Errorf("%q: %w", short(e.path), err)
		}
		u.bytes -= table
	}
	if max := u.options.MaxBytes; max != 0 && stored > max-u.bytes {
		return hostile("%q: more than the %d bytes that it may have", short(e.path), max)
	}
	u.bytes += stored
	fd, err := openBelow(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return made("create", e, err)
	}
	defer unix.Close(fd)
	var end int64 // of what was written
	for _, s := range spans {
		if end, err = u.contents(fd, e, s, end); err != nil {
			return err
		}
	}
	if end < e.size {
		if err := unix.Ftruncate(fd, e.size); err != nil {
			return failAt("write", e.path, err)
		}
	}
	for n := pad(stored); n > 0; {
		p, err := u.in.take(n)
		if err != nil {
			return err
		}
		if !bytes.Equal(p, zeros[:len(p)]) {
			return hostile("%q: something stands in the padding", short(e.path))
		}
		n -= int64(len(p))
	}
	if u.images {
		return nil
	}
	return u.describe(fd, true, e)
}

// contents writes a part of a file, and tells where what was written ends.
func (u *unpacking) contents(fd int, e *entry, s span, end int64) (int64, error) {
	for s.size > 0 {
		if err := u.ctx.Err(); err != nil {
			return 0, context.Cause(u.ctx)
		}
		b, err := u.in.take(s.size)
		if err != nil {
			return 0, err
		}
		s.size -= int64(len(b))
		if !u.images {
			if err := writeAt(fd, b, s.off); err != nil {
				return 0, failAt("write", e.path, err)
			}
			s.off += int64(len(b))
			end = s.off
			continue
		}
		to, err := writeRuns(fd, b, s.off)
		if err != nil {
			return 0, failAt("write", e.path, err)
		}
		s.off, end = s.off+int64(len(b)), max(end, to)
	}
	return end, nil
}

// writeRuns writes b without the zeros in it, and tells where what was written ends.
func writeRuns(fd int, b []byte, off int64) (end int64, err error) {
	for len(b) > 0 {
		skip, n := nextRun(b)
		if n > 0 {
			if err := writeAt(fd, b[skip:skip+n], off+int64(skip)); err != nil {
				return 0, err
			}
			end = off + int64(skip+n)
		}
		b, off = b[skip+n:], off+int64(skip+n)
	}
	return end, nil
}

// nextRun tells how many bytes of b are zeros, and how many then are not, by
// steps that are large enough to save more than a system call costs.
func nextRun(b []byte) (skip, n int) {
	const step = 64 << 10
	isZero := func(at int) bool {
		part := b[at:min(at+step, len(b))]
		return bytes.Equal(part, zeros[:len(part)])
	}
	for skip < len(b) && isZero(skip) {
		skip = min(skip+step, len(b))
	}
	for skip+n < len(b) && !isZero(skip+n) {
		n = min(n+step, len(b)-skip)
	}
	return skip, n
}

func writeAt(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
		off += int64(n)
	}
	return nil
}
