package kernel

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// watcher calls back when processes end: one thread for all of them, where a
// blocking wait for each would take one each.
type watcher struct {
	epoll int
	mu    sync.Mutex
	calls map[int32]func()
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
// has ended. The pidfd must stay open until then.
func watch(pidfd int, f func()) error {
	w, err := theWatcher()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, pidfd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(pidfd)}); err != nil {
		return fmt.Errorf("watch a process: %w", err)
	}
	w.calls[int32(pidfd)] = f // before the loop can look: it waits for mu
	return nil
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
			unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, int(e.Fd), nil)
			w.mu.Unlock()
			if f != nil {
				go f()
			}
		}
	}
}
