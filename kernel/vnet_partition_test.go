package kernel

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// line is a TCP connection between two machines.
type line struct{ from, to net.Conn }

func connect(t *testing.T, from, to *Machine, address string) *line {
	t.Helper()
	var l line
	var listener *net.TCPListener
	a := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 7))
	err := ownNet(t, to).Do(func() (err error) { listener, err = net.ListenTCP("tcp", a); return err })
	if err == nil {
		defer listener.Close()
		err = ownNet(t, from).Do(func() (err error) { l.from, err = net.DialTCP("tcp", nil, a); return err })
	}
	if err == nil {
		l.to, err = listener.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.from.Close(); l.to.Close() })
	return &l
}

// carries tells whether a text arrives within a time.
func (l *line) carries(t *testing.T, text string, within time.Duration) bool {
	t.Helper()
	if _, err := io.WriteString(l.from, text); err != nil {
		t.Fatal(err)
	}
	return l.arrives(t, text, within)
}

func (l *line) arrives(t *testing.T, text string, within time.Duration) bool {
	t.Helper()
	l.to.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, len(text))
	n, err := io.ReadFull(l.to, b)
	if err == nil {
		want(t, "what has come through", text, string(b))
		return true
	}
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%q, %v", b[:n], err)
	}
	return false
}

// Partitioned, connections stall; healed, they go on.
func TestVNetPartition(t *testing.T) {
	l := netLab(t)
	v := makeVNet(t, l, l.Host(), &VNetSpec{Name: "lan"}, "10.0.0.0/24", "fd00::/64")
	var m []*Machine
	for _, name := range []string{"a", "b", "c"} {
		m = append(m, forkNamed(t, l, name, on(v)))
	}
	for _, m := range m {
		pings(t, m, "10.0.0.1", "10.0.0.2", "10.0.0.3")
	}
	four, six := connect(t, m[0], m[2], "10.0.0.3"), connect(t, m[2], m[0], "fd00::1")
	for _, c := range []*line{four, six} {
		want(t, "while it is whole", true, c.carries(t, "one", long))
	}
	if err := v.Partition([][]string{{"a", "b"}, {"c"}}); err != nil {
		t.Fatal(err)
	}
	pings(t, m[0], "10.0.0.2", "fd00::2")
	cannotReach(t, m[2], "10.0.0.1", "fd00::2")
	// Who comes now is in no group, and so in the last one.
	d := forkNamed(t, l, "d", on(v))
	cannotReach(t, d, "10.0.0.1", "10.0.0.3")
	e := forkNamed(t, l, "e", space("netspace"))
	if _, err := v.Attach(t.Context(), e, &Netif{}); err != nil {
		t.Fatal(err)
	}
	pings(t, e, addressOf(t, d, "eth0"))
	cannotReach(t, e, "10.0.0.2")
	// And who comes back is where it was.
	destroy(t, m[1])
	back := forkNamed(t, l, "b", on(v))
	pings(t, back, "10.0.0.1")
	cannotReach(t, back, "10.0.0.3")

	for _, c := range []struct {
		want   string
		groups [][]string
	}{
		{"partition: groups: got \"none\", want at least one list of machines", nil},
		{`partition: groups: got "x", want a machine that is on lan`, [][]string{{"a"}, {"x"}}},
		{`partition: groups: got "a", want it in one group; it is in 1 and 2`, [][]string{{"a"}, {"a"}}},
	} {
		err := v.Partition(c.groups)
		if err == nil {
			t.Fatalf("%v should have been refused", c.groups)
		}
		want(t, "error", c.want, err.Error())
	}
	cannotReach(t, m[2], "10.0.0.1") // still
	for _, c := range []*line{four, six} {
		want(t, "while it is split", false, c.carries(t, "two", 100*time.Millisecond))
	}

	if err := v.Partition([][]string{{"a", "c"}}); err != nil { // in the place of the first
		t.Fatal(err)
	}
	want(t, "together again", true, four.arrives(t, "two", long))
	want(t, "together again, by IPv6", true, six.arrives(t, "two", long))
	cannotReach(t, back, "10.0.0.1")
	for range 2 {
		if err := v.Heal(); err != nil {
			t.Fatal(err)
		}
	}
	pings(t, back, "10.0.0.1", "10.0.0.3", addressOf(t, d, "eth0"))
	want(t, "healed", true, four.carries(t, "three", long))
}
