package kernel

import (
	"sync"

	"golang.org/x/sys/unix"
)

// watcher calls back when processes end: one thread for all of them, where a
// blocking wait for each would take one each.
type watcher struct {
	epoll int
	mu    sync.Mutex
	last  int32
	calls map[int32]func() // by the number of the watch: descriptors are used again
}

var theWatcher = sync.OnceValues(func() (*watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := &watcher{epoll: fd, calls: map[int32]func(){}}
	go w.loop()
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

func (w *watcher) loop() {
	var events [64]unix.EpollEvent
	for {
		n, err := unix.EpollWait(w.epoll, events[:], -1)
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
