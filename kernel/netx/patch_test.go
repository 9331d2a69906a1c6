package netx

import (
	"bytes"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patched makes two hosts on a cable of two ports, 11 and 12.
func patched(t testing.TB) (panel, a, b *NS) {
	t.Helper()
	panel, a, b = bareHost(t), bareHost(t), bareHost(t)
	plugIn(t, panel, 0, a, b)
	noError(t, panel.Patch(11, 12))
	return panel, a, b
}

// packets opens a socket that sends and receives whole frames on eth0, each with
// what the kernel says of it beside it (struct tpacket_auxdata).
func packets(t testing.TB, n *NS) int {
	t.Helper()
	fd := -1
	noError(t, n.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL))); err != nil {
			return err
		}
		tv := unix.NsecToTimeval(int64(2 * time.Second))
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: 2}),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// receive reads the next frame that has come from a MAC, or returns nil when the
// socket's time is up. The VLAN tag that the kernel has taken out is put back.
func receive(t testing.TB, fd int, mac []byte) []byte {
	t.Helper()
	for {
		b, oob := make([]byte, 1<<16), make([]byte, 128)
		n, k, _, from, err := unix.Recvmsg(fd, b, oob, 0)
		if err != nil {
			return nil
		}
		b = b[:n]
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING || n < 12 || !bytes.Equal(b[6:12], mac) {
			continue
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:k])
		noError(t, err)
		for _, m := range msgs {
			// status, len and snaplen of 4 bytes; mac, net, vlan_tci, vlan_tpid of 2
			const tciValid, tpidValid = 1 << 4, 1 << 6
			if d := m.Data; m.Header.Type == unix.PACKET_AUXDATA && d[0]&tciValid != 0 {
				tag := []byte{0x81, 0, d[17], d[16]}
				if d[0]&tpidValid != 0 {
					tag[0], tag[1] = d[19], d[18]
				}
				b = bytes.Join([][]byte{b[:12], tag, b[12:]}, nil)
			}
		}
		return b
	}
}

// reserved are frames that a bridge keeps to itself, and plain ones that it passes.
var reserved, plain = map[string][]byte{
	"LLDP":          {1, 0x80, 0xc2, 0, 0, 0x0e, 2, 1, 2, 3, 4, 5, 0x88, 0xcc},
	"spanning tree": {1, 0x80, 0xc2, 0, 0, 0, 2, 1, 2, 3, 4, 5, 0, 38, 0x42, 0x42, 3},
	"pause":         {1, 0x80, 0xc2, 0, 0, 1, 2, 1, 2, 3, 4, 5, 0x88, 8, 0, 1, 0xff, 0xff},
	"LACP":          {1, 0x80, 0xc2, 0, 0, 2, 2, 1, 2, 3, 4, 5, 0x88, 9, 1},
}, map[string][]byte{
	"VLAN":             {2, 9, 9, 9, 9, 9, 2, 1, 2, 3, 4, 5, 0x81, 0, 0x60, 5, 0x08, 0},
	"VLAN in VLAN":     {2, 9, 9, 9, 9, 9, 2, 1, 2, 3, 4, 5, 0x88, 0xa8, 0, 7, 0x81, 0, 0x60, 5, 0x86, 0xdd},
	"unknown protocol": {2, 9, 9, 9, 9, 9, 2, 1, 2, 3, 4, 5, 0x9a, 0xbc},
	"broadcast":        {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1, 2, 3, 4, 5, 0x9a, 0xbc},
}

// transparent checks that every frame from one of two hosts comes out at the other
// as it went in, once, and does not come back.
func transparent(t *testing.T, a, b *NS, all ...map[string][]byte) {
	t.Helper()
	ends := []int{packets(t, a), packets(t, b)}
	stranger := []byte{2, 1, 2, 3, 4, 5}
	for _, heads := range all {
		for name, head := range heads {
			for from := range 2 {
				frame := append(bytes.Clone(head), name...)
				frame = append(frame, make([]byte, max(0, 60-len(frame)))...)
				_, err := unix.Write(ends[from], frame)
				noError(t, err)
				if got := receive(t, ends[1-from], stranger); !bytes.Equal(got, frame) {
					t.Errorf("%s from end %d: got % x, want % x", name, from, got, frame)
				}
			}
		}
	}
	tv := unix.NsecToTimeval(int64(50 * time.Millisecond))
	for _, fd := range ends {
		noError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
		if got := receive(t, fd, stranger); got != nil {
			t.Errorf("came twice, or back: % x", got)
		}
	}
}

func TestPatchIsTransparent(t *testing.T) {
	panel, a, b := patched(t)
	transparent(t, a, b, reserved, plain)
	wantShape(t, "port", panel, 11, "p1 bpf 6d75\np1 clsact ffff")
	noError(t, errors.Join(panel.ShapeOut(11, Impair{Rate: 1e8}), panel.ShapeOut(12, Impair{Rate: 1e8, Loss: 1e-9})))
	transparent(t, a, b, reserved, plain)
}

// The way through an ifb changes nothing in a frame.
func TestShapeIsTransparent(t *testing.T) {
	sw, a, b := switched(t)
	for _, port := range []int{11, 12} {
		noError(t, errors.Join(sw.ShapeIn(port, Impair{Rate: 1e8}), sw.ShapeOut(port, Impair{Rate: 1e8})))
	}
	transparent(t, a, b, plain)
}

func TestPatchPing(t *testing.T) {
	_, a, _ := patched(t)
	noError(t, a.Do(func() error {
		out, err := exec.Command("ping", "-c", "2", "-i", "0.2", "-W", "2", "-s", "1472", "-M", "do", "10.0.0.2").CombinedOutput()
		if err != nil {
			t.Logf("%s", out)
		}
		return err
	}))
}

