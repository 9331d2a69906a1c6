package netx

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// record is a packet of a pcap file.
type record struct {
	when time.Time
	had  int
	data []byte
}

// readPcap reads a file on its own account, by the letter of pcap-savefile(5).
func readPcap(t *testing.T, path string) (snaplen int, all []record) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) < 24 || !bytes.Equal(b[:16], []byte{0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}) || !bytes.Equal(b[20:24], []byte{1, 0, 0, 0}) {
		t.Fatalf("%s: no pcap header: % x", path, b[:min(len(b), 24)])
	}
	u32 := binary.LittleEndian.Uint32
	snaplen = int(u32(b[16:]))
	for b = b[24:]; len(b) > 0; {
		if len(b) < 16 || len(b) < 16+int(u32(b[8:])) {
			t.Fatalf("%s: ends with %d bytes of a record", path, len(b))
		}
		n := int(u32(b[8:]))
		all = append(all, record{time.Unix(int64(u32(b)), int64(u32(b[4:]))), int(u32(b[12:])), b[16:][:n]})
		b = b[16+n:]
	}
	return snaplen, all
}

// cable makes two namespaces with a veth between them, eth0 number 5 and eth0
// number 6, up, without IPv6: nothing passes that is not sent.
func cable(t *testing.T) (a, b *NS) {
	t.Helper()
	quiet := func() *NS {
		ns, err := Make(func() error { return WriteSysctl("net.ipv6.conf.all.disable_ipv6", "1") })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ns.Close)
		if err := ns.Do(func() error { return WriteSysctl("net.ipv6.conf.default.disable_ipv6", "1") }); err != nil {
			t.Fatal(err)
		}
		return ns
	}
	a, b = quiet(), quiet()
	if err := a.AddVeth(Veth{End: End{Name: "eth0", Index: 5, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 5}}, Far: End{Name: "eth0", Index: 6, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 6}}, FarNS: b}); err != nil {
		t.Fatal(err)
	}
	dressed(t, a, 5, "10.0.0.1/24")
	dressed(t, b, 6, "10.0.0.2/24")
	return a, b
}

// sender is a socket that sends frames as they are.
func sender(t *testing.T, ns *NS, index int) func(frame []byte) {
	t.Helper()
	fd := -1
	if err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func(frame []byte) {
		t.Helper()
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
			t.Fatal(err)
		}
	}
}

// frame is one from number 5 to number 6, of an Ethernet type that nobody takes.
func frame(text string) []byte {
	return append([]byte{2, 0, 0, 0, 0, 6, 2, 0, 0, 0, 0, 5, 0x88, 0xb5}, text...)
}

// udp is a datagram to a port, with as many bytes of data.
func udp(port uint16, size int) []byte {
	b := []byte{2, 0, 0, 0, 0, 6, 2, 0, 0, 0, 0, 5, 8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[16:], uint16(28+size))
	binary.BigEndian.PutUint16(b[36:], port)
	binary.BigEndian.PutUint16(b[38:], uint16(8+size))
	return append(b, make([]byte, size)...)
}

// captured runs a capture around f and reads its file.
func captured(t *testing.T, ns *NS, link string, o CaptureOptions, f func()) []record {
	t.Helper()
	o.Path = filepath.Join(t.TempDir(), "x.pcap")
	c, err := ns.Capture(link, o)
	if err != nil {
		t.Fatal(err)
	}
	f()
	s, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	_, all := readPcap(t, o.Path)
	if s.Packets != uint64(len(all)) || s.Dropped != 0 {
		t.Errorf("got %+v, and %d packets in the file", s, len(all))
	}
	return all
}
