package kernel

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"msh/kernel/criu"
)

// streaming is a server that sends a sequence of numbers to whoever connects, and a
// client that checks each: bytes lost, doubled or changed are seen.
const streaming = `
import socket, struct, sys, time
if sys.argv[1] == "serve":
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("0.0.0.0", 7000)); s.listen()
    while True:
        try:
            c, _ = s.accept()
            open("/state", "w").write("connected\n")
            n = 0
            while True:
                c.sendall(struct.pack("!Q", n) * 64); n += 1
                time.sleep(0.0005)
        except OSError as e:
            open("/state", "w").write("%s\n" % e)
c = socket.create_connection((sys.argv[2], 7000))
n = 0
while True:
    b = b""
    while len(b) < 512:
        d = c.recv(512 - len(b))
        if not d: open("/got", "w").write("closed after %d\n" % n); sys.exit()
        b += d
    if b != struct.pack("!Q", n) * 64: open("/got", "w").write("wrong at %d: %r\n" % (n, b)); sys.exit()
    n += 1
    if n % 20 == 0: open("/got", "w").write("%d\n" % n)
`

func onNet(t *testing.T, l *Lab, v *VNet, name string) *Machine {
	t.Helper()
	return forkCalled(t, l, name, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Netif{VNet: v.Name()})
}

