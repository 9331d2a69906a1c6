package kernel

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watcher calls back when processes end: one goroutine for all of them, where a
// blocking wait for each would take a thread each. It has no thread of its own
// either: its epoll is itself among the descriptors that Go's runtime polls.
type watcher struct {
	epoll int
	file  *os.File // which keeps it open
	mu    sync.Mutex
	last  int32
	calls map[int32]func() // by the number of the watch: descriptors are used again
}

var theWatcher = sync.OnceValues(func() (*watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	// A file that does not block is one that the runtime polls.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "epoll")
	ready, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	w := &watcher{epoll: fd, file: file, calls: map[int32]func(){}}
	go w.loop(ready)
	return w, nil
})

// watch calls f, once, on a goroutine of its own, when the process behind pidfd
// has ended. The pidfd must stay open until then, or until unwatch.
func watch(pidfd int, f func()) (number int32, err error) {
	w, err := theWatcher()
	if err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	event := &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: w.last}
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, pidfd, event); err != nil {
		return 0, err
	}
	w.calls[w.last] = f
	return w.last, nil
}

// unwatch takes a watch on pidfd back; false when its call is made, or being made,
// already.
func unwatch(pidfd int, number int32) bool {
	w, err := theWatcher()
	if err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.calls[number]
	if ok {
		delete(w.calls, number)
		unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, pidfd, nil) // or the thread wakes for nothing
	}
	return ok
}

func (w *watcher) loop(ready syscall.RawConn) {
	var events [64]unix.EpollEvent
	for {
		var n int
		var err error
		if e := ready.Read(func(uintptr) bool {
			n, err = unix.EpollWait(w.epoll, events[:], 0)
			return n != 0 // an error is -1
		}); e != nil {
			err = e
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			panic("kernel: epoll_wait: " + err.Error())
		}
		for _, e := range events[:n] {
			w.mu.Lock()
			f := w.calls[e.Fd]
			delete(w.calls, e.Fd)
			w.mu.Unlock()
			if f != nil {
				go f()
			}
		}
	}
}
