package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// DropAsking takes seccomp filters that ask a listener (SECCOMP_RET_USER_NOTIF) out of
// the images of a dump, which lie in a directory. criu saves the filters and not who
// listens, so that nobody would answer. The restored tree has the filters of criu's own
// thread: whoever starts criu under one that asks has the tree ask again.
func DropAsking(images *os.File) error {
	dir := reach(images)
	var filters []filter
	err := rewrite(filepath.Join(dir, "seccomp.img"), func(all []field) ([]field, error) {
		for _, f := range all {
			at, err := message(f.bytes)
			if err != nil {
				return nil, err
			}
			filters = append(filters, filterOf(at))
		}
		return eachIn(all, filterOfEntry, func(at []field) ([]field, error) { return relink(filters, at, filterNext) })
	})
	if err != nil || len(filters) == 0 {
		return err
	}
	cores, err := filepath.Glob(dir + "/core-*.img")
	if err != nil {
		return err
	}
	for _, path := range cores {
		err := rewrite(path, func(all []field) ([]field, error) {
			return eachIn(all, coreThread, func(at []field) ([]field, error) {
				at, err := relink(filters, at, threadFilter)
				if err == nil && !slices.ContainsFunc(at, func(f field) bool { return f.number == threadFilter }) {
					at = slices.DeleteFunc(at, func(f field) bool { return f.number == threadMode })
				}
				return at, err
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Numbers of fields, of criu's seccomp.proto and criu-core.proto.
const (
	filterOfEntry = 1  // seccomp_entry.seccomp_filters
	filterCode    = 1  // seccomp_filter.filter
	filterNext    = 2  // seccomp_filter.prev: the one that is installed after it
	coreThread    = 5  // core_entry.thread_core
	threadMode    = 11 // thread_core_entry.seccomp_mode
	threadFilter  = 12 // thread_core_entry.seccomp_filter: the first that is installed
)

// filter is one of an image.
type filter struct {
	asks bool
	next int // -1 for none
}

func filterOf(all []field) filter {
	one := filter{next: -1}
	for _, f := range all {
		switch f.number {
		case filterCode:
			one.asks = asks(f.bytes)
		case filterNext:
			one.next = int(f.value)
		}
	}
	return one
}

// asks tells whether a filter, in BPF's instructions, can ask a listener.
func asks(code []byte) bool {
	const size, ret = 8, 0x06 // struct sock_filter; BPF_RET | BPF_K
	for ; len(code) >= size; code = code[size:] {
		if binary.NativeEndian.Uint16(code) == ret && binary.NativeEndian.Uint32(code[4:])&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_USER_NOTIF {
			return true
		}
	}
	return false
}

// relink has the field that names a filter name the next one that does not ask; it is
// left out where there is none.
func relink(filters []filter, all []field, number uint64) ([]field, error) {
	i := slices.IndexFunc(all, func(f field) bool { return f.number == number })
	if i < 0 {
		return all, nil
	}
	at := int(all[i].value)
	for range filters {
		if at >= 0 && at < len(filters) && filters[at].asks {
			at = filters[at].next
		}
	}
	switch {
	case at == -1:
		return slices.Delete(all, i, i+1), nil
	case at < 0 || at >= len(filters) || filters[at].asks:
		return nil, fmt.Errorf("filter %d of %d: %w", at, len(filters), errImage)
	}
	all[i].whole = binary.AppendUvarint(binary.AppendUvarint(nil, number<<3), uint64(at))
	return all, nil
}

// errImage says that an image is not as criu writes it.
var errImage = errors.New("not an image of criu's")

// rewrite changes the one message of an image. One without is left alone, as is one that
// is not there.
func rewrite(path string, change func([]field) ([]field, error)) error {
	image, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || len(image) == imageHead {
		return nil
	}
	if err != nil {
		return err
	}
	explain := func(err error) error { return fmt.Errorf("%s: %w", filepath.Base(path), err) }
	if len(image) < imageHead {
		return explain(errImage)
	}
	entry, rest, ok := nextEntry(image[imageHead:])
	if !ok || len(rest) > 0 {
		return explain(errImage)
	}
	all, err := message(entry)
	if err == nil {
		all, err = change(all)
	}
	if err != nil {
		return explain(err)
	}
	text := whole(all)
	return os.WriteFile(path, append(binary.LittleEndian.AppendUint32(image[:imageHead:imageHead], uint32(len(text))), text...), 0o600)
}

// eachIn changes those fields of a message that have that number and are messages.
func eachIn(all []field, number uint64, change func([]field) ([]field, error)) ([]field, error) {
	for i, f := range all {
		if f.number != number {
			continue
		}
		at, err := message(f.bytes)
		if err == nil {
			at, err = change(at)
		}
		if err != nil {
			return nil, err
		}
		text := whole(at)
		all[i].whole = append(binary.AppendUvarint(binary.AppendUvarint(nil, number<<3|2), uint64(len(text))), text...)
	}
	return all, nil
}

// message cuts a message into its fields.
func message(b []byte) (all []field, err error) {
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return nil, errImage
		}
		all, b = append(all, f), rest
	}
	return all, nil
}

// whole puts it together again.
func whole(all []field) (b []byte) {
	for _, f := range all {
		b = append(b, f.whole...)
	}
	return b
}
