package kernel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
)

// knocker is a server that answers on a socket that it had before it was saved, with
// where a socket that it makes then is bound, and whether another address is refused.
const knocker = `
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", 80)); s.listen()
had = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
open("/ready", "w").write("yes")
while True:
    c, _ = s.accept()
    n = socket.socket(); n.bind(("0.0.0.0", 0))
    try:
        n.bind(("10.0.0.1", 0)); other = "bound"
    except OSError as e:
        other = e.strerror
    try:
        had.connect(("10.0.0.9", 9)); way = had.getsockname()[0]
    except OSError as e:
        way = e.strerror
    c.sendall(("%s %s %s %d" % (n.getsockname()[0], other, way, had.getsockopt(socket.SOL_SOCKET, 36))).encode()); c.close(); n.close()
`

func sharing(t *testing.T, l *Lab, r Resource) *Machine {
	t.Helper()
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), r)
	writeIn(t, m, "/knocker.py", knocker)
	started(t, m, "exec python3 /knocker.py")
	eventuallyIn(t, m, "/ready", "yes")
	return m
}

// knocked is what a knocker answers to somebody from outside.
func knocked(t *testing.T, other *netx.NS, binary, address string) string {
	t.Helper()
	return knockFrom(t, other, binary, "tcp4|connect "+address+":80|recv")
}

// With netaddr a machine that wakes has its addresses and no others, what ran as well
// as what it starts; its server is there.
func TestHibernateNetaddr(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	own, other := uplink(t)
	before := netState(t, own)
	l := labOn(t, h, "")
	binary := knockBinary(t)
	m := sharing(t, l, addrs("10.0.0.2"))
	said := knocked(t, other, binary, "10.0.0.2")
	file := hibernate(t, m)
	want(t, "hibernated", "ECONNREFUSED; ENOTCONN", knocked(t, other, binary, "10.0.0.2"))
	w := wakeUp(t, l, file, WakeOptions{})
	want(t, "woken", said, knocked(t, other, binary, "10.0.0.2"))
	want(t, "at another", "ECONNREFUSED", knockFrom(t, other, binary, "tcp4|connect 10.0.0.1:80"))
	want(t, "run", "EPERM; ok; 10.0.0.2", knockIn(t, w, binary, "udp4|bind 10.0.0.1:81|bind 0.0.0.0:81|name"))
	want(t, "raw", "EPERM", knockIn(t, w, binary, "raw4|packet 10.0.0.1 10.0.0.9"))
	destroy(t, w)
	want(t, "afterwards", before, netState(t, own))

	// Where it has no such address it does not wake, and nothing is left.
	inNS(t, own, "ip", "address", "del", "10.0.0.2/24", "dev", "up0")
	if _, err := l.WakeFile(t.Context(), file, WakeOptions{}); err == nil {
		t.Error("woken without its address")
	} else {
		contains(t, err.Error(), "netaddr: address: got 10.0.0.2")
	}
}

