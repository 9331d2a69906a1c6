package netx

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// makeSwitch makes a switch with a namespace on each of n ports, p0, p1, …, of
// which each has an address, 10.0.0.1, 10.0.0.2, …
func makeSwitch(t *testing.T, n int) (*NS, []*NS) {
	t.Helper()
	sw, err := MakeSwitch("lan", 0)
	must(t, err)
	t.Cleanup(sw.Close)
	var hosts []*NS
	for i := range n {
		ns := makeNS(t)
		must(t, sw.AddVeth(Veth{End: End{Name: fmt.Sprint("p", i), Index: 10 + i}, Master: BridgeIndex, Up: true, Far: End{Name: "eth0", Index: 2}, FarNS: ns}))
		must(t, ns.SetUp(2, true))
		must(t, ns.AddAddress(2, netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/24", i+1))))
		hosts = append(hosts, ns)
	}
	return sw, hosts
}

// tcpStream is a TCP connection whose writer keeps on writing.
type tcpStream struct {
	in   net.Conn
	done chan error
}

func makeTCPStream(t *testing.T, from, to *NS, address string) *tcpStream {
	t.Helper()
	var l net.Listener
	must(t, to.Do(func() (err error) { l, err = net.Listen("tcp", address+":0"); return err }))
	defer l.Close()
	out, err := dial(t, from, l.Addr(), patience)
	must(t, err)
	in, err := l.Accept()
	must(t, err)
	s := &tcpStream{in, make(chan error, 1)}
	t.Cleanup(func() {
		out.Close()
		in.Close()
		<-s.done
	})
	go func() {
		for b := make([]byte, 1000); ; time.Sleep(time.Millisecond) {
			if _, err := out.Write(b); err != nil {
				s.done <- err
				return
			}
		}
	}()
	return s
}

// flows tells whether bytes come through until a deadline. An error other than
// that is a connection that has broken.
func (s *tcpStream) flows(t *testing.T, wait time.Duration) bool {
	t.Helper()
	s.in.SetReadDeadline(time.Now().Add(wait))
	_, err := io.ReadFull(s.in, make([]byte, 5000))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection broke: %v", err)
	}
	return err == nil
}

// stalls empties what is on the way and tells whether there comes nothing more.
func (s *tcpStream) stalls(t *testing.T) bool {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if !s.flows(t, silence) {
			return true
		}
	}
	return false
}

// TestPartition cuts a switch of four ports: a connection across stalls and goes on
// after, one within a group and one with a port in no group do not notice.
func TestPartition(t *testing.T) {
	sw, hosts := makeSwitch(t, 4)
	across := makeTCPStream(t, hosts[0], hosts[2], "10.0.0.3")
	back := makeTCPStream(t, hosts[2], hosts[1], "10.0.0.2")
	within := makeTCPStream(t, hosts[1], hosts[0], "10.0.0.1")
	free := makeTCPStream(t, hosts[0], hosts[3], "10.0.0.4")
	all := []*tcpStream{across, back, within, free}
	check := func(when string, want ...bool) {
		t.Helper()
		for i, s := range all {
			if want[i] && !s.flows(t, patience) {
				t.Errorf("%s: connection %d does not flow", when, i)
			}
			if !want[i] && !s.stalls(t) {
				t.Errorf("%s: connection %d flows", when, i)
			}
		}
	}
	check("before", true, true, true, true)
	for range 2 {
		must(t, sw.Partition([][]string{{"p0", "p1"}, {"p2", "later"}}))
		check("cut", false, false, true, true)
	}
	if _, err := overUDP(t, hosts[2], hosts[3], "10.0.0.4", patience); err != nil {
		t.Errorf("to a port in no group: %v", err)
	}
	// Another cut takes its place, with groups of one and of none.
	must(t, sw.Partition([][]string{{"p1"}, {"p0", "p2"}, {}}))
	check("cut elsewhere", true, false, false, true)
	for range 2 {
		must(t, sw.Heal())
	}
	check("healed", true, true, true, true)
	must(t, sw.Partition([][]string{{"p0"}, {"p1"}, {"p2"}, {"p3"}}))
	check("all alone", false, false, false, false)
	must(t, sw.Partition(nil))
	check("nothing cut", true, true, true, true)
}