// What leaves a port is what the other end's sender has sent: each direction is
// shaped by itself, by every means the kernel has.
func TestPatchShaped(t *testing.T) {
	panel, a, b := patched(t)
	f := newStream(t, a, b)
	const n = 5000
	noError(t, errors.Join(panel.ShapeOut(12, Impair{Loss: 10}), panel.ShapeOut(11, Impair{Rate: 1e9})))
	loses(t, "a to b", f, 10, n)
	noError(t, errors.Join(panel.ShapeOut(11, Impair{Loss: 100}), panel.ShapeOut(12, Impair{Rate: 1e9})))
	loses(t, "a to b, b to a lost", f, 0, n)
	noError(t, panel.ShapeOut(11, Impair{}))
	noError(t, panel.ShapeOut(12, Impair{Rate: 50_000_000}))
	within(t, "a to b", 50e6, 0.03, func() float64 { return tcpRate(t, a, b, time.Second) })
	noError(t, panel.ShapeOut(12, Impair{}))
	loses(t, "nothing shaped: still patched", f, 0, n)
	wantShape(t, "port", panel, 11, "p1 bpf 6d75\np1 clsact ffff")

	if err := panel.ShapeIn(11, Impair{Rate: 1e6}); err == nil {
		t.Error("what comes in at a patch's end was shaped")
	}
	wantShape(t, "refused", panel, 11, "p1 bpf 6d75\np1 clsact ffff")
	noError(t, panel.Patch(11, 12)) // again
	wantShape(t, "patched again", panel, 11, "p1 bpf 6d75\np1 clsact ffff")
	loses(t, "patched again", f, 0, n)
}

// A cable that is held carries nothing, either way, and has its carrier all the while.
func TestPatchHold(t *testing.T) {
	panel, a, b := patched(t)
	ping := func() error {
		return a.Do(func() error { return exec.Command("ping", "-c", "1", "-W", "1", "10.0.0.2").Run() })
	}
	noError(t, ping())
	for _, end := range []int{11, 12} {
		noError(t, panel.HoldPatch(end, true))
		noError(t, panel.HoldPatch(end, true))
		if ping() == nil {
			t.Errorf("held at %d, and answers come", end)
		}
		for _, ns := range []*NS{a, b} {
			links, err := ns.Links()
			noError(t, err)
			for _, l := range links {
				if l.Name == "eth0" && !l.Up {
					t.Error("no carrier")
				}
			}
		}
		noError(t, panel.HoldPatch(end, false))
		noError(t, panel.HoldPatch(end, false))
		noError(t, ping())
	}
	wantShape(t, "port", panel, 11, "p1 bpf 6d75\np1 clsact ffff")
}

func TestPatchErrors(t *testing.T) {
	panel := bareHost(t)
	a, b := bareHost(t), bareHost(t)
	plugIn(t, panel, 0, a, b)
	if panel.Patch(11, 11) == nil || panel.Patch(11, 99) == nil || panel.Patch(99, 11) == nil {
		t.Error("a patch of one end: no error")
	}
	wantShape(t, "half a patch", panel, 11, "")
	noError(t, panel.ShapeIn(12, Impair{Rate: 1e6}))
	if panel.Patch(11, 12) == nil {
		t.Error("a patch whose end is shaped as it comes in: no error")
	}
	noError(t, panel.ShapeIn(12, Impair{}))
	wantShape(t, "half a patch", panel, 11, "")
}

// BenchmarkCable compares a patch with a veth pair that joins the hosts directly,
// with a switch, and with a patch by mirred: TCP's throughput, and the time of a
// datagram there and back.
func BenchmarkCable(b *testing.B) {
	for _, c := range []struct {
		name string
		make func() (*NS, *NS)
	}{
		{"veth", func() (*NS, *NS) { return cabled(b) }},
		{"patch", func() (*NS, *NS) { _, x, y := patched(b); return x, y }},
		{"mirred", func() (*NS, *NS) {
			panel, x, y := bareHost(b), bareHost(b), bareHost(b)
			plugIn(b, panel, 0, x, y)
			h, err := panel.Route()
			noError(b, err)
			for _, p := range [][2]int{{11, 12}, {12, 11}} {
				noError(b, panel.addHooks(p[0]))
				noError(b, h.FilterAdd(&netlink.U32{
					FilterAttrs: netlink.FilterAttrs{LinkIndex: p[0], Parent: ingress, Priority: 1, Protocol: unix.ETH_P_ALL},
					Actions:     []netlink.Action{netlink.NewMirredAction(p[1])},
				}))
			}
			return x, y
		}},
		{"switch", func() (*NS, *NS) { _, x, y := switched(b); return x, y }},
	} {
		b.Run(c.name, func(b *testing.B) {
			x, y := c.make()
			f := newStream(b, x, y)
			f.in.SetReadDeadline(time.Time{})
			echo := make(chan struct{})
			go func() {
				defer close(echo)
				buf := make([]byte, 100)
				for {
					n, from, err := f.in.ReadFrom(buf)
					if err != nil {
						return
					}
					f.in.WriteTo(buf[:n], from)
				}
			}()
			buf := make([]byte, 100)
			for b.Loop() {
				f.out.Write(buf)
				if _, err := f.out.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			f.in.SetReadDeadline(time.Now())
			<-echo
			b.ReportMetric(tcpRate(b, x, y, 2*time.Second)/1e9, "gbit/s")
		})
	}
}
