package criu

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Populate has a restore map the memory of the images' processes all at once, where
// it would be filled page by page: a page that is used for the first time costs an
// exception, of half a microsecond on bare metal, of fifteen and more where a
// hypervisor keeps the page tables. Read into memory that is mapped already, 256 MiB
// are there in a tenth of the time.
//
// criu maps with the flags that are in the images, and so MAP_POPULATE is put among
// them: for private anonymous mappings nearly all of whose pages were used, so that the
// restored process has hardly more memory than it had. The kernel does not keep that
// flag. What is not such as criu writes it stays as it is, for criu to complain of.
func Populate(images *os.File) error {
	all, err := readMemories(images)
	if err != nil {
		return err
	}
	for _, m := range all {
		if changed := m.populate(); changed != nil {
			if err := os.WriteFile(m.file, changed, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// imageHead are the two magic numbers of an image.
const imageHead = 8

// nextEntry cuts an entry off an image: its size, and so many bytes.
func nextEntry(b []byte) (entry, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n > int64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}

// soleEntry is that of an image with one.
func soleEntry(image []byte) (entry []byte, ok bool) {
	if len(image) < imageHead {
		return nil, false
	}
	entry, rest, ok := nextEntry(image[imageHead:])
	return entry, ok && len(rest) == 0
}

// pageRun are pages that there are contents for.
type pageRun struct{ start, end uint64 }

func (r pageRun) empty() bool { return r.start >= r.end }

// within is what of them is in o.
func (r pageRun) within(o pageRun) pageRun { return pageRun{max(r.start, o.start), min(r.end, o.end)} }

// readPagemap reads a pagemap-*.img (criu's pagemap.proto): the name of the file with the
// pages, and which those are; none where it is another thing.
func readPagemap(b []byte) (file string, runs []pageRun) {
	if len(b) < imageHead {
		return "", nil
	}
	head, b, ok := nextEntry(b[imageHead:])
	if n, ok := numbers(head); ok {
		file = fmt.Sprintf("pages-%d.img", n[1])
	}
	for ok && len(b) > 0 {
		var entry []byte
		if entry, b, ok = nextEntry(b); !ok {
			return "", nil
		}
		f, ok := numbers(entry)
		if !ok {
			return "", nil
		}
		const address, pagesUntil42, pages = 1, 2, 5 // numbers of fields
		n := f[pages]
		if n == 0 {
			n = f[pagesUntil42]
		}
		r := pageRun{f[address], f[address] + n*uint64(os.Getpagesize())}
		if last := len(runs) - 1; last >= 0 && runs[last].end == r.start {
			runs[last].end = r.end // criu writes no more than a pipe holds
			continue
		}
		runs = append(runs, r)
	}
	return file, runs
}

// field is one of a message.
type field struct {
	number uint64
	value  uint64 // of a varint
	bytes  []byte // of what has a length
	whole  []byte // as it stands in the message
}

// nextField cuts a field off a message (protobuf.dev/programming-guides/encoding).
func nextField(b []byte) (f field, rest []byte, ok bool) {
	tag, n := binary.Uvarint(b)
	if n <= 0 {
		return f, nil, false
	}
	f.number = tag >> 3
	switch tag & 7 {
	case 0:
		var m int
		if f.value, m = binary.Uvarint(b[n:]); m <= 0 {
			return f, nil, false
		}
		n += m
	case 2:
		size, m := binary.Uvarint(b[n:])
		if n += m; m <= 0 || size > uint64(len(b)-n) {
			return f, nil, false
		}
		f.bytes = b[n : n+int(size)]
		n += int(size)
	default:
		return f, nil, false // of a fixed size: criu has none in these messages
	}
	f.whole = b[:n]
	return f, b[n:], true
}

// numbers are the numbers of a message, by their fields.
func numbers(b []byte) (map[uint64]uint64, bool) {
	all := map[uint64]uint64{}
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return nil, false
		}
		all[f.number], b = f.value, rest
	}
	return all, true
}

// populate is the image as it is to be; nil where it stays.
func (m *imaged) populate() []byte {
	entry, ok := soleEntry(m.mm)
	if !ok {
		return nil
	}
	var out []byte
	changed := false
	for len(entry) > 0 {
		var f field
		if f, entry, ok = nextField(entry); !ok {
			return nil
		}
		flags, ok := uint64(0), false
		if f.number == mmMappings {
			flags, ok = m.populated(f.bytes)
		}
		if !ok {
			out = append(out, f.whole...)
			continue
		}
		// Of a field that is there twice the last one counts.
		again := binary.AppendUvarint([]byte{vmaFlags << 3}, flags)
		out = binary.AppendUvarint(append(out, mmMappings<<3|2), uint64(len(f.bytes)+len(again)))
		out = append(append(out, f.bytes...), again...)
		changed = true
	}
	if !changed {
		return nil
	}
	head := binary.LittleEndian.AppendUint32(m.mm[:imageHead:imageHead], uint32(len(out)))
	return append(head, out...)
}

// Numbers of mm.proto's fields, and of vma.proto's.
const (
	mmMappings = 14
	mmNoHuge   = 17
)
const (
	vmaStart  = 1
	vmaEnd    = 2
	vmaProt   = 5
	vmaFlags  = 6
	vmaStatus = 7
	vmaAdvice = 9 // one bit for each, madvise(2)
)

// Of a mapping's status, criu's include/vma.h.
const (
	vmaRegular   = 1 << 0
	vmaHeap      = 1 << 5
	vmaAnonymous = 1 << 9
)

// ownMemory tells whether a mapping is of memory, and private, and nothing else is to be
// known of it.
func ownMemory(vma map[uint64]uint64) bool {
	return vma[vmaFlags]&^unix.MAP_NORESERVE == unix.MAP_PRIVATE|unix.MAP_ANONYMOUS && vma[vmaStatus]&^vmaHeap == vmaRegular|vmaAnonymous
}

// populated are the flags of a mapping that is to be populated. One with huge pages is
// not: its pages come to it otherwise.
func (m *imaged) populated(vma []byte) (flags uint64, ok bool) {
	f, ok := numbers(vma)
	if !ok || !ownMemory(f) {
		return 0, false
	}
	at := pageRun{f[vmaStart], f[vmaEnd]}
	if at.empty() || slices.ContainsFunc(m.large, func(l large) bool { return l.start == at.start }) {
		return 0, false
	}
	var used uint64
	for _, r := range m.runs {
		if r = r.within(at); !r.empty() {
			used += r.end - r.start
		}
	}
	return f[vmaFlags] | unix.MAP_POPULATE, used >= (at.end-at.start)/8*7
}
