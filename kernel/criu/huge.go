package criu

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A restore reads memory into pages that are used for the first time, one after the
// other. Of a huge page (transhuge.rst) that is one exception in the place of 512, and
// where a hypervisor keeps the page tables both the restore and the program that reads
// its memory afterwards are the faster by far: 64 MiB are there in 12 ms, not in 110.
//
// criu has no way to ask for them where the host gives them on demand only (madvise), as
// it has no advice applied before memory is read. So it is stopped there, at its first
// read of a file of pages, by a permission event of fanotify(7): what is to be filled is
// mapped then, and empty. The process that asks, whichever it is, is given huge pages by
// MADV_COLLAPSE, and goes on.
//
// None of this changes what is in memory, at whatever time it happens, and the kernel
// lets those who wait go on when the group's descriptor is closed. Where anything of it
// fails the pages are small ones.

// imaged is what is known of a process's memory from its images.
type imaged struct {
	file    string // its image
	mm      []byte // that
	pages   string // the name of the file its pages are in
	runs    []pageRun
	private []pageRun // its private mappings
	large   []large   // nil where it is to have no huge pages
	huge    uint64    // their size
}

// large is a mapping in which there are huge pages that are filled entirely.
type large struct {
	pageRun
	whole []pageRun // those
	rest  []pageRun // what else is read of it
}

// readMemories reads the images of all processes that have memory of their own.
func readMemories(images *os.File) (all []*imaged, err error) {
	dir := reach(images)
	paths, err := filepath.Glob(dir + "/mm-*.img")
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		mm, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		pagemap, err := os.ReadFile(filepath.Join(dir, "pagemap-"+strings.TrimPrefix(filepath.Base(path), "mm-")))
		if err != nil {
			continue // one whose memory is another's
		}
		m := &imaged{file: path, mm: mm}
		m.pages, m.runs = readPagemap(pagemap)
		all = append(all, m)
	}
	size := hugePage()
	if size == 0 || unix.Faccessat(int(images.Fd()), "parent", unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return all, nil
	}
	for i, m := range all {
		m.findLarge(size)
		for _, o := range all[:i] {
			if m.kin(o) {
				m.large, o.large = nil, nil
			}
		}
	}
	return all, nil
}

// kin tells whether two have a private mapping at the same place: one may have been
// forked by the other, and criu compares their pages, by one read for each.
func (m *imaged) kin(o *imaged) bool {
	return slices.ContainsFunc(m.private, func(p pageRun) bool { return slices.Contains(o.private, p) })
}

// findLarge finds the mappings that huge pages of that size are for.
func (m *imaged) findLarge(size uint64) {
	var found []large
	entry, ok := soleEntry(m.mm)
	for ok && len(entry) > 0 {
		var f field
		f, entry, ok = nextField(entry)
		switch {
		case !ok || f.number == mmNoHuge && f.value != 0:
			return
		case f.number != mmMappings:
			continue
		}
		var vma map[uint64]uint64
		if vma, ok = numbers(f.bytes); !ok {
			return
		}
		at := pageRun{vma[vmaStart], vma[vmaEnd]}
		if vma[vmaFlags]&unix.MAP_PRIVATE != 0 && vma[vmaStatus]&vmaRegular != 0 {
			m.private = append(m.private, at)
		}
		if !ownMemory(vma) || vma[vmaProt]&unix.PROT_WRITE == 0 || vma[vmaAdvice]&(1<<unix.MADV_NOHUGEPAGE) != 0 {
			continue
		}
		l := large{pageRun: at}
		for _, r := range m.runs {
			if r = r.within(at); r.empty() {
				continue
			}
			whole := pageRun{(r.start + size - 1) / size * size, r.end / size * size}
			if whole.empty() {
				l.rest = append(l.rest, r)
				continue
			}
			l.whole = append(l.whole, whole)
			l.rest = append(l.rest, pageRun{r.start, whole.start}, pageRun{whole.end, r.end})
		}
		if len(l.whole) > 0 {
			found = append(found, l)
		}
	}
	m.large, m.huge = found, size
}

// hugePage is the size of a huge page; 0 where there is none, or none shall be used, or
// nobody can be stopped to be given one.
func hugePage() uint64 {
	const dir = "/sys/kernel/mm/transparent_hugepage/"
	enabled, err := os.ReadFile(dir + "enabled")
	if err != nil || strings.Contains(string(enabled), "[never]") || !canWatch() {
		return 0
	}
	text, _ := os.ReadFile(dir + "hpage_pmd_size")
	size, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return size
}

// canWatch: CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and the privilege.
var canWatch = sync.OnceValue(func() bool {
	fd, err := watchGroup()
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
})

func watchGroup() (int, error) {
	return unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
}

// enlarger gives the processes of a restore their huge pages.
type enlarger struct {
	group *os.File
	dir   *os.File           // of the images
	by    map[uint64]*imaged // by the inode of the file with the pages
	ended chan struct{}
}

