package netx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CaptureOptions says what to capture, and where to.
type CaptureOptions struct {
	// Path of the file; one that is there is emptied first, as tcpdump -w does.
	Path string
	// Filter, in the words of pcap-filter(7), says which packets; "" is all.
	Filter string
	// Count is how many packets make it end by itself; 0 is no end.
	Count int
	// Snaplen is how many bytes of a packet are kept, at most 262144, which 0 is.
	Snaplen int
	// Except, where all interfaces are captured, is the index of one that is not.
	Except int
}

// CaptureStats is what a capture has come to.
type CaptureStats struct {
	Packets uint64 // in the file
	Dropped uint64 // that the filter took, but there was no room for
}

// Capture is one that is under way, or over.
type Capture struct {
	link  string
	sock  *os.File // the packet socket; the reader closes it
	raw   syscall.RawConn
	ring  *ring
	out   *os.File
	count uint64 // 0 is no end

	snaplen int
	buf     []byte

	stopping atomic.Bool // somebody has called Stop
	cut      atomic.Bool // nothing more comes in
	done     chan struct{}
	stats    CaptureStats // the reader's until done is closed
	err      error        // and this
}

// Capture writes the packets that pass an interface to a pcap file, both ways,
// promiscuously. With link "", it takes what comes in by any interface of the
// namespace but o.Except: on a switch that is each frame once. It has begun when
// this returns. While it is under way it takes 16 MiB of the kernel's memory, and
// keeps the namespace alive.
//
// The times are the kernel's, in nanoseconds. VLAN tags, which the kernel takes
// out, are put back. Packets look as they do inside a host: those that it sends
// itself have no checksums yet, and may be up to 64 KiB long (or more, with BIG
// TCP), as the hardware, or a veth's receiver, is trusted with the rest.
//
// An interface that is down is captured once it is up; one that goes away ends the
// capture, and Stop tells.
func (n *NS) Capture(link string, o CaptureOptions) (*Capture, error) {
	what := link
	if what == "" {
		what = "all interfaces"
	}
	fail := func(err error) (*Capture, error) { return nil, fmt.Errorf("capture on %s: %w", what, err) }
	if o.Snaplen < 0 || o.Snaplen > pcapMaxLen {
		return fail(fmt.Errorf("got a snaplen of %d, want 1 to %d bytes, or 0 for the most", o.Snaplen, pcapMaxLen))
	}
	if o.Count < 0 {
		return fail(fmt.Errorf("got a count of %d, want at least 0", o.Count))
	}
	if o.Snaplen == 0 {
		o.Snaplen = pcapMaxLen
	}
	l, err := n.tapped(link)
	if err != nil {
		return fail(err)
	}
	filter, err := n.captureFilter(l, link == "", o)
	if err != nil {
		return fail(err)
	}
	c := &Capture{link: what, count: uint64(o.Count), snaplen: o.Snaplen, done: make(chan struct{})}
	if c.sock, err = n.packetSocket(); err != nil {
		return fail(err)
	}
	ok := false
	defer func() {
		if !ok {
			c.close()
		}
	}()
	if c.raw, err = c.sock.SyscallConn(); err != nil {
		return fail(err)
	}
	err = c.control(func(fd int) (err error) {
		if err := attachFilter(fd, filter); err != nil {
			return err
		}
		c.ring, err = newRing(fd)
		return err
	})
	if err != nil {
		return fail(err)
	}
	var fresh bool
	if c.out, fresh, err = createPcap(o.Path, o.Snaplen); err != nil {
		return fail(err)
	}
	// Bound last: until then a socket of protocol 0 receives nothing, so that no
	// packet is seen which the filter has not.
	if err := c.control(func(fd int) error { return bindPackets(fd, l, link == "") }); err != nil {
		if fresh {
			os.Remove(o.Path)
		}
		return fail(err)
	}
	ok = true
	go c.run()
	return c, nil
}

// createPcap opens the file, empty but for its header. fresh tells that it was not
// there.
func createPcap(path string, snaplen int) (f *os.File, fresh bool, err error) {
	f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if fresh = err == nil; errors.Is(err, fs.ErrExist) {
		// Not to hang at a FIFO; what it is is seen once it is open.
		f, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EISDIR) { // a FIFO nobody reads, a socket; a directory
			return nil, false, notRegular(path)
		}
	}
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			f.Close()
			if fresh {
				os.Remove(path)
			}
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	if !st.Mode().IsRegular() {
		return nil, false, notRegular(path)
	}
	if err := f.Truncate(0); err != nil {
		return nil, false, err
	}
	if _, err := f.Write(pcapHeader(snaplen)); err != nil {
		return nil, false, err
	}
	return f, fresh, nil
}

