package netx

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Made is a namespace that was made ahead, or why it could not be.
type Made struct {
	NS  *NS
	Err error
}

// order is a namespace to be made.
type order struct {
	setup func() error
	made  chan<- Made
}

// orders are taken by makers that have nothing to do, which idleMakers counts.
var (
	orders     = make(chan order)
	idleMakers atomic.Int32
)

const mostIdle = 4

// MakeAhead is Make, but goes on at once: the kernel takes a good part of a millisecond
// for a namespace, and whoever will need it has other things to do meanwhile. What is
// made must be taken from the channel, and closed.
func MakeAhead(setup func() error) <-chan Made {
	made := make(chan Made, 1)
	o := order{setup, made}
	select {
	case orders <- o:
	default:
		go startMaker(o)
	}
	return made
}

// startMaker turns the goroutine into a maker, on a thread that is never anything else.
// The process's first thread cannot be one: it could not die.
func startMaker(o order) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		serve(o)
		return
	}
	elsewhere := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(elsewhere)
		serve(o)
	}()
	<-elsewhere
	runtime.UnlockOSThread()
}

// serve makes what it is asked for, one after the other. It returns, and its thread
// dies, where enough others wait, or when it cannot leave what it has made.
func serve(o order) {
	for {
		ns, err := makeHere(o.setup)
		home := goHome()
		if home != nil && err == nil {
			ns.Close()
			ns, err = nil, home
		}
		o.made <- Made{ns, err}
		if home != nil {
			return
		}
		if idleMakers.Add(1) > mostIdle {
			idleMakers.Add(-1)
			return
		}
		o = <-orders
		idleMakers.Add(-1)
	}
}

// goHome has the calling thread leave what it has made, which it would keep from ending.
func goHome() error {
	home, err := Open("/proc/self/ns/net") // that of the first thread, which never leaves it
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Setns(home.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("leave the network namespace: %w", err)
	}
	return nil
}
