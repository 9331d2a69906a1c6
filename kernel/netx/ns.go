package netx

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace held open by a descriptor. It may be used by several
// goroutines.
type NS struct {
	fd int

	mu    sync.Mutex
	route *netlink.Handle
	raw   *nl.SocketHandle // for messages that netlink has no words for
}

// Make makes a namespace. setup, if not nil, is called on the thread that stands
// in it, before anybody else can reach it.
func Make(setup func() error) (ns *NS, err error) {
	err = onThread(func() (err error) {
		ns, err = makeHere(setup)
		return err
	})
	return ns, err
}

// makeHere makes it on the calling thread, which is left standing in it.
func makeHere(setup func() error) (*NS, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare the network: %w", err)
	}
	ns, err := Own()
	if err != nil {
		return nil, fmt.Errorf("open the new network namespace: %w", err)
	}
	if setup != nil {
		if err := setup(); err != nil {
			ns.Close()
			return nil, err
		}
	}
	return ns, nil
}

// Open opens the namespace behind a path: /proc/PID/ns/net, or where it was pinned.
func Open(path string) (*NS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if _, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: not a namespace", path)
	}
	return &NS{fd: fd}, nil
}

// Own is the namespace that the process stands in.
func Own() (*NS, error) { return Open("/proc/thread-self/ns/net") }

// Close gives the handle up. The namespace ends with its last user.
func (n *NS) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.route != nil {
		n.route.Close()
		n.route = nil
	}
	if n.raw != nil {
		n.raw.Close()
		n.raw = nil
	}
	if n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
}

// FD is the descriptor; it stays n's.
func (n *NS) FD() int { return n.fd }

// ID names the namespace while it exists.
func (n *NS) ID() (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(n.fd, &st)
	return st.Ino, err
}

// Route is a socket of routing netlink in the namespace, opened once.
func (n *NS) Route() (*netlink.Handle, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.route == nil {
		var h *netlink.Handle
		err := n.visit(func(at netns.NsHandle) (err error) { h, err = netlink.NewHandleAt(at, unix.NETLINK_ROUTE); return })
		if err != nil {
			return nil, fmt.Errorf("open routing netlink: %w", err)
		}
		n.route = h
	}
	return n.route, nil
}

// execute sends a request of routing netlink and reads the answer.
func (n *NS) execute(req *nl.NetlinkRequest) error {
	n.mu.Lock()
	if n.raw == nil {
		s, err := n.socket()
		if err != nil {
			n.mu.Unlock()
			return fmt.Errorf("open routing netlink: %w", err)
		}
		n.raw = &nl.SocketHandle{Socket: s}
	}
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: n.raw}
	n.mu.Unlock()
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// OneWay is set where a thread cannot come back out of a namespace: msh is root in
// the space of an ordinary user, and the network it stands in itself is the host's
// (setns(2), EPERM). vishvananda/netlink does not notice, and leaves the thread there.
var OneWay bool

// visit calls f with the namespace to open a socket in, or where there is no way back
// on a thread that stands in it and dies.
func (n *NS) visit(f func(at netns.NsHandle) error) error {
	if !OneWay {
		return f(netns.NsHandle(n.fd))
	}
	return n.Do(func() error { return f(netns.None()) })
}

// socket opens one of routing netlink.
func (n *NS) socket() (s *nl.NetlinkSocket, err error) {
	err = n.visit(func(at netns.NsHandle) (err error) {
		s, err = nl.GetNetlinkSocketAt(at, netns.None(), unix.NETLINK_ROUTE)
		return err
	})
	return s, err
}

// Do calls f on a thread that stands in the namespace and dies with the call:
// for sockets and files of /proc/sys that only can be opened from inside.
func (n *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil && !n.here() {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}

// here tells whether the calling thread stands in the namespace: an ordinary user's msh
// cannot enter the host's, where it is already.
func (n *NS) here() bool {
	var own, st unix.Stat_t
	return unix.Stat("/proc/thread-self/ns/net", &own) == nil && unix.Fstat(n.fd, &st) == nil && own.Ino == st.Ino && own.Dev == st.Dev
}

// onThread calls f on a thread of its own that is left to die. The process's first
// thread cannot die: it would stay in the namespace, and keep it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.New("the call has not returned") // runtime.Goexit, which a test's Fatal is
		defer func() { done <- err }()
		if unix.Gettid() == unix.Getpid() {
			err = onThread(f) // on another one, as this is held
			runtime.UnlockOSThread()
			return
		}
		err = f()
	}()
	return <-done
}

// Pin keeps the namespace alive at a path, which must not be there yet.
func (n *NS) Pin(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o400)
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	unix.Close(fd)
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.fd), path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("pin the network namespace at %s: %w", path, err)
	}
	return nil
}

// Unpin takes a pin back. One that is not there, or not whole, is no error.
func Unpin(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: no mount
		return fmt.Errorf("unpin the network namespace at %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// WriteSysctl writes a parameter of the calling thread's namespace: its name has
// dots, or slashes where a part has a dot of its own. One that the kernel does not
// have is os.ErrNotExist.
func WriteSysctl(key, value string) error {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	path := "/proc/sys/" + key
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write " + value + " to", Path: path, Err: err}
	}
	return nil
}

// TakeUp takes an interface of the calling thread's namespace up. One request, it
// needs no socket of routing netlink.
func TakeUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("take %s up: %w", name, err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("take %s up: %w", name, err)
	}
	return nil
}