func notRegular(path string) error {
	return fmt.Errorf("%s is a directory, a device or the like; want a regular file, or a path where there is none", path)
}

// Done is closed once the capture is over: stopped, full, or failed. The file is
// whole then.
func (c *Capture) Done() <-chan struct{} { return c.done }

// Wait waits until the capture is over, for which o.Count is there. It answers what
// ended it, nil where that was the count or Stop. When ctx ends first, its error
// is returned and the capture goes on.
func (c *Capture) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	default:
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop ends the capture, if it is not over, and waits for what has passed before to
// be in the file: some 30 ms. It may be called again and answers the same.
func (c *Capture) Stop() (CaptureStats, error) {
	if c.stopping.CompareAndSwap(false, true) {
		// What has been sent may still wait for the kernel's time to receive it
		// (ksoftirqd, on a busy host).
		select {
		case <-c.done:
		case <-time.After(retireAfter):
		}
		// Nothing new gets in; the reader takes what is there. A reader that is done
		// has closed the socket.
		c.control(func(fd int) error { return attachFilter(fd, filterNone) })
		c.cut.Store(true)
		c.sock.SetReadDeadline(time.Unix(1, 0))
	}
	<-c.done
	return c.stats, c.err
}

// control calls f with the socket's descriptor.
func (c *Capture) control(f func(fd int) error) error {
	var inner error
	if err := c.raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// close gives up what the capture has: called when nobody uses it any more.
func (c *Capture) close() error {
	var err error
	if c.ring != nil {
		c.ring.close()
	}
	if c.out != nil {
		err = c.out.Close()
	}
	c.sock.Close()
	return err
}

// run is the reader. It sleeps in Go's poller, so that a capture costs no thread.
func (c *Capture) run() {
	defer close(c.done)
	c.err = c.read()
	if err := c.control(func(fd int) error {
		s, err := unix.GetsockoptTpacketStatsV3(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			c.stats.Dropped = uint64(s.Drops)
		}
		return err
	}); err != nil && c.err == nil {
		c.err = fmt.Errorf("read the capture's counters: %w", err)
	}
	if err := c.close(); err != nil && c.err == nil {
		c.err = err
	}
	if c.err != nil {
		c.err = fmt.Errorf("capture on %s: %w", c.link, c.err)
	}
}

// lookAfter is how often the reader looks whether its interface is still there:
// the kernel does not wake it for one that is deleted while it is down.
const lookAfter = 500 * time.Millisecond

func (c *Capture) read() error {
	for !c.full() {
		c.sock.SetReadDeadline(time.Now().Add(lookAfter))
		if c.cut.Load() { // before the deadline was set; else Stop's own wakes the reader
			return c.drain()
		}
		var gone error
		ready := false
		err := c.raw.Read(func(fd uintptr) bool {
			if ready = c.ring.ready(); !ready {
				gone = lost(int(fd))
			}
			return ready || gone != nil
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = c.control(func(fd int) error { gone = lost(fd); return nil })
		}
		if err != nil {
			return err
		}
		if gone != nil {
			return errors.Join(c.drain(), gone)
		}
		if ready {
			if err := c.take(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Capture) full() bool { return c.count != 0 && c.stats.Packets >= c.count }

// drain takes what is in the ring when nothing more comes in. The kernel hands
// over the block it has begun when that is retireAfter old; how often that is
// waited for bounds it where all blocks were full and none was begun.
func (c *Capture) drain() error {
	for range 40 {
		for c.ring.ready() && !c.full() {
			if err := c.take(); err != nil {
				return err
			}
		}
		if c.full() || c.ring.empty() {
			return nil
		}
		time.Sleep(retireAfter / 8)
	}
	return nil
}

// take writes the packets of the block that is ready, in one piece, so that a
// reader of the file never sees half a packet for long, and gives it back.
func (c *Capture) take() error {
	c.buf = c.buf[:0]
	for p := range c.ring.packets() {
		if c.full() {
			break
		}
		c.buf = p.appendTo(c.buf, c.snaplen)
		c.stats.Packets++
	}
	c.ring.release()
	if _, err := c.out.Write(c.buf); err != nil {
		return err
	}
	return nil
}

// lost tells whether the socket has failed, or its interface is gone for good. One
// that was merely taken down (ENETDOWN) comes back.
func lost(fd int) error {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if errno != 0 && unix.Errno(errno) != unix.ENETDOWN {
		return unix.Errno(errno)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if l, ok := at.(*unix.SockaddrLinklayer); ok && l.Ifindex < 0 { // packet_notifier
		return errors.New("the interface has gone")
	}
	return nil
}
