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

	"github.com/vishvananda/netlink"
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

// A rate holds within 3 %: of UDP and of TCP's bunches, out and in, at a host's own
// end and at a port of a switch.
func TestShapeRate(t *testing.T) {
	for _, c := range []struct {
		rate uint64
		tcp  bool
	}{{1_000_000, false}, {10_000_000, true}, {100_000_000, false}, {100_000_000, true}, {1_000_000_000, true}} {
		for _, in := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,tcp=%v,in=%v", formatRate(c.rate), c.tcp, in), func(t *testing.T) {
				sw, a, b := switched(t)
				if in {
					noError(t, sw.ShapeIn(11, Impair{Rate: c.rate})) // what a sends
				} else {
					noError(t, sw.ShapeOut(12, Impair{Rate: c.rate})) // what b gets
				}
				window := time.Second
				if c.rate < 10_000_000 {
					window = 2 * time.Second // a frame is 12 ms
				}
				var f *stream
				if !c.tcp {
					f = newStream(t, a, b)
				}
				within(t, "rate", float64(c.rate), 0.03, func() float64 {
					if c.tcp {
						return tcpRate(t, a, b, window)
					}
					return f.udpRate(t, float64(c.rate), window)
				})
			})
		}
	}
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

// Loss works on every kernel, both ways, alone and beside a rate, and is changed
// while the traffic runs.
func TestShapeLoss(t *testing.T) {
	sw, a, b := switched(t)
	f := newStream(t, a, b)
	const n = 10_000
	for _, percent := range []float64{0, 1, 25, 0.1, 100} {
		noError(t, sw.ShapeOut(12, Impair{Loss: percent}))
		loses(t, "out", f, percent, n)
	}
	noError(t, sw.ShapeOut(12, Impair{}))
	for _, percent := range []float64{100, 2.5} {
		noError(t, sw.ShapeIn(11, Impair{Loss: percent, Rate: 1e9}))
		loses(t, "in, with a rate", f, percent, n)
	}
	noError(t, sw.ShapeIn(11, Impair{Loss: 5}))
	loses(t, "in", f, 5, n)
	// Both: what comes through the one meets the other.
	noError(t, sw.ShapeOut(12, Impair{Loss: 20, Rate: 1e9}))
	loses(t, "in and out", f, (1-0.95*0.8)*100, n)
	noError(t, errors.Join(sw.ShapeIn(11, Impair{}), sw.ShapeOut(12, Impair{})))
	loses(t, "neither", f, 0, n)
}

// What is asked for is there, once, and gone when nothing is asked for.
func TestShapeState(t *testing.T) {
	netem, err := haveNetem(true)
	noError(t, err)
	sw, _, _ := switched(t)
	both := []struct {
		name  string
		shape func(int, Impair) error
	}{{"out", sw.ShapeOut}, {"in", sw.ShapeIn}}
	wants := map[string][2]string{ // out and in
		"rate":      {"p1 clsact ffff\np1 pfifo 6d75\np1 tbf 6d73", "i11 pfifo 6d75\ni11 tbf 6d73\nifb i11\np1 clsact ffff\np1 u32 6d74"},
		"loss":      {"p1 bpf 6d73\np1 clsact ffff", "p1 bpf 6d73\np1 clsact ffff"},
		"rate loss": {"p1 bpf 6d73\np1 clsact ffff\np1 pfifo 6d75\np1 tbf 6d73", "i11 pfifo 6d75\ni11 tbf 6d73\nifb i11\np1 bpf 6d73\np1 clsact ffff\np1 u32 6d74"},
	}
	if netem {
		rate := [2]string{"p1 clsact ffff\np1 netem 6d73\np1 pfifo 6d75\np1 tbf 6d74", "i11 netem 6d73\ni11 pfifo 6d75\ni11 tbf 6d74\nifb i11\np1 clsact ffff\np1 u32 6d74"}
		wants = map[string][2]string{
			"rate": rate, "rate loss": rate,
			"loss": {"p1 clsact ffff\np1 netem 6d73", "i11 netem 6d73\nifb i11\np1 clsact ffff\np1 u32 6d74"},
		}
	}
	for d, c := range both {
		for _, step := range []struct {
			want string
			i    Impair
		}{
			{"", Impair{}},
			{"rate", Impair{Rate: 1e6}},
			{"rate", Impair{Rate: 2e6}},
			{"rate loss", Impair{Rate: 1 << 62, Loss: 1, Limit: 10}},
			{"", Impair{Burst: 5000, Limit: 3, Distribution: "pareto"}}, // which do nothing alone
			{"loss", Impair{Loss: 2}},
			{"loss", Impair{Loss: 2}},
			{"", Impair{}},
			{"", Impair{}},
		} {
			noError(t, c.shape(11, step.i))
			wantShape(t, c.name+" "+step.i.String(), sw, 11, wants[step.want][d])
		}
	}
	// One direction does not touch the other.
	noError(t, errors.Join(sw.ShapeOut(11, Impair{Loss: 1}), sw.ShapeIn(11, Impair{Loss: 1})))
	noError(t, sw.ShapeOut(11, Impair{}))
	wantShape(t, "in alone", sw, 11, wants["loss"][1])
	noError(t, sw.ShapeIn(11, Impair{}))
	wantShape(t, "neither", sw, 11, "")
}

