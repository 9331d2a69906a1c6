package kernel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
	"msh/kernel/seccomp"
)

// Who answers uname(2). A process on its way into a machine installs a filter that
// has its uname calls, and those of all it starts, wait for somebody to answer
// (seccomp_unotify(2)), and hands the listener, the end to answer at, over:
//
//	the process                    who answers
//	───────────                    ───────────
//	seccomp: listener              listens on LAB/MACHINE/uname.sock
//	sendmsg(listener) ───────────> keeps it
//	exec …
//	uname(buf)      ──────────────> writes to buf, through /proc/PID/mem
//	0               <────────────── done
//
// While a script runs it is the script's msh that answers, and for a machine that
// is kept a supervisor of the machine's own, which its ledger ends. When whoever
// answers dies, the kernel says ENOSYS to those that wait and to all that ask:
// nobody hangs. What comes into a kept machine after that starts another.

// unameSocket is where listeners are taken, in the machine's directory.
const unameSocket = "uname.sock"

// unameFilter has every call of uname's wait for an answer.
var unameFilter = sync.OnceValues(func() ([]byte, error) {
	return seccomp.Asking("uname", "olduname", "oldolduname")
})

// answerer answers for the processes of one machine. It is one thread: it goes into
// UTS namespaces, and ends with that.
type answerer struct {
	epoll, listen, wake int

	mu    sync.Mutex
	names Uname // what is given; the rest is the kernel's answer

	ended chan struct{}
}

// newAnswerer listens in a machine's directory.
func newAnswerer(dir string, names *Uname) (*answerer, error) {
	a := &answerer{names: *names, epoll: -1, listen: -1, wake: -1, ended: make(chan struct{})}
	err := a.open(dir)
	if err != nil {
		a.closeAll()
		return nil, fmt.Errorf("answer uname: %w", err)
	}
	go a.loop()
	return a, nil
}

func (a *answerer) open(dir string) (err error) {
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	if a.listen, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return err
	}
	if err := unix.Unlinkat(at, unameSocket, 0); err != nil && err != unix.ENOENT {
		return err
	}
	if err := unix.Bind(a.listen, socketIn(at)); err != nil {
		return err
	}
	if err := unix.Fchmodat(at, unameSocket, 0o600, 0); err != nil {
		return err
	}
	if err := unix.Listen(a.listen, unix.SOMAXCONN); err != nil {
		return err
	}
	if a.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	if a.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if err := a.add(a.listen, unix.EPOLLIN); err != nil {
		return err
	}
	return a.add(a.wake, unix.EPOLLIN)
}

// socketIn is the address of the socket in a directory: the path itself may be longer
// than an address can be (unix(7)).
func socketIn(dir int) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, unameSocket)}
}

