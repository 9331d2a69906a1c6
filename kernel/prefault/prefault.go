// Package prefault maps the pages that msh is about to touch, all at once, as the
// first thing in the program.
//
// A page that is used for the first time costs an exception: half a microsecond on
// bare metal, ten and more where a hypervisor keeps the page tables. A start of msh
// that makes a machine took some 590 of them, nearly all for its heap and for its
// text, of which the packages' init functions touch every part; madvise(2) maps the
// same pages for a tenth of that, in three calls.
//
// It has no functions: to be linked is all it does. Go initializes packages in the
// order of their paths as soon as their imports are (go.dev/ref/spec#Package_initialization);
// as this one imports next to nothing, that is before nearly all others.
package prefault

import (
	"syscall"
	"unsafe"
)

// heapSize is what is mapped of the heap: a little less than a small script and
// the packages' own tables fill.
const heapSize = 768 << 10

// Of madvise(2), since Linux 5.14; older ones answer EINVAL, and nothing is lost.
const (
	populateRead  = 22
	populateWrite = 23
)

// Of getauxval(3).
const (
	atPhdr  = 3
	atPhent = 4
	atPhnum = 5
	atPage  = 6
)

// A segment is the part of Elf64_Phdr that is looked at here, see elf(5).
type segment struct {
	kind, flags      uint32
	_, address, _, _ uint64
	size             uint64
}

const (
	segmentLoad     = 1
	segmentHeaders  = 6
	segmentWritable = 2
)

// The vector that the kernel put on the stack, which golang.org/x/sys/unix reads in
// the same way. That package is not imported, since it would come too late.
//
//go:linkname getAuxv runtime.getAuxv
func getAuxv() []uintptr

// first is somewhere in the heap, which grows upwards from there.
var first = new([64]byte)

var _ = prefault()

func prefault() bool {
	var aux [atPage + 1]uintptr
	for v := getAuxv(); len(v) >= 2; v = v[2:] {
		if v[0] < uintptr(len(aux)) {
			aux[v[0]] = v[1]
		}
	}
	page := aux[atPage]
	if page == 0 || unsafe.Sizeof(page) != 8 {
		return false
	}
	// Behind the end of what is mapped the call ends early, with an error.
	populate(uintptr(unsafe.Pointer(first)), heapSize, page, populateWrite)

	var base uintptr // of a position-independent executable
	for i := range aux[atPhnum] {
		s := (*segment)(unsafe.Add(pointer(aux[atPhdr]), i*aux[atPhent]))
		switch {
		case s.kind == segmentHeaders:
			base = aux[atPhdr] - uintptr(s.address)
		case s.kind == segmentLoad && s.flags&segmentWritable == 0:
			populate(base+uintptr(s.address), uintptr(s.size), page, populateRead)
		}
	}
	return true
}

func populate(from, size, page, how uintptr) {
	start := from &^ (page - 1)
	syscall.RawSyscall(syscall.SYS_MADVISE, start, from+size-start, how)
}

// pointer makes one of an address that is in no Go memory.
func pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
