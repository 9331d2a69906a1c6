package criu

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"

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
	dir := reach(images)
	all, err := filepath.Glob(dir + "/mm-*.img")
	if err != nil {
		return err
	}
	for _, path := range all {
		mm, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pages, err := os.ReadFile(filepath.Join(dir, "pagemap-"+strings.TrimPrefix(filepath.Base(path), "mm-")))
		if err != nil {
			continue // one whose memory is another's
		}
		if changed := populate(mm, readPagemap(pages)); changed != nil {
			if err := os.WriteFile(path, changed, 0o600); err != nil {
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

// pageRun are pages that there are contents for.
type pageRun struct{ start, end uint64 }

// readPagemap reads a pagemap-*.img (criu's pagemap.proto); nil where it is another
// thing.
func readPagemap(b []byte) (runs []pageRun) {
	if len(b) < imageHead {
		return nil
	}
	_, b, ok := nextEntry(b[imageHead:]) // the number of the file with the pages
	for ok && len(b) > 0 {
		var entry []byte
		if entry, b, ok = nextEntry(b); !ok {
			return nil
		}
		f, ok := numbers(entry)
		if !ok {
			return nil
		}
		const address, pagesUntil42, pages = 1, 2, 5 // numbers of fields
		n := f[pages]
		if n == 0 {
			n = f[pagesUntil42]
		}
		runs = append(runs, pageRun{f[address], f[address] + n*uint64(os.Getpagesize())})
	}
	return runs
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

// populate changes a mm-*.img (mm.proto, vma.proto): nil where nothing is changed.
func populate(image []byte, runs []pageRun) []byte {
	if len(image) < imageHead {
		return nil
	}
	entry, rest, ok := nextEntry(image[imageHead:])
	if !ok || len(rest) > 0 {
		return nil
	}
	const mappings = 14 // number of a field
	var out []byte
	changed := false
	for len(entry) > 0 {
		var f field
		if f, entry, ok = nextField(entry); !ok {
			return nil
		}
		flags, ok := uint64(0), false
		if f.number == mappings {
			flags, ok = populated(f.bytes, runs)
		}
		if !ok {
			out = append(out, f.whole...)
			continue
		}
		// Of a field that is there twice the last one counts.
		again := binary.AppendUvarint([]byte{vmaFlags << 3}, flags)
		out = binary.AppendUvarint(append(out, mappings<<3|2), uint64(len(f.bytes)+len(again)))
		out = append(append(out, f.bytes...), again...)
		changed = true
	}
	if !changed {
		return nil
	}
	head := binary.LittleEndian.AppendUint32(image[:imageHead:imageHead], uint32(len(out)))
	return append(head, out...)
}

// Numbers of vma.proto's fields.
const (
	vmaStart  = 1
	vmaEnd    = 2
	vmaFlags  = 6
	vmaStatus = 7
)

// Of a mapping's status, criu's include/vma.h.
const (
	vmaRegular   = 1 << 0
	vmaHeap      = 1 << 5
	vmaAnonymous = 1 << 9
)

// populated are the flags of a mapping that is to be populated.
func populated(vma []byte, runs []pageRun) (flags uint64, ok bool) {
	f, ok := numbers(vma)
	if !ok || f[vmaFlags]&^unix.MAP_NORESERVE != unix.MAP_PRIVATE|unix.MAP_ANONYMOUS || f[vmaStatus]&^vmaHeap != vmaRegular|vmaAnonymous {
		return 0, false
	}
	start, end := f[vmaStart], f[vmaEnd]
	var used uint64
	for _, r := range runs {
		if from, to := max(r.start, start), min(r.end, end); from < to {
			used += to - from
		}
	}
	return f[vmaFlags] | unix.MAP_POPULATE, end > start && used >= (end-start)/8*7
}