func (a *answerer) add(fd int, events uint32) error {
	return unix.EpollCtl(a.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// close ends it: those that wait for an answer get ENOSYS.
func (a *answerer) close() {
	if a == nil {
		return
	}
	unix.Write(a.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-a.ended
}

func (a *answerer) closeAll() {
	for _, fd := range []int{a.listen, a.wake, a.epoll} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (a *answerer) set(names *Uname) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names = *names
}

// loop is the thread. It is never given back: it stands in other namespaces. So it is
// not the process's first, which tells everybody what namespaces msh itself is in.
func (a *answerer) loop() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		go a.loop() // on another one, as this is held
		<-a.ended
		runtime.UnlockOSThread()
		return
	}
	defer close(a.ended)
	lines, listeners := map[int]bool{}, map[int]bool{}
	defer func() {
		for _, open := range []map[int]bool{lines, listeners} {
			for fd := range open {
				unix.Close(fd)
			}
		}
		a.closeAll()
	}()
	place := &place{}
	var events [32]unix.EpollEvent
	for {
		n, err := unix.EpollWait(a.epoll, events[:], -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		for _, e := range events[:n] {
			fd := int(e.Fd)
			switch {
			case fd == a.wake:
				return
			case fd == a.listen:
				if line, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); err == nil {
					if !ours(line) || a.add(line, unix.EPOLLIN) != nil {
						unix.Close(line)
					} else {
						lines[line] = true
					}
				}
			case lines[fd]:
				listener, more := a.take(fd)
				if listener >= 0 {
					if a.add(listener, unix.EPOLLIN) != nil {
						unix.Close(listener)
					} else {
						listeners[listener] = true
					}
				}
				if !more {
					delete(lines, fd)
					unix.Close(fd)
				}
			case listeners[fd]:
				if e.Events&unix.EPOLLIN != 0 {
					a.answer(fd, place)
				} else { // nobody with that filter is left
					delete(listeners, fd)
					unix.Close(fd)
				}
			}
		}
	}
}

// ours tells whether msh is at the other end of a line: the machine's own processes
// may find the socket, where they share the host's files.
func ours(line int) bool {
	cred, err := unix.GetsockoptUcred(line, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && int(cred.Uid) == os.Geteuid()
}

// The messages on a line: a listener comes with the first, names behind the second.
const (
	takeListener = 'l'
	takeNames    = 'n'
)

// take reads a message; more tells whether the line is still open.
func (a *answerer) take(line int) (listener int, more bool) {
	data, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := unix.Recvmsg(line, data, rights, unix.MSG_CMSG_CLOEXEC)
	if err == unix.EAGAIN || err == unix.EINTR {
		return -1, true
	}
	if err != nil || n == 0 {
		return -1, false
	}
	var fds []int
	if messages, err := unix.ParseSocketControlMessage(rights[:oobn]); err == nil {
		for _, m := range messages {
			got, _ := unix.ParseUnixRights(&m)
			fds = append(fds, got...)
		}
	}
	listener = -1
	if data[0] == takeListener && len(fds) == 1 {
		listener, fds = fds[0], nil
		// The one who asks runs on the CPU of the one who answers: half the time (Linux 6.6).
		unix.IoctlSetInt(listener, unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	var names Uname
	if data[0] == takeNames && json.Unmarshal(data[1:n], &names) == nil {
		a.set(&names)
		unix.Write(line, []byte{takeNames})
	}
	return listener, true
}

// notification is struct seccomp_notif.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

func notifyIoctl(fd int, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// answer answers one call. What is found by the process's number is found before the
// kernel is asked whether the call still waits: then the number was not another's yet
// (seccomp_unotify(2), NOTES).
func (a *answerer) answer(listener int, p *place) {
	var n notification
	if notifyIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)) != nil {
		return // it was killed meanwhile
	}
	r := response{id: n.id}
	a.mu.Lock()
	names := a.names
	a.mu.Unlock()
	mem, err := rawfile.Open("/proc/"+strconv.Itoa(int(n.pid))+"/mem", unix.O_RDWR, 0)
	if err == nil {
		defer unix.Close(mem)
		var text []byte
		text, err = p.utsname(int(n.pid), &names)
		if notifyIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.id)) != nil {
			return
		}
		if err == nil {
			text = layout(&n, text)
			if w, e := unix.Pwrite(mem, text, int64(n.args[0])); e != nil || w != len(text) {
				r.error = -int32(unix.EFAULT)
			}
		}
	}
	if err != nil {
		// Its memory is not to be had: the kernel's own answer.
		r = response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	}
	notifyIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
}

// Lengths of the fields of struct new_utsname and of the oldest one.
const (
	utsLen    = 65
	oldUtsLen = 9
)

// layout makes of a struct new_utsname what the call wants: the two old ones of i386
// have no domain name, and the oldest names of 8 bytes.
func layout(n *notification, uts []byte) []byte {
	if n.arch != unix.AUDIT_ARCH_I386 {
		return uts
	}
	const olduname, oldolduname = 109, 59
	switch n.nr {
	case olduname:
		return uts[:5*utsLen]
	case oldolduname:
		old := make([]byte, 5*oldUtsLen)
		for i := range 5 {
			copy(old[i*oldUtsLen:(i+1)*oldUtsLen-1], uts[i*utsLen:(i+1)*utsLen])
		}
		return old
	}
	return uts
}

// place is where the thread stands: it asks the kernel in the UTS namespace of the
// process, and with what of its personality(2) changes the answer.
type place struct {
	uts         string
	personality int
}

const (
	perMask    = 0xff
	perLinux32 = 0x8
	uname26    = 0x20000
)

func (p *place) utsname(pid int, names *Uname) ([]byte, error) {
	proc := "/proc/" + strconv.Itoa(pid)
	var link [64]byte
	n, err := unix.Readlink(proc+"/ns/uts", link[:])
	if err != nil {
		return nil, err
	}
	if string(link[:n]) != p.uts {
		fd, err := unix.Open(proc+"/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		err = unix.Setns(fd, unix.CLONE_NEWUTS)
		unix.Close(fd)
		if err != nil {
			return nil, err
		}
		p.uts = string(link[:n])
	}
	if names.Machine == "" || names.Release == "" {
		if err := p.take(proc); err != nil {
			return nil, err
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	text := make([]byte, 6*utsLen)
	for i, real := range [][utsLen]byte{u.Sysname, u.Nodename, u.Release, u.Version, u.Machine, u.Domainname} {
		at := text[i*utsLen : (i+1)*utsLen]
		if given := *names.fields()[i].value; given != "" {
			copy(at[:utsLen-1], given)
		} else {
			copy(at, real[:bytes.IndexByte(real[:], 0)])
		}
	}
	return text, nil
}

// take takes on what of a process's personality changes the kernel's answer.
func (p *place) take(proc string) error {
	b, err := rawfile.Read(proc + "/personality")
	if err != nil {
		return err
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 32)
	if err != nil {
		return err
	}
	want := int(v) & uname26
	if v&perMask == perLinux32 {
		want |= perLinux32
	}
	if want == p.personality {
		return nil
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, uintptr(want), 0, 0); errno != 0 {
		return errno
	}
	p.personality = want
	return nil
}

// callAnswerer connects to who answers for the machine of that directory.
func callAnswerer(dir string) (int, error) {
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	line, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(line, socketIn(at)); err != nil {
		unix.Close(line)
		return -1, &os.PathError{Op: "connect", Path: filepath.Join(dir, unameSocket), Err: err}
	}
	return line, nil
}

// nobodyAnswers tells whether the error is that of a socket that nobody listens on.
func nobodyAnswers(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}
