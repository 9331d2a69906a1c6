package netx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come; the machines that run it
// may be slow. silence is how long it listens for what must not: too short a one
// could hide a fault, but not make one up.
const (
	patience = 20 * time.Second
	silence  = 300 * time.Millisecond
)

// routed is three namespaces in a row: a client, a router that forwards, a server
// that knows no way back to the client.
type routed struct{ client, router, server *NS }

const (
	clientV4, legV4, upV4, serverV4 = "10.1.0.2", "10.1.0.1", "10.2.0.1", "10.2.0.2"
	clientV6, legV6, upV6, serverV6 = "fd01::2", "fd01::1", "fd02::1", "fd02::2"
)

func makeRouted(t *testing.T) routed {
	t.Helper()
	r := routed{makeNS(t), makeNS(t), makeNS(t)}
	cable := func(index int, name string, far *NS) {
		t.Helper()
		must(t, r.router.AddVeth(Veth{End: End{Name: name, Index: index}, Up: true, Far: End{Name: "eth0", Index: 2}, FarNS: far}))
		must(t, far.SetUp(2, true))
	}
	cable(10, "leg", r.client)
	cable(11, "up", r.server)
	for _, a := range []struct {
		ns      *NS
		index   int
		address string
	}{
		{r.client, 2, clientV4 + "/24"}, {r.router, 10, legV4 + "/24"}, {r.router, 11, upV4 + "/24"}, {r.server, 2, serverV4 + "/24"},
		{r.client, 2, clientV6 + "/64"}, {r.router, 10, legV6 + "/64"}, {r.router, 11, upV6 + "/64"}, {r.server, 2, serverV6 + "/64"},
	} {
		must(t, a.ns.AddAddress(a.index, netip.MustParsePrefix(a.address)))
	}
	must(t, r.client.AddDefaultRoute(2, netip.MustParseAddr(legV4)))
	must(t, r.client.AddDefaultRoute(2, netip.MustParseAddr(legV6)))
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := r.router.Forwarding(family, "leg", "up")
		must(t, err)
		must(t, r.router.SetSysctls(list))
	}
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// masqueraded are the networks of the clients.
var masqueraded = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd01::/64")}

// TestMasquerade: a server that knows nothing of the client's network answers all
// the same, and sees the router.
func TestMasquerade(t *testing.T) {
	r := makeRouted(t)
	probes := []struct {
		name   string
		server string
		seen   string
		probe  func(t *testing.T, from, at *NS, server string, wait time.Duration) (string, error)
	}{
		{"tcp4", serverV4, upV4, overTCP}, {"tcp6", serverV6, upV6, overTCP},
		{"udp4", serverV4, upV4, overUDP}, {"udp6", serverV6, upV6, overUDP},
		{"ping4", serverV4, upV4, overPing}, {"ping6", serverV6, upV6, overPing},
	}
	for _, p := range probes {
		if _, err := p.probe(t, r.client, r.server, p.server, silence); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s before: got %v, want no answer", p.name, err)
		}
	}
	// Of another network, and by another interface: no answer still.
	must(t, r.router.Masquerade("msh-other", []netip.Prefix{netip.MustParsePrefix("10.1.0.128/25"), netip.MustParsePrefix("fd01::8000/113")}, "up"))
	must(t, r.router.Masquerade("msh-elsewhere", masqueraded, "leg"))
	for _, p := range probes[2:4] {
		if _, err := p.probe(t, r.client, r.server, p.server, silence); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s with the rules of others: got %v, want no answer", p.name, err)
		}
	}
	for _, p := range probes {
		out := ""
		if strings.HasSuffix(p.name, "4") {
			out = "up"
		}
		must(t, r.router.Masquerade("msh-nat", masqueraded, out))
		t.Run(p.name, func(t *testing.T) {
			seen, err := p.probe(t, r.client, r.server, p.server, patience)
			if err != nil || seen != p.seen {
				t.Errorf("the server saw %q, %v; want %q", seen, err, p.seen)
			}
		})
	}
	for range 2 {
		must(t, r.router.RemoveTable("inet", "msh-nat"))
	}
	if _, err := overUDP(t, r.client, r.server, serverV4, silence); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after: got %v, want no answer", err)
	}
}

