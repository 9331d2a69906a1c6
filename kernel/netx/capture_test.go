package netx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCapture(t *testing.T) {
	a, b := cable(t)
	send := sender(t, a, 5)
	path := filepath.Join(t.TempDir(), "x.pcap")
	before := time.Now()
	c, err := b.Capture("eth0", CaptureOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	// It has begun, and what was sent before Stop is in the file.
	for i := range 1000 {
		send(frame(fmt.Sprint(i)))
	}
	s, err := c.Stop()
	if err != nil || s != (CaptureStats{Packets: 1000}) {
		t.Errorf("got %+v, %v, want 1000 packets", s, err)
	}
	send(frame("late"))
	snaplen, all := readPcap(t, path)
	if snaplen != 262144 || len(all) != 1000 {
		t.Fatalf("got a snaplen of %d and %d packets, want 262144 and 1000", snaplen, len(all))
	}
	for i, r := range all {
		if want := frame(fmt.Sprint(i)); !bytes.Equal(r.data, want) || r.had != len(want) {
			t.Fatalf("packet %d: got %d bytes of %d, % x, want % x", i, len(r.data), r.had, r.data, want)
		}
		if r.when.Before(before.Add(-time.Second)) || r.when.After(time.Now().Add(time.Second)) {
			t.Errorf("packet %d: came at %v", i, r.when)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o644 {
		t.Errorf("got the mode %v, %v", st.Mode(), err)
	}
	if again, err := c.Stop(); again != s || err != nil {
		t.Errorf("stopped again: got %+v, %v", again, err)
	}
	if err := c.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("tcpdump", "--count", "-r", path).Output(); err != nil || string(out) != "1000 packets\n" {
		t.Errorf("tcpdump: %v, %s", err, out)
	}
}

func TestCaptureBothWays(t *testing.T) {
	a, b := cable(t)
	out, in := sender(t, a, 5), sender(t, b, 6)
	all := captured(t, a, "eth0", CaptureOptions{}, func() { out(frame("out")); in(frame("in")) })
	if len(all) != 2 || !bytes.Equal(all[0].data, frame("out")) || !bytes.Equal(all[1].data, frame("in")) {
		t.Errorf("got %v", all)
	}
	// By the loopback each packet goes once, though it goes out and comes in.
	if err := a.SetUp(1, true); err != nil {
		t.Fatal(err)
	}
	all = captured(t, a, "lo", CaptureOptions{}, func() {
		if err := a.Do(func() error {
			c, err := net.Dial("udp", "127.0.0.1:9")
			if err == nil {
				_, err = c.Write([]byte("hello"))
				c.Close()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
	if len(all) != 2 || len(all[0].data) != 14+28+5 || all[1].data[23] != 1 { // and ICMP's port unreachable
		t.Errorf("by the loopback: got %d packets: %v", len(all), all)
	}
}

func TestCaptureSnaplenAndCount(t *testing.T) {
	a, b := cable(t)
	send := sender(t, a, 5)
	for _, filter := range []string{"", "ether proto 0x88b5"} {
		path := filepath.Join(t.TempDir(), "x.pcap")
		if err := os.WriteFile(path, bytes.Repeat([]byte("old"), 1000), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := b.Capture("eth0", CaptureOptions{Path: path, Snaplen: 20, Count: 3, Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			send(frame("0123456789"))
		}
		short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if err := c.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with two of three: got %v", err)
		}
		cancel()
		for range 5 {
			send(frame("0123456789"))
		}
		if err := c.Wait(context.Background()); err != nil {
			t.Error(err)
		}
		<-c.Done()
		s, err := c.Stop()
		snaplen, all := readPcap(t, path)
		if err != nil || s.Packets != 3 || len(all) != 3 || snaplen != 20 {
			t.Errorf("got %+v, %v, %d packets in the file, want 3 of at most 20 bytes", s, err, len(all))
		}
		for _, r := range all {
			if len(r.data) != 20 || r.had != 24 {
				t.Errorf("got %d bytes of %d, want 20 of 24", len(r.data), r.had)
			}
		}
	}
}

func TestCaptureFilter(t *testing.T) {
	a, b := cable(t)
	send := sender(t, a, 5)
	tagged := func(vlan byte, text string) []byte {
		f := frame(text)
		return append(append(bytes.Clone(f[:12]), 0x81, 0, 0xa0, vlan), f[12:]...)
	}
	for _, c := range []struct {
		filter string
		want   [][]byte
	}{
		{"udp port 53", [][]byte{udp(53, 5)}},
		{"udp and not port 53", [][]byte{udp(80, 5)}},
		{"  ", [][]byte{udp(53, 5), udp(80, 5), frame("x"), tagged(7, "seven"), tagged(8, "eight")}},
		// The tags are put back, the priority too; tcpdump looks for them where the kernel has them.
		{"vlan 7", [][]byte{tagged(7, "seven")}},
		{"greater 4000", nil},
	} {
		all := captured(t, b, "eth0", CaptureOptions{Filter: c.filter}, func() {
			for _, f := range [][]byte{udp(53, 5), udp(80, 5), frame("x"), tagged(7, "seven"), tagged(8, "eight")} {
				send(f)
			}
		})
		var got [][]byte
		for _, r := range all {
			if r.had != len(r.data) {
				t.Errorf("%s: %d bytes of %d", c.filter, len(r.data), r.had)
			}
			got = append(got, r.data)
		}
		if len(got) != len(c.want) || !bytes.Equal(bytes.Join(got, nil), bytes.Join(c.want, nil)) {
			t.Errorf("%q: got % x\nwant % x", c.filter, got, c.want)
		}
	}
	// A tag and a snaplen that cuts it, or what follows.
	for _, snaplen := range []int{11, 12, 14, 17} {
		all := captured(t, b, "eth0", CaptureOptions{Snaplen: snaplen}, func() { send(tagged(7, "seven")) })
		if len(all) != 1 || !bytes.Equal(all[0].data, tagged(7, "seven")[:snaplen]) {
			t.Errorf("a snaplen of %d: got %v", snaplen, all)
		}
	}
}

func TestCaptureNothingUnfiltered(t *testing.T) {
	a, b := cable(t)
	send := sender(t, a, 5)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				send(frame("noise"))
			}
		}
	}()
	for range 5 {
		if all := captured(t, b, "eth0", CaptureOptions{Filter: "udp port 53"}, func() { send(udp(53, 0)) }); len(all) != 1 {
			t.Errorf("got %d packets, want 1", len(all))
		}
	}
	close(stop)
	<-ended
}

func TestCaptureErrors(t *testing.T) {
	a, _ := cable(t)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "x.pcap")
	fds := openFDs(t)
	for _, c := range []struct {
		link string
		o    CaptureOptions
		want string
	}{
		{"eth9", CaptureOptions{Path: file}, "there are eth0, lo"},
		{"eth0", CaptureOptions{Path: dir}, "want a regular file"},
		{"eth0", CaptureOptions{Path: fifo}, "want a regular file"},
		{"eth0", CaptureOptions{Path: "/dev/null"}, "want a regular file"},
		{"eth0", CaptureOptions{Path: filepath.Join(dir, "no", "file")}, "no such file"},
		{"eth0", CaptureOptions{Path: file, Filter: "prot tcp"}, `filter "prot tcp": can't parse filter expression: syntax error`},
		{"eth0", CaptureOptions{Path: file, Filter: "-w /tmp/x"}, "syntax error"},
		{"eth0", CaptureOptions{Path: file, Filter: "tcp\x00"}, "NUL"},
		{"eth0", CaptureOptions{Path: file, Snaplen: -1}, "want 1 to 262144"},
		{"eth0", CaptureOptions{Path: file, Snaplen: 262145}, "want 1 to 262144"},
		{"eth0", CaptureOptions{Path: file, Count: -1}, "count"},
	} {
		if _, err := a.Capture(c.link, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: got %v, want %q", c.link, c.o, err, c.want)
		}
	}
	t.Setenv("PATH", dir)
	if _, err := a.Capture("eth0", CaptureOptions{Path: file, Filter: "tcp"}); err == nil || !strings.Contains(err.Error(), "install the package tcpdump") {
		t.Errorf("without tcpdump: got %v", err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("what failed has left a file")
	}
	if now := openFDs(t); now > fds+2 { // a's own netlink socket
		t.Errorf("%d descriptors are open, %d were before", now, fds)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestCaptureInterfaceComesAndGoes(t *testing.T) {
	a, b := cable(t)
	send := sender(t, a, 5)
	if err := b.SetUp(6, false); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.pcap")
	c, err := b.Capture("eth0", CaptureOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	// Down at first, and between. The cable is not there at once each time.
	for range 3 {
		if err := b.SetUp(6, true); err != nil {
			t.Fatal(err)
		}
		before := size()
		eventually(t, "a packet is in the file", func() bool { send(frame("x")); return size() > before })
		if err := b.SetUp(6, false); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-c.Done():
		t.Error("it ended when the interface was taken down")
	default:
	}
	if err := b.Delete(6); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	s, err := c.Stop()
	if err == nil || !strings.Contains(err.Error(), "eth0: the interface has gone") || s.Packets < 3 {
		t.Errorf("got %+v, %v, want at least 3 packets and an error", s, err)
	}
	if err := c.Wait(context.Background()); err == nil {
		t.Error("Wait does not tell")
	}
	if _, all := readPcap(t, path); uint64(len(all)) != s.Packets {
		t.Errorf("got %d packets in the file, want %d", len(all), s.Packets)
	}
}

func TestCaptureFullDisk(t *testing.T) {
	a, b := cable(t)
	send := sender(t, a, 5)
	c, err := b.Capture("eth0", CaptureOptions{Path: filepath.Join(t.TempDir(), "x.pcap")})
	if err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	out, err := c.out.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Control(func(fd uintptr) { err = unix.Dup3(int(full.Fd()), int(fd), unix.O_CLOEXEC) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	send(frame("x"))
	<-c.Done()
	if _, err := c.Stop(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
}

// TestCaptureSwitch hears each frame once, though it comes in by one port, goes out
// by others, and comes to the bridge itself.
func TestCaptureSwitch(t *testing.T) {
	sw, err := MakeSwitch("lan", 1500)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sw.Close)
	var send []func([]byte)
	for i := range 3 {
		ns := makeNS(t)
		if err := ns.Do(func() error { return WriteSysctl("net.ipv6.conf.default.disable_ipv6", "1") }); err != nil {
			t.Fatal(err)
		}
		if err := sw.AddVeth(Veth{End: End{Name: fmt.Sprint("p", i), Index: 10 + i}, Master: BridgeIndex, Up: true, Far: End{Name: "eth0", Index: 5}, FarNS: ns}); err != nil {
			t.Fatal(err)
		}
		if err := ns.SetUp(5, true); err != nil {
			t.Fatal(err)
		}
		send = append(send, sender(t, ns, 5))
	}
	for _, filter := range []string{"", "ether proto 0x88b5"} {
		all := captured(t, sw, "", CaptureOptions{Except: BridgeIndex, Filter: filter}, func() {
			for i, f := range send {
				b := frame(fmt.Sprint("to all, from ", i))
				copy(b, []byte{255, 255, 255, 255, 255, 255})
				f(b)
			}
		})
		var got []string
		for _, r := range all {
			got = append(got, string(r.data[14:]))
		}
		if want := "to all, from 0|to all, from 1|to all, from 2"; strings.Join(got, "|") != want {
			t.Errorf("got %q, want %q", strings.Join(got, "|"), want)
		}
	}
}

// TestCaptureLeavesNothing starts and ends many, in every way.
func TestCaptureLeavesNothing(t *testing.T) {
	a, b := cable(t)
	send := sender(t, a, 5)
	dir := t.TempDir()
	once := func(i int) {
		c, err := b.Capture("eth0", CaptureOptions{Path: filepath.Join(dir, "x.pcap"), Count: i % 2})
		if err != nil {
			t.Fatal(err)
		}
		send(frame("x"))
		if i%2 == 1 {
			if err := c.Wait(context.Background()); err != nil {
				t.Error(err)
			}
			return
		}
		go c.Stop() // at the same time as below
		if s, err := c.Stop(); err != nil || s.Packets != 1 {
			t.Errorf("got %+v, %v", s, err)
		}
	}
	once(0)
	runtime.GC()
	fds, routines := openFDs(t), runtime.NumGoroutine()
	for i := range 20 {
		once(i)
	}
	eventually(t, "its goroutines have ended", func() bool { return runtime.NumGoroutine() <= routines })
	if now := openFDs(t); now > fds {
		t.Errorf("%d descriptors are open, %d were before", now, fds)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil || bytes.Contains(maps, []byte("socket:[")) {
		t.Errorf("a ring is still mapped: %v\n%s", err, maps)
	}
}

// TestV2Capture is TestCapture in small on another kernel, with what a capture in a
// machine of its own needs: no tcpdump.
func TestV2Capture(t *testing.T) {
	a, b := cable(t)
	send := sender(t, a, 5)
	all := captured(t, b, "eth0", CaptureOptions{}, func() {
		for i := range 50 {
			send(frame(fmt.Sprint(i)))
		}
	})
	if len(all) != 50 || !bytes.Equal(all[49].data, frame("49")) {
		t.Errorf("got %d packets, want 50", len(all))
	}
}