// A change drops nothing that waits: more than a second's worth of a slow link's
// frames comes at once when it becomes a fast one.
func TestShapeInPlace(t *testing.T) {
	for _, in := range []bool{false, true} {
		sw, a, b := switched(t)
		f := newStream(t, a, b)
		shape, port := sw.ShapeOut, 12
		if in {
			shape, port = sw.ShapeIn, 11
		}
		noError(t, shape(port, Impair{Rate: 100_000, Limit: 200}))
		for range 50 {
			f.out.Write(make([]byte, 1000))
		}
		noError(t, shape(port, Impair{Rate: 50_000, Limit: 100, Loss: 100}))
		noError(t, shape(port, Impair{Rate: 100_000_000, Limit: 10}))
		if got := f.drain(300 * time.Millisecond); got != 50 {
			t.Errorf("in=%v: %d of 50 arrive", in, got)
		}
	}
}

// The limit is how many wait.
func TestShapeLimit(t *testing.T) {
	_, a, b := switched(t)
	f := newStream(t, a, b)
	// 1000 bytes and 42 of headers take 0.83 s each.
	noError(t, a.ShapeOut(2, Impair{Rate: 10_000, Limit: 20, Burst: 1522}))
	for range 100 {
		f.out.Write(make([]byte, 1000))
	}
	noError(t, a.ShapeOut(2, Impair{Rate: 100_000_000}))
	// The burst lets one through; another may have been under way.
	if got := f.drain(300 * time.Millisecond); got < 20 || got > 22 {
		t.Errorf("%d arrive; want the limit of 20 and the one or two that had left", got)
	}
}

func TestShapeErrors(t *testing.T) {
	_, a, _ := switched(t)
	var bad *OptionError
	if err := a.ShapeOut(2, Impair{Loss: 101}); !errors.As(err, &bad) || bad.Option != "loss" {
		t.Errorf("loss of 101: %v", err)
	}
	if err := a.ShapeIn(2, Impair{Rate: 1e6, Burst: 1000}); !errors.As(err, &bad) || bad.Option != "burst" || !strings.Contains(err.Error(), "1522") {
		t.Errorf("burst less than a frame: %v", err)
	}
	for _, i := range []Impair{{}, {Rate: 1e6}, {Loss: 1}} {
		if a.ShapeOut(99, i) == nil || i.Rate != 0 && a.ShapeIn(99, i) == nil {
			t.Errorf("an interface that is not there: %v: no error", i)
		}
	}
	wantShape(t, "after errors", a, 2, "")
	// What is not msh's stays.
	noError(t, a.execute(qdiscRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE, 2, netlink.HANDLE_ROOT, 7<<16, "pfifo")))
	if err := a.ShapeOut(2, Impair{Rate: 1e6}); err == nil || !strings.Contains(err.Error(), "not msh's") {
		t.Errorf("somebody else's: %v", err)
	}
	noError(t, a.ShapeOut(2, Impair{}))
	wantShape(t, "somebody else's", a, 2, "eth0 pfifo 7")
}

// A kernel without netem says so, and how to get it, and changes nothing.
func TestShapeWithoutNetem(t *testing.T) {
	if ok, err := haveNetem(true); ok || err != nil {
		t.Skipf("this kernel has netem (%v)", err)
	}
	_, a, b := switched(t)
	noError(t, errors.Join(a.ShapeOut(2, Impair{Rate: 1e9, Loss: 100}), a.ShapeIn(2, Impair{Rate: 1e9, Loss: 100})))
	before := shapeState(t, a, 2)
	const ms = time.Millisecond
	for option, i := range map[string]Impair{
		"delay": {Delay: ms}, "jitter": {Delay: ms, Jitter: ms}, "duplicate": {Duplicate: 1}, "corrupt": {Corrupt: 1}, "reorder": {Delay: ms, Reorder: 1},
	} {
		i.Rate = 1e6
		for _, err := range []error{a.ShapeOut(2, i), a.ShapeIn(2, i)} {
			var lacking *Missing
			if !errors.As(err, &lacking) || !strings.Contains(err.Error(), option) || !strings.Contains(lacking.Mend, "CONFIG_NET_SCH_NETEM") || !strings.Contains(lacking.Mend, "modprobe sch_netem") {
				t.Errorf("%v: %v", i, err)
			}
		}
		wantShape(t, i.String(), a, 2, before)
	}
	// Still with all of the loss, and no rate of 1 mbit.
	noError(t, errors.Join(a.ShapeOut(2, Impair{Rate: 1e9}), a.ShapeIn(2, Impair{})))
	f := newStream(t, a, b)
	noError(t, a.ShapeOut(2, Impair{Rate: 1e9, Loss: 100}))
	if a.ShapeOut(2, Impair{Delay: ms}) == nil || f.send(100) != 0 {
		t.Error("the refused change took the loss away")
	}
}

// The doctor's answer is what shaping finds.
func TestProbeShaping(t *testing.T) {
	s := ProbeShaping()
	if s.TBF != nil || s.IFB != nil || s.BPF != nil {
		t.Errorf("got %+v; want tbf, ifb and BPF", s)
	}
	netem, err := haveNetem(true)
	if err != nil || netem != (s.Netem == nil) {
		t.Errorf("netem: probe %v, otherwise %v, %v", s.Netem, netem, err)
	}
	if os.Getenv("MSH_VM") != "" && s.Netem != nil {
		t.Errorf("netem: %v", s.Netem)
	}
}

// BenchmarkShape is what a perfect cable costs, and one with a rate.
func BenchmarkShape(b *testing.B) {
	sw, _, _ := switched(b)
	for _, i := range []Impair{{}, {Rate: 1e7}, {Loss: 1}} {
		b.Run("out "+i.String(), func(b *testing.B) {
			for b.Loop() {
				if err := sw.ShapeOut(11, i); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("in "+i.String(), func(b *testing.B) {
			for b.Loop() {
				if err := sw.ShapeIn(11, i); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