// With routes it has its table again, under the number that its sockets are marked
// with; where that is somebody else's it does not wake.
func TestHibernateRoutes(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	own, other := uplink(t)
	far(t, own, "up1", []string{"10.1.0.1/24"}, []string{"10.1.0.9/24"})
	before := netState(t, own)
	l := labOn(t, h, "")
	binary := knockBinary(t)
	given := &Routes{Routes: []Route{mustRoute("10.0.0.0/24", "", "up0")}}
	m := sharing(t, l, given)
	state, said := netState(t, own), knocked(t, other, binary, "10.0.0.1")
	contains(t, said, fmt.Sprint(" ", firstTable))
	const calls, say = "udp4|connect 10.1.0.9:9|connect 10.0.0.9:9", "EHOSTUNREACH; ok"
	want(t, "run", say, knockIn(t, m, binary, calls))
	file := hibernate(t, m)
	want(t, "hibernated", before, netState(t, own))

	thief := fork(t, l, given)
	if _, err := l.WakeFile(t.Context(), file, WakeOptions{}); err == nil {
		t.Error("woken with another's table")
	} else {
		contains(t, err.Error(), "its sockets have the mark of the table that it had", "machine "+thief.ID()+" has it")
	}
	destroy(t, thief)
	w := wakeUp(t, l, file, WakeOptions{})
	want(t, "woken", state, netState(t, own))
	want(t, "woken, what ran", said, knocked(t, other, binary, "10.0.0.1"))
	want(t, "woken, run", say, knockIn(t, w, binary, calls))
	if _, err := w.Snapshot(t.Context(), filepath.Join(t.TempDir(), "again"), SnapshotOptions{Hibernate: true}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	want(t, "afterwards", before, netState(t, own))
}

// In a network of its own the machine has the routes that it was given and set to, and
// those that a program inside has made.
func TestHibernateRoutesOwn(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	if _, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", Subnets: prefixes("10.7.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Netif{VNet: "lan"}, &Routes{Routes: []Route{mustRoute("192.0.2.0/24", "10.7.0.9", "")}})
	if err := m.Set(&Routes{Routes: []Route{mustRoute("192.0.2.0/24", "10.7.0.8", ""), mustRoute("198.51.100.0/24", "", "eth0")}}); err != nil {
		t.Fatal(err)
	}
	sh(t, m, "ip route add 203.0.113.0/24 via 10.7.0.7; ip route add 203.0.113.0/25 dev eth0 table 7")
	const look = "ip -4 route show table all | sort"
	routes := sh(t, m, look)
	contains(t, routes, "192.0.2.0/24 via 10.7.0.8", "198.51.100.0/24 dev eth0", "203.0.113.0/24 via 10.7.0.7", "table 7")
	w := wakeUp(t, l, hibernate(t, m), WakeOptions{})
	want(t, "woken", routes, sh(t, w, look))
	if err := w.Set(&Routes{Routes: []Route{mustRoute("192.0.2.0/24", "10.7.0.9", "")}}); err != nil {
		t.Fatal(err)
	}
	contains(t, sh(t, w, look), "192.0.2.0/24 via 10.7.0.9", "203.0.113.0/24 via 10.7.0.7")
	c, err := w.Clone(t.Context(), WakeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, sh(t, c, look), "192.0.2.0/24 via 10.7.0.9", "10.7.0.2")
}

// In the host's network a machine cannot be taken off it: a connection goes on whose
// other side keeps still meanwhile, one that is spoken to is ended by the host.
func TestHibernateSharedConnections(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	_, other := uplink(t)
	l := labOn(t, h, "")
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"))
	writeIn(t, m, "/echo.py", `
import socket, threading
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("10.0.0.2", 80)); s.listen()
def echo(c):
    while True: c.sendall(c.recv(100))
open("/ready", "w").write("yes")
while True: threading.Thread(target=echo, args=s.accept()[:1], daemon=True).start()
`)
	started(t, m, "exec python3 /echo.py")
	eventuallyIn(t, m, "/ready", "yes")
	say := func(c net.Conn, text string) error {
		c.SetDeadline(time.Now().Add(long))
		if _, err := c.Write([]byte(text)); err != nil {
			return err
		}
		b := make([]byte, len(text))
		_, err := io.ReadFull(c, b)
		if err == nil && string(b) != text {
			t.Errorf("said %q, heard %q", text, b)
		}
		return err
	}
	var still, spoken net.Conn
	for _, c := range []*net.Conn{&still, &spoken} {
		if err := other.Do(func() (err error) { *c, err = net.Dial("tcp4", "10.0.0.2:80"); return err }); err != nil {
			t.Fatal(err)
		}
		defer (*c).Close()
		if err := say(*c, "before"); err != nil {
			t.Fatal(err)
		}
	}
	file := hibernate(t, m)
	if err := say(spoken, "meanwhile"); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("spoken to: %v", err)
	}
	wakeUp(t, l, file, WakeOptions{})
	if err := say(still, "after"); err != nil {
		t.Errorf("kept still: %v", err)
	}
}