// enlarge watches the files of pages until the enlarger is closed; it is nil where there
// is nothing to watch.
func enlarge(images *os.File) *enlarger {
	all, err := readMemories(images)
	all = slices.DeleteFunc(all, func(m *imaged) bool { return m.large == nil })
	if err != nil || len(all) == 0 {
		return nil
	}
	fd, err := watchGroup()
	if err != nil {
		return nil
	}
	e := &enlarger{group: os.NewFile(uintptr(fd), "fanotify"), dir: images, by: map[uint64]*imaged{}, ended: make(chan struct{})}
	for _, m := range all {
		var st unix.Stat_t
		if unix.Fstatat(int(images.Fd()), m.pages, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && m.size() <= uint64(st.Size) && e.mark(unix.FAN_MARK_ADD, m) == nil {
			e.by[st.Ino] = m
		}
	}
	go e.run()
	return e
}

// size is how much there is to be read.
func (m *imaged) size() (n uint64) {
	for _, r := range m.runs {
		n += r.end - r.start
	}
	return n
}

func (e *enlarger) mark(what uint, m *imaged) (err error) {
	raw, err := e.group.SyscallConn() // whose Fd would have reads block
	if err != nil {
		return err
	}
	e2 := raw.Control(func(fd uintptr) {
		err = unix.FanotifyMark(int(fd), what|unix.FAN_MARK_DONT_FOLLOW, unix.FAN_ACCESS_PERM, int(e.dir.Fd()), m.pages)
	})
	return errors.Join(err, e2)
}

// close has those who wait go on.
func (e *enlarger) close() {
	if e != nil {
		e.group.Close()
		<-e.ended
	}
}

// run answers the events, one by one.
func (e *enlarger) run() {
	defer close(e.ended)
	runtime.LockOSThread() // its time is measured
	defer runtime.UnlockOSThread()
	var event unix.FanotifyEventMetadata
	b := make([]byte, binary.Size(event))
	for {
		if _, err := e.group.Read(b); err != nil {
			return
		}
		if _, err := binary.Decode(b, binary.NativeEndian, &event); err != nil || event.Fd < 0 {
			continue
		}
		e.asked(&event)
		binary.Write(e.group, binary.NativeEndian, unix.FanotifyResponse{Fd: event.Fd, Response: unix.FAN_ALLOW})
		unix.Close(int(event.Fd))
	}
}

// asked is called while a process waits to read pages. It gets huge ones, where it has
// mapped already what they are for.
func (e *enlarger) asked(event *unix.FanotifyEventMetadata) {
	var st unix.Stat_t
	if unix.Fstat(int(event.Fd), &st) != nil {
		return
	}
	pid, m := int(event.Pid), e.by[st.Ino]
	if m == nil || slices.ContainsFunc(m.large, func(l large) bool { return !l.mapped(pid) }) {
		return
	}
	delete(e.by, st.Ino)
	e.mark(unix.FAN_MARK_REMOVE, m) // it need not wait again
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	for _, l := range m.large {
		l.enlarge(pid, pidfd, m.huge)
	}
}

// mapped tells whether there is memory at both ends of it.
func (l *large) mapped(pid int) bool {
	one, two := make([]byte, 1), []unix.RemoteIovec{{Base: uintptr(l.start), Len: 1}, {Base: uintptr(l.end - 1), Len: 1}}
	for i := range two {
		if n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &one[0], Len: 1}}, two[i:i+1], 0); n != 1 || err != nil {
			return false
		}
	}
	return true
}

// Huge pages are made a few at a time, and no more of them where one takes so much of a
// processor: to clear it takes a fifth of that. A hypervisor that gives a host its memory
// when that is first used may take five milliseconds, more than for as many small pages
// that were used before.
const (
	fewHuge   = 4
	hugeTakes = time.Millisecond
)

// enlarge has huge pages, of that size, wherever they will be filled. What is around them
// is mapped as well, which takes a third of the time here.
func (l *large) enlarge(pid, pidfd int, size uint64) {
	small, slow := uint64(os.Getpagesize()), false
	for _, r := range l.whole {
		for !slow && !r.empty() {
			few := r.within(pageRun{r.start, r.start + fewHuge*size})
			begin := ranFor()
			touch(pid, few, size) // where nothing is mapped there is nothing to be collapsed
			if !collapse(pidfd, few) {
				break // there are none left, or this kernel cannot do it
			}
			slow = ranFor()-begin > time.Duration((few.end-few.start)/size)*hugeTakes
			r.start = few.end
		}
		touch(pid, r, small)
	}
	for _, r := range l.rest {
		touch(pid, r, small)
	}
}

// ranFor is the time of a processor that the calling thread has used.
func ranFor() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// collapse makes huge pages of what is mapped.
func collapse(pidfd int, r pageRun) bool {
	at := []unix.RemoteIovec{{Base: uintptr(r.start), Len: int(r.end - r.start)}}
	n, _, err := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&at[0])), 1, unix.MADV_COLLAPSE, 0, 0)
	return err == 0 && uint64(n) == r.end-r.start
}

// touch has one page at each step of the memory mapped, by writing what is in it.
func touch(pid int, r pageRun, step uint64) {
	const most = 1024 // IOV_MAX, readv(2)
	b := make([]byte, most)
	for r.start < r.end {
		var at []unix.RemoteIovec
		for ; r.start < r.end && len(at) < most; r.start += step {
			at = append(at, unix.RemoteIovec{Base: uintptr(r.start), Len: 1})
		}
		local := []unix.Iovec{{Base: &b[0], Len: uint64(len(at))}}
		if n, err := unix.ProcessVMReadv(pid, local, at, 0); err != nil || n != len(at) {
			return
		}
		if n, err := unix.ProcessVMWritev(pid, local, at, 0); err != nil || n != len(at) {
			return
		}
	}
}