// TestMasqueradeTable: the table takes the place of the one before, and leaves
// others alone.
func TestMasqueradeTable(t *testing.T) {
	ns := makeNS(t)
	nft(t, ns, "table inet mine {\n chain c {\n ip saddr 10.0.0.1 accept\n }\n }")
	before := rulesOf(t, ns)
	for _, from := range [][]netip.Prefix{
		{netip.MustParsePrefix("192.0.2.0/24")},
		{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.3.4/32"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("fd01::/48")},
	} {
		for range 2 {
			must(t, ns.Masquerade("msh-nat", from, "eth0"))
		}
	}
	want := before + `table inet msh-nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.1.0.0/16 oifname "eth0" counter packets 0 bytes 0 masquerade
		ip saddr 10.2.3.4 oifname "eth0" counter packets 0 bytes 0 masquerade
		meta nfproto ipv4 oifname "eth0" counter packets 0 bytes 0 masquerade
		ip6 saddr fd01::/48 oifname "eth0" counter packets 0 bytes 0 masquerade
	}
}
`
	if got := rulesOf(t, ns); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for range 2 {
		must(t, ns.RemoveTable("inet", "msh-nat"))
	}
	if got := rulesOf(t, ns); got != before {
		t.Errorf("after: got\n%s\nwant\n%s", got, before)
	}
	if err := ns.Masquerade("x", nil, "sixteen-and-more"); err == nil {
		t.Error("a name of 16 bytes: want an error")
	}
	if err := ns.Masquerade("x", []netip.Prefix{{}}, "eth0"); err == nil {
		t.Error("no prefix: want an error")
	}
	if err := ns.RemoveTable("ipv4", "x"); err == nil || !strings.Contains(err.Error(), `"ipv4"`) {
		t.Errorf("family ipv4: got %v", err)
	}
}

func TestProbes(t *testing.T) {
	must(t, ProbeNAT())
	must(t, ProbePartition())
}

// nft runs commands of nft(8) in the namespace, from a file.
func nft(t *testing.T, ns *NS, commands string) string {
	t.Helper()
	return run(t, ns, commands, "nft", "-f", "-")
}

// rulesOf is all rules as nft(8) shows them.
func rulesOf(t *testing.T, ns *NS) string {
	t.Helper()
	return run(t, ns, "", "nft", "list", "ruleset")
}

func run(t *testing.T, ns *NS, input string, argv ...string) string {
	t.Helper()
	var out []byte
	must(t, ns.Do(func() (err error) {
		c := exec.Command(argv[0], argv[1:]...)
		c.Stdin = strings.NewReader(input)
		if out, err = c.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", argv, out)
		}
		return err
	}))
	return string(out)
}

// overTCP connects, and returns whom the server saw.
func overTCP(t *testing.T, from, at *NS, server string, wait time.Duration) (string, error) {
	t.Helper()
	var l net.Listener
	must(t, at.Do(func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(server, "0")); return err }))
	defer l.Close()
	seen := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		seen <- c.RemoteAddr().(*net.TCPAddr).IP.String()
	}()
	c, err := dial(t, from, l.Addr(), wait)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return <-seen, nil
}

func dial(t *testing.T, from *NS, to net.Addr, wait time.Duration) (c net.Conn, err error) {
	t.Helper()
	derr := from.Do(func() error {
		c, err = net.DialTimeout(to.Network(), to.String(), wait)
		return nil
	})
	must(t, derr)
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		err = os.ErrDeadlineExceeded
	}
	return c, err
}

// overUDP sends a datagram and waits for it to come back.
func overUDP(t *testing.T, from, at *NS, server string, wait time.Duration) (string, error) {
	t.Helper()
	var l net.PacketConn
	must(t, at.Do(func() (err error) { l, err = net.ListenPacket("udp", net.JoinHostPort(server, "0")); return err }))
	defer l.Close()
	seen := make(chan string, 1)
	go func() {
		b := make([]byte, 100)
		n, who, err := l.ReadFrom(b)
		if err != nil {
			return
		}
		seen <- who.(*net.UDPAddr).IP.String()
		l.WriteTo(b[:n], who)
	}()
	c, err := dial(t, from, l.LocalAddr(), wait)
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	if _, err := c.Read(make([]byte, 100)); err != nil {
		return "", err
	}
	return <-seen, nil
}

var pings atomic.Uint32

// overPing sends an echo request (RFC 792, RFC 4443), which the server's kernel answers.
func overPing(t *testing.T, from, at *NS, server string, wait time.Duration) (string, error) {
	t.Helper()
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if strings.Contains(server, ":") {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	var l net.PacketConn
	must(t, at.Do(func() (err error) { l, err = net.ListenPacket(network, server); return err }))
	defer l.Close()
	any := "0.0.0.0"
	if request == 128 {
		any = "::"
	}
	var c net.PacketConn
	must(t, from.Do(func() (err error) { c, err = net.ListenPacket(network, any); return err }))
	defer c.Close()
	deadline := time.Now().Add(wait)
	l.SetDeadline(deadline)
	c.SetDeadline(deadline)
	// An identifier of its own: the router has the connections of earlier ones in mind.
	b := binary.BigEndian.AppendUint16([]byte{request, 0, 0, 0}, uint16(pings.Add(1)))
	b = append(b, 0, 1)
	if request == 8 { // for ICMPv6 the kernel does it
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(server)}); err != nil {
		return "", err
	}
	seen := ""
	for in := make([]byte, 1500); ; { // other ICMPv6 comes as well
		n, who, err := l.ReadFrom(in)
		if err != nil {
			return "", err
		}
		if n >= 8 && in[0] == request {
			seen = who.(*net.IPAddr).IP.String()
			break
		}
	}
	for in := make([]byte, 1500); ; {
		n, _, err := c.ReadFrom(in)
		if err != nil {
			return "", err
		}
		if n >= 8 && in[0] == reply && bytes.Equal(in[4:8], b[4:8]) {
			return seen, nil
		}
	}
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
