package netx

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bareHost makes a namespace.
func bareHost(t testing.TB) *NS {
	t.Helper()
	ns, err := Make(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

// dressEnd takes an end up and gives it its address.
func dressEnd(t testing.TB, ns *NS, index, n int) {
	t.Helper()
	if err := errors.Join(ns.SetUp(1, true), ns.SetUp(index, true), ns.AddAddress(index, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 24))); err != nil {
		t.Fatal(err)
	}
}

// cabled makes two hosts joined by a cable: eth0 of index 2 at either end, 10.0.0.1
// and 10.0.0.2.
func cabled(t testing.TB) (a, b *NS) {
	t.Helper()
	a, b = bareHost(t), bareHost(t)
	if err := a.AddVeth(Veth{End: End{Name: "eth0", Index: 2}, Far: End{Name: "eth0", Index: 2}, FarNS: b}); err != nil {
		t.Fatal(err)
	}
	dressEnd(t, a, 2, 1)
	dressEnd(t, b, 2, 2)
	return a, b
}

// switched makes two hosts on a switch, whose ports are 11 and 12.
func switched(t testing.TB) (sw, a, b *NS) {
	t.Helper()
	sw, err := MakeSwitch("lan", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sw.Close)
	a, b = bareHost(t), bareHost(t)
	plugIn(t, sw, BridgeIndex, a, b)
	return sw, a, b
}

// plugIn joins hosts to ports 11, 12, … of a namespace.
func plugIn(t testing.TB, ns *NS, master int, hosts ...*NS) {
	t.Helper()
	for i, h := range hosts {
		if err := ns.AddVeth(Veth{End: End{Name: fmt.Sprint("p", i+1), Index: 11 + i}, Master: master, Up: true, Far: End{Name: "eth0", Index: 2}, FarNS: h}); err != nil {
			t.Fatal(err)
		}
		dressEnd(t, h, 2, i+1)
	}
}

// shapeState is what a namespace has of queueing disciplines and filters on an interface,
// one a line, and of ifbs.
func shapeState(t testing.TB, n *NS, link int) string {
	t.Helper()
	h, err := n.Route()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "ifb" {
			lines = append(lines, "ifb "+l.Attrs().Name)
		}
		if i := l.Attrs().Index; i != link && i != ifbIndex(link) {
			continue
		}
		qs, err := h.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range qs {
			if a := q.Attrs(); q.Type() != "noqueue" {
				lines = append(lines, fmt.Sprintf("%s %s %x", l.Attrs().Name, q.Type(), a.Handle>>16))
			}
		}
		for _, where := range []uint32{ingress, egress} {
			fs, err := n.filters(l.Attrs().Index, where)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fs {
				lines = append(lines, fmt.Sprintf("%s %s %x", l.Attrs().Name, f.Type(), f.Attrs().Priority))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}

func wantShape(t testing.TB, what string, n *NS, link int, want string) {
	t.Helper()
	if got := shapeState(t, n, link); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needNetem skips where there is none, but not in the virtual machine, which has it.
func needNetem(t *testing.T) {
	t.Helper()
	if ok, err := haveNetem(true); err != nil || !ok {
		if os.Getenv("MSH_VM") != "" {
			t.Fatalf("netem: %v, %v", ok, err)
		}
		t.Skip("this kernel has no netem (CONFIG_NET_SCH_NETEM)")
	}
}

// stream is UDP from one namespace to 10.0.0.2 in another.
type stream struct {
	in  *net.UDPConn
	out net.Conn
}

func newStream(t testing.TB, from, to *NS) *stream {
	t.Helper()
	f := &stream{}
	noError(t, to.Do(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 9})
		f.in = c
		return err
	}))
	t.Cleanup(func() { f.in.Close() })
	noError(t, from.Do(func() (err error) {
		f.out, err = net.Dial("udp4", "10.0.0.2:9")
		return err
	}))
	t.Cleanup(func() { f.out.Close() })
	raw, err := f.in.SyscallConn()
	noError(t, err)
	noError(t, raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) }))
	// The first frames are ARP's, which a link may lose; this waits for the answer.
	for range 100 {
		f.out.Write([]byte("hello"))
		f.in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := f.in.Read(make([]byte, 9)); err == nil {
			f.drain(100 * time.Millisecond)
			return f
		}
	}
	t.Fatal("no datagram arrives")
	return nil
}

// drain reads until nothing has come for that long, and tells how many did.
func (f *stream) drain(quiet time.Duration) (n int) {
	b := make([]byte, 1<<16)
	for {
		f.in.SetReadDeadline(time.Now().Add(quiet))
		if _, err := f.in.Read(b); err != nil {
			return n
		}
		n++
	}
}

