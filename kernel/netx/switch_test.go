package netx

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func makeNS(t *testing.T) *NS {
	t.Helper()
	ns, err := Make(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

// TestSwitch sends a datagram from one namespace to another, over a switch in a third.
func TestSwitch(t *testing.T) {
	sw, err := MakeSwitch("lan", 1400)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sw.Close)
	var hosts []*NS
	for i, mac := range []string{"02:00:00:00:00:01", "02:00:00:00:00:02"} {
		hw, _ := net.ParseMAC(mac)
		ns := makeNS(t)
		if err := sw.AddVeth(Veth{End: End{Name: "p" + string(rune('1'+i)), Index: 10 + i, MTU: 1400}, Master: BridgeIndex, Up: true,
			Far: End{Name: "eth0", Index: 7, MAC: hw, MTU: 1400}, FarNS: ns}); err != nil {
			t.Fatal(err)
		}
		if err := ns.SetUp(7, true); err != nil {
			t.Fatal(err)
		}
		if err := ns.AddAddress(7, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 24)); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, ns)
	}
	var in net.PacketConn
	if err := hosts[1].Do(func() (err error) { in, err = net.ListenPacket("udp", "10.0.0.2:9"); return err }); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := hosts[0].Do(func() error {
		out, err := net.Dial("udp", "10.0.0.2:9")
		if err != nil {
			return err
		}
		defer out.Close()
		_, err = out.Write([]byte("hello"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	in.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 100)
	n, from, err := in.ReadFrom(b)
	if err != nil || string(b[:n]) != "hello" || from.(*net.UDPAddr).IP.String() != "10.0.0.1" {
		t.Errorf("got %q from %v, %v; want hello from 10.0.0.1", b[:n], from, err)
	}
	for _, ns := range hosts {
		if i, err := ns.Index("eth0"); i != 7 || err != nil {
			t.Errorf("eth0: got index %d, %v; want 7", i, err)
		}
	}
}

// BenchmarkPort makes a namespace with a port on a switch, addressed and up.
func BenchmarkPort(b *testing.B) {
	sw, err := MakeSwitch("lan", 0)
	if err != nil {
		b.Fatal(err)
	}
	defer sw.Close()
	for i := 0; b.Loop(); i++ {
		ns, err := Make(nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := sw.AddVeth(Veth{End: End{Name: "p", Index: 10 + i}, Master: BridgeIndex, Up: true, Far: End{Name: "eth0", Index: 2}, FarNS: ns}); err != nil {
			b.Fatal(err)
		}
		ns.AddAddress(2, netip.MustParsePrefix("10.0.0.1/24"))
		ns.SetUp(2, true)
		sw.Delete(10 + i)
		ns.Close()
	}
}