// TestPartitionFlood: the cut holds for what goes to all ports, too, whether the
// switch knows where anybody is or not.
func TestPartitionFlood(t *testing.T) {
	sw, hosts := makeSwitch(t, 3)
	must(t, sw.Partition([][]string{{"p0", "p1"}, {"p2"}}))
	var in []net.PacketConn
	for _, ns := range hosts[1:] {
		var c net.PacketConn
		must(t, ns.Do(func() (err error) { c, err = net.ListenPacket("udp4", "0.0.0.0:9"); return err }))
		defer c.Close()
		in = append(in, c)
	}
	var out net.PacketConn
	must(t, hosts[0].Do(func() (err error) { out, err = net.ListenPacket("udp4", "10.0.0.1:0"); return err }))
	defer out.Close()
	send := func() {
		t.Helper()
		_, err := out.WriteTo([]byte("all"), &net.UDPAddr{IP: net.IPv4(10, 0, 0, 255), Port: 9})
		must(t, err)
	}
	heard := func(c net.PacketConn, wait time.Duration) bool {
		c.SetReadDeadline(time.Now().Add(wait))
		_, _, err := c.ReadFrom(make([]byte, 10))
		return err == nil
	}
	send()
	if !heard(in[0], patience) {
		t.Error("a broadcast does not reach its group")
	}
	if heard(in[1], silence) {
		t.Error("a broadcast goes across")
	}
	must(t, sw.Heal())
	send()
	if !heard(in[1], patience) {
		t.Error("healed: a broadcast does not go everywhere")
	}
}

// TestPartitionTable shows what is made, for a few ports, and that as many as a
// switch can have go in.
func TestPartitionTable(t *testing.T) {
	ns := makeNS(t)
	nft(t, ns, "table bridge mine {\n chain c {\n type filter hook forward priority 0\n }\n }")
	before := rulesOf(t, ns)
	must(t, ns.Partition([][]string{{"p1", "fifteen-bytes-x"}, {"p3"}}))
	want := before + `table bridge msh {
	set ports {
		type ifname
		size 3
		elements = { "p1",
			     "fifteen-bytes-x",
			     "p3" }
	}

	set group-1 {
		type ifname
		size 2
		elements = { "p1",
			     "fifteen-bytes-x" }
	}

	set group-2 {
		type ifname
		size 1
		elements = { "p3" }
	}

	map from {
		type ifname : verdict
		size 3
		elements = { "p1" : goto group-1,
			     "fifteen-bytes-x" : goto group-1,
			     "p3" : goto group-2 }
	}

	chain group-1 {
		oifname @group-1 accept
		oifname @ports drop
	}

	chain group-2 {
		oifname @group-2 accept
		oifname @ports drop
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname vmap @from
	}
}
`
	if got := rulesOf(t, ns); sortedElements(got) != sortedElements(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, groups := range []int{2, MaxPorts} {
		cut := make([][]string, groups)
		for i := range MaxPorts {
			cut[i%groups] = append(cut[i%groups], fmt.Sprint("port", i))
		}
		must(t, ns.Partition(cut))
		got := rulesOf(t, ns)
		if n := strings.Count(got, "\tchain group-"); n != groups {
			t.Errorf("%d groups: got %d chains", groups, n)
		}
		if n := strings.Count(got, " : goto group-"); n != MaxPorts {
			t.Errorf("%d ports: got %d in the map", MaxPorts, n)
		}
	}
	for range 2 {
		must(t, ns.Heal())
	}
	if got := rulesOf(t, ns); got != before {
		t.Errorf("healed: got\n%s\nwant\n%s", got, before)
	}
	for _, bad := range []struct {
		groups [][]string
		want   string
	}{
		{[][]string{{"a", "b"}, {"c", "a"}}, "port a is in groups 1 and 2"},
		{[][]string{{"a", "a"}}, "port a is in groups 1 and 1"},
		{[][]string{{""}}, `got ""`},
		{[][]string{{"sixteen-bytes-it"}}, "15 bytes"},
	} {
		if err := ns.Partition(bad.groups); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%q: got %v, want %q", bad.groups, err, bad.want)
		}
	}
}

// sortedElements puts the elements of sets, which the kernel keeps in no order, in
// one.
func sortedElements(listing string) string {
	parts := strings.Split(listing, "elements = {")
	for i, p := range parts[1:] {
		elements, rest, _ := strings.Cut(p, "}")
		list := strings.Fields(strings.ReplaceAll(strings.ReplaceAll(elements, " : goto ", ":"), ",", " "))
		slices.Sort(list)
		parts[i+1] = fmt.Sprint(list) + rest
	}
	return strings.Join(parts, "elements = {")
}