func forkCalled(t *testing.T, l *Lab, name string, rs ...Resource) *Machine {
	t.Helper()
	m, err := l.Fork(t.Context(), l.Host(), &Spec{Name: name, Resources: rs})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func streamer(t *testing.T, m *Machine, role, server string) {
	t.Helper()
	writeIn(t, m, "/stream.py", streaming)
	started(t, m, fmt.Sprintf("exec python3 /stream.py %s %s", role, server))
}

// got waits until a client has checked more than n numbers, and returns how many.
func got(t *testing.T, m *Machine, n int) (k int) {
	t.Helper()
	for end := time.Now().Add(long); ; time.Sleep(5 * time.Millisecond) {
		text := readIn(t, m, "/got")
		if text != "" {
			if _, err := fmt.Sscan(text, &k); err != nil {
				t.Fatalf("the client: %s", text)
			}
		}
		if k > n {
			return k
		}
		if time.Now().After(end) {
			t.Fatalf("the client stands at %d, log %s", k, readIn(t, m, "/log"))
		}
	}
}

// pair are a server and its client on one network.
func pair(t *testing.T, l *Lab) (v *VNet, server, client *Machine) {
	t.Helper()
	v, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", Subnets: prefixes("10.7.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	server, client = onNet(t, l, v, "server"), onNet(t, l, v, "client")
	streamer(t, server, "serve", "")
	if err := server.WaitPort(t.Context(), 7000, long); err != nil {
		t.Fatal(err)
	}
	streamer(t, client, "get", server.Address())
	eventuallyIn(t, client, "/got", "0")
	got(t, client, 100)
	return v, server, client
}

// A connection goes on, whichever end hibernates, and through a snapshot of both.
func TestHibernateTCP(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	_, server, client := pair(t, l)
	for range 2 {
		file := hibernate(t, server)
		time.Sleep(50 * time.Millisecond) // nobody may answer for it meanwhile
		server = wakeUp(t, l, file, WakeOptions{})
		got(t, client, got(t, client, 0)+200)
		file = hibernate(t, client)
		client = wakeUp(t, l, file, WakeOptions{})
		got(t, client, got(t, client, 0)+200)
	}
	if _, err := server.Snapshot(t.Context(), filepath.Join(t.TempDir(), "s"), SnapshotOptions{}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	got(t, client, got(t, client, 0)+200)
	if a := server.Address(); a != "10.7.0.1" {
		t.Errorf("address %s", a)
	}
}

// A second one beside the first has another name and address, and the connections
// that it had are closed.
func TestWakeTwice(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	_, server, client := pair(t, l)
	file := filepath.Join(t.TempDir(), "server.msh")
	if _, err := server.Snapshot(t.Context(), file, SnapshotOptions{}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	for _, o := range []WakeOptions{{}, {Name: "copy"}, {Name: "copy", Fresh: true}} {
		if m, err := l.WakeFile(t.Context(), file, o); err == nil {
			t.Fatalf("%+v: woken as %s beside the first", o, m[0].Name())
		} else if o.Fresh && !strings.Contains(err.Error(), "established") {
			t.Error(err)
		}
	}
	w := wakeUp(t, l, file, WakeOptions{Name: "copy", Fresh: true, TCP: criu.TCPClose})
	if w.Address() == server.Address() || w.Netifs()[0].HardwareAddr == server.Netifs()[0].HardwareAddr {
		t.Errorf("the copy's address is %s, %s", w.Address(), w.Netifs()[0].HardwareAddr)
	}
	c2 := onNet(t, l, l.FindVNet("lan"), "second")
	streamer(t, c2, "get", w.Address())
	eventuallyIn(t, c2, "/got", "0")
	got(t, c2, 100)
	got(t, client, got(t, client, 0)+200)
	if out := output(t, w, "hostname -I; getent hosts copy"); !strings.Contains(out, w.Address()) {
		t.Errorf("in the copy: %s", out)
	}
}

// All machines of a lab at one instant, woken in another lab with the networks made
// anew.
func TestLabSnapshot(t *testing.T) {
	needCriu(t)
	h := newHost(t)
	l := labOn(t, h, "")
	_, server, client := pair(t, l)
	file := filepath.Join(t.TempDir(), "lab.msh")
	if _, err := SnapshotFile(t.Context(), file, []*Machine{server, client}, SnapshotOptions{}); err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	got(t, client, got(t, client, 0)+200)
	l2 := labOn(t, h, "-2")
	all, err := l2.WakeFile(t.Context(), file, WakeOptions{})
	if err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	got(t, all[1], got(t, all[1], 0)+200)
	got(t, client, got(t, client, 0)+200)
	if _, err := SnapshotFile(t.Context(), file, all, SnapshotOptions{Hibernate: true}); err != nil {
		t.Fatal(err)
	}
	if all, err = l2.WakeFile(t.Context(), file, WakeOptions{}); err != nil {
		t.Fatal(err)
	}
	got(t, all[1], got(t, all[1], 0)+200)
}

// What programs inside have made of the network is there again: addresses, routes,
// forwarding. An interface that they have made is refused.
func TestHibernateRouter(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	v, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", Subnets: prefixes("10.7.0.0/24", "fd07::/64")})
	if err != nil {
		t.Fatal(err)
	}
	m := onNet(t, l, v, "router")
	output(t, m, "ip addr add 10.8.0.1/24 dev eth0; ip route add 10.99.0.0/16 via 10.8.0.9 metric 7; ip link set eth0 mtu 1400; echo 1 >/proc/sys/net/ipv4/ip_forward; ip -6 route add fd99::/48 via fd07::9")
	const look = "ip -br addr show dev eth0 | sed s/@.*UP// ; ip route; ip -6 route show fd99::/48; cat /proc/sys/net/ipv4/ip_forward; ip link show eth0 | grep -o 'mtu [0-9]*'; ip link show eth0 | grep ether"
	before := output(t, m, look)
	if !strings.Contains(before, "10.99.0.0/16") || !strings.Contains(before, "fd99::/48") || !strings.Contains(before, "10.8.0.1/24") {
		t.Fatalf("not set up: %s", before)
	}
	w := wakeUp(t, l, hibernate(t, m), WakeOptions{})
	if after := output(t, w, look); after != before {
		t.Errorf("woken:\n%swant\n%s", after, before)
	}
	output(t, w, "ip link add br0 type bridge; nft add table inet wall")
	_, err = w.Snapshot(t.Context(), filepath.Join(t.TempDir(), "s"), SnapshotOptions{})
	if err == nil || !strings.Contains(err.Error(), "made the interface br0, the packet filter's table inet wall") {
		t.Errorf("error %v", err)
	}
}
