package netx

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A rate holds within 3 %: of UDP and of the bunches of TCP, out and in, at a port
// of a switch.
func TestShapeRate(t *testing.T) {
	for _, c := range []struct {
		rate uint64
		tcp  bool
	}{{1_000_000, false}, {10_000_000, true}, {100_000_000, false}, {1_000_000_000, true}} {
		for _, in := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,tcp=%v,in=%v", formatRate(c.rate), c.tcp, in), func(t *testing.T) {
				sw, a, b := switched(t)
				if in {
					noError(t, sw.ShapeIn(11, Impair{Rate: c.rate})) // what a sends
				} else {
					noError(t, sw.ShapeOut(12, Impair{Rate: c.rate})) // what b gets
				}
				window := 600 * time.Millisecond
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

	noError(t, sw.ShapeIn(11, Impair{Rate: 1e6}))
	noError(t, sw.Delete(11))
	wantShape(t, "gone", sw, 12, "ifb i11")
	noError(t, sw.ShapeIn(11, Impair{}))
	wantShape(t, "gone, and its ifb", sw, 12, "")
}

// What is lost on the way out is not an error to who sends it.
func TestShapeLossIsSilent(t *testing.T) {
	_, a, b := switched(t)
	f := newStream(t, a, b)
	noError(t, a.ShapeOut(2, Impair{Loss: 100}))
	raw, err := f.out.(*net.UDPConn).SyscallConn()
	noError(t, err)
	noError(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1) }))
	noError(t, err)
	for range 10 {
		if _, err := f.out.Write([]byte("lost")); err != nil {
			t.Errorf("the sender is told: %v", err)
		}
	}
	if n := f.drain(50 * time.Millisecond); n > 0 {
		t.Errorf("%d arrive", n)
	}
}

// Whoever shapes one direction need not know of the other.
func TestShapeAtOnce(t *testing.T) {
	sw, _, _ := switched(t)
	var wg sync.WaitGroup
	for _, shape := range []func(int, Impair) error{sw.ShapeOut, sw.ShapeIn} {
		for _, port := range []int{11, 12} {
			wg.Go(func() {
				for i := range 50 {
					if err := shape(port, []Impair{{Rate: 1e6}, {Loss: 1}, {}}[i%3]); err != nil {
						t.Error(err)
					}
				}
				if err := shape(port, Impair{}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	wantShape(t, "port 11", sw, 11, "")
	wantShape(t, "port 12", sw, 12, "")
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
		if got := f.drain(500 * time.Millisecond); got != 50 {
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
	// The next frame has the queue looked at again; otherwise the first that waits
	// would do so for as long as it was told.
	f.out.Write(nil)
	// The burst lets one through; another may have been under way.
	if got := f.drain(500 * time.Millisecond); got < 21 || got > 23 {
		t.Errorf("%d arrive; want the limit of 20, the one or two that had left, and the last", got)
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
		if out, in := a.ShapeOut(99, i), a.ShapeIn(99, i); (out == nil) != i.IsZero() || (in == nil) != i.IsZero() {
			t.Errorf("an interface that is not there: %v: %v, %v", i, out, in)
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
