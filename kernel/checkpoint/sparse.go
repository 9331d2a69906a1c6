package checkpoint

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// findSpans lists the parts of a file that are no holes; lseek(2).
func findSpans(fd int, size int64) ([]span, error) {
	var spans []span
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO { // holes to the end
			break
		}
		if err != nil {
			return nil, err
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		if data >= size || hole <= data {
			break
		}
		hole = min(hole, size)
		if len(spans) == maxSpans {
			spans[maxSpans-1].size = size - spans[maxSpans-1].off
			break
		}
		spans = append(spans, span{data, hole - data})
		at = hole
	}
	return spans, nil
}

// appendSpans writes the table of GNU's sparse format 1.0: how many, then offset
// and length of each, a line per number, in whole blocks. It ends with an empty
// span at the file's size where that is a hole, as GNU tar's does.
func appendSpans(b []byte, spans []span, size int64) []byte {
	n := len(spans)
	open := n == 0 || spans[n-1].off+spans[n-1].size < size
	if open {
		n++
	}
	b = append(strconv.AppendInt(b, int64(n), 10), '\n')
	line := func(s span) {
		b = append(strconv.AppendInt(b, s.off, 10), '\n')
		b = append(strconv.AppendInt(b, s.size, 10), '\n')
	}
	for _, s := range spans {
		line(s)
	}
	if open {
		line(span{size, 0})
	}
	return append(b, zeros[:pad(int64(len(b)))]...)
}

// spanReader reads such a table by blocks, and sums it up.
type spanReader struct {
	next  func([]byte) error // a block more of the table
	block [blockSize]byte
	left  []byte
	read  int64
}

// number reads a line.
func (r *spanReader) number() (int64, error) {
	var line []byte
	for {
		if len(r.left) == 0 {
			if err := r.next(r.block[:]); err != nil {
				return 0, err
			}
			r.left = r.block[:]
			r.read += blockSize
		}
		c := r.left[0]
		r.left = r.left[1:]
		if c == '\n' {
			break
		}
		if line = append(line, c); len(line) > 19 {
			return 0, hostile("a table of holes with %q in it", line)
		}
	}
	n, err := strconv.ParseUint(string(line), 10, 62)
	if err != nil {
		return 0, hostile("a table of holes with %q in it", line)
	}
	return int64(n), nil
}

// spans reads the table of a file that has so many bytes, of which so many are
// stored, the table included. It tells how many bytes the table takes.
func (r *spanReader) spans(size, stored int64) ([]span, int64, error) {
	count, err := r.number()
	if err != nil {
		return nil, 0, err
	}
	if count > maxSpans+1 || count > stored {
		return nil, 0, hostile("a table of %d holes", count)
	}
	var spans []span
	var end, sum int64
	for range count {
		off, err := r.number()
		if err != nil {
			return nil, 0, err
		}
		n, err := r.number()
		if err != nil {
			return nil, 0, err
		}
		if off < end || off > size || n > size-off {
			return nil, 0, hostile("data at %d, %d bytes: behind %d, in a file of %d", off, n, end, size)
		}
		end = off + n
		sum += n
		if n > 0 {
			spans = append(spans, span{off, n})
		}
	}
	if r.read+sum != stored {
		return nil, 0, hostile("%d bytes of data in a member of %d", sum, stored)
	}
	return spans, r.read, nil
}