// udpRate sends faster than rate, in bits per second, and returns that of the
// frames that arrive, in a window after the first 300 ms.
func (f *stream) udpRate(t testing.TB, rate float64, window time.Duration) float64 {
	t.Helper()
	const payload, frame = 1472, 1514
	var done atomic.Bool
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		b := make([]byte, payload)
		sent, start := 0.0, time.Now()
		for !done.Load() {
			if sent > 1.5*rate*time.Since(start).Seconds() {
				time.Sleep(2 * time.Millisecond)
				continue
			}
			f.out.Write(b)
			sent += 8 * frame
		}
	}()
	defer func() { done.Store(true); <-stopped; f.drain(50 * time.Millisecond) }()
	b := make([]byte, 1<<16)
	var first, last time.Time
	n, start := 0, time.Now()
	for time.Since(start) < window+300*time.Millisecond {
		f.in.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := f.in.Read(b); err != nil {
			t.Fatal(err)
		}
		if time.Since(start) < 300*time.Millisecond {
			continue
		}
		if last = time.Now(); first.IsZero() {
			first = last
			continue // the time before it is not in the window
		}
		n++
	}
	return float64(n*frame*8) / last.Sub(first).Seconds()
}

// tcpRate is udpRate by TCP, in bunches of frames: 1448 bytes of data make a frame
// of 1514.
func tcpRate(t testing.TB, from, to *NS, window time.Duration) float64 {
	t.Helper()
	var l net.Listener
	noError(t, to.Do(func() (err error) {
		l, err = net.Listen("tcp4", "10.0.0.2:0")
		return err
	}))
	defer l.Close()
	var out net.Conn
	noError(t, from.Do(func() (err error) {
		out, err = net.Dial("tcp4", l.Addr().String())
		return err
	}))
	in, err := l.Accept()
	noError(t, err)
	defer in.Close()
	defer out.Close()
	go io.Copy(out, zeros{})
	b := make([]byte, 1<<18)
	var first, last time.Time
	n, start := 0, time.Now()
	for time.Since(start) < window+300*time.Millisecond {
		in.SetReadDeadline(time.Now().Add(5 * time.Second))
		k, err := in.Read(b)
		noError(t, err)
		if time.Since(start) < 300*time.Millisecond {
			continue
		}
		if last = time.Now(); first.IsZero() {
			first = last
			continue
		}
		n += k
	}
	return float64(n) * 8 * 1514 / 1448 / last.Sub(first).Seconds()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// within calls measure up to five times, until what it returns is within a share of
// want: the tests share their processors with others, who can hold one measurement
// up, but not make five of them wrong.
func within(t *testing.T, what string, want, share float64, measure func() float64) {
	t.Helper()
	var got []float64
	for range 5 {
		v := measure()
		if got = append(got, v); math.Abs(v-want) <= share*want {
			t.Logf("%s: %.4g, %+.2f %% (attempt %d)", what, v, (v/want-1)*100, len(got))
			return
		}
	}
	t.Errorf("%s: got %.4g, want %.4g to within %v %%", what, got, want, share*100)
}

// binomial fails unless k of n is what a chance of percent gives, within three
// standard errors: a right one is out of that once in 370 times, so a second sample
// may be drawn.
func binomial(t *testing.T, what string, percent float64, sample func() (k, n int)) {
	t.Helper()
	p := percent / 100
	for try := range 2 {
		k, n := sample()
		want, deviation := p*float64(n), math.Sqrt(p*(1-p)*float64(n))
		t.Logf("%s: %d of %d, want %.0f, standard error %.1f", what, k, n, want, deviation)
		if math.Abs(float64(k)-want) <= 3*deviation {
			return
		}
		if try > 0 {
			t.Errorf("%s: %d of %d is not %v %%", what, k, n, percent)
		}
	}
}

// send sends n datagrams, slowly enough for the socket's buffer, and returns how
// many arrive.
func (f *stream) send(n int) (arrived int) {
	for n > 0 {
		k := min(n, 200)
		for range k {
			f.out.Write([]byte("datagram"))
		}
		n -= k
		arrived += f.drain(0)
	}
	return arrived + f.drain(200*time.Millisecond)
}

// loses checks a link's loss.
func loses(t *testing.T, what string, f *stream, percent float64, n int) {
	t.Helper()
	binomial(t, what, percent, func() (int, int) { return n - f.send(n), n })
}
