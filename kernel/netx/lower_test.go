package netx

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dressed takes an interface up with an address.
func dressed(t *testing.T, ns *NS, index int, address string) {
	t.Helper()
	if err := ns.SetUp(index, true); err != nil {
		t.Fatal(err)
	}
	if err := ns.AddAddress(index, netip.MustParsePrefix(address)); err != nil {
		t.Fatal(err)
	}
}

// reaches sends a datagram until it arrives: a port of a bridge learns at first.
func reaches(t *testing.T, from, to *NS, address string) {
	t.Helper()
	var in net.PacketConn
	if err := to.Do(func() (err error) { in, err = net.ListenPacket("udp", address+":9"); return err }); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out net.Conn
	if err := from.Do(func() (err error) { out, err = net.Dial("udp", address+":9"); return err }); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for range 100 {
		out.Write([]byte("hello"))
		in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, _, err := in.ReadFrom(make([]byte, 10)); err == nil {
			return
		}
	}
	t.Errorf("nothing reaches %s in 10 s", address)
}

// eventually waits for what the kernel does in its own time.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after 20 s: %s", what)
		}
	}
}

func TestMacvlan(t *testing.T) { shared(t, (*NS).AddMacvlan) }

func TestV2Ipvlan(t *testing.T) {
	shared(t, func(home *NS, lower string, to *NS, name string, _ net.HardwareAddr, mtu int) (int, error) {
		index, err := home.AddIpvlan(lower, to, name, mtu)
		if missing := (*Missing)(nil); errors.As(err, &missing) && os.Getenv("MSH_VM") == "" {
			if !strings.Contains(missing.Mend, "CONFIG_IPVLAN") {
				t.Errorf("got the mend %q", missing.Mend)
			}
			t.Skip(err)
		}
		return index, err
	})
}

func shared(t *testing.T, add func(home *NS, lower string, to *NS, name string, mac net.HardwareAddr, mtu int) (int, error)) {
	home, wire := makeNS(t), makeNS(t)
	if err := home.AddVeth(Veth{End: End{Name: "eth1", Index: 11, MTU: 1400}, Far: End{Name: "far", Index: 5, MTU: 1400}, FarNS: wire}); err != nil {
		t.Fatal(err)
	}
	a, b := makeNS(t), makeNS(t)
	if _, err := add(home, "eth1", a, "eth0", nil, 0); err == nil || !strings.Contains(err.Error(), "ip link set eth1 up") {
		t.Errorf("above one that is down: got %v", err)
	}
	dressed(t, home, 11, "10.0.0.1/24")
	dressed(t, wire, 5, "10.0.0.9/24")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	for i, c := range []struct {
		ns      *NS
		name    string // the other one's is as lower's own
		address string
		mtu     int
	}{{a, "eth0", "10.0.0.2/24", 0}, {b, "eth1", "10.0.0.3/24", 1300}} {
		index, err := add(home, "eth1", c.ns, c.name, mac, c.mtu)
		if err != nil {
			t.Fatal(err)
		}
		mac = nil
		l, err := c.ns.link(c.name)
		if err != nil || l.Attrs().Index != index {
			t.Fatalf("%s: got %v, %v, want the number %d", c.name, l, err, index)
		}
		if got, want := l.Attrs().MTU, []int{1400, 1300}[i]; got != want {
			t.Errorf("MTU: got %d, want %d", got, want)
		}
		if l.Type() == "macvlan" && i == 0 && l.Attrs().HardwareAddr.String() != "02:00:00:00:00:0a" {
			t.Errorf("MAC: got %s", l.Attrs().HardwareAddr)
		}
		dressed(t, c.ns, index, c.address)
	}
	reaches(t, a, wire, "10.0.0.9")
	reaches(t, wire, b, "10.0.0.3")
	reaches(t, a, b, "10.0.0.3")

	for _, c := range []struct {
		lower, name string
		mtu         int
		want        string
	}{
		{"eth1", "eth0", 0, "eth0 already"}, {"lo", "eth1", 0, "loopback"}, {"eth1", "eth1", 9000, "want at most its own, 1400"}, {"eth9", "eth1", 0, "there are eth1, lo"},
	} {
		if _, err := add(home, c.lower, a, c.name, nil, c.mtu); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s on %s: got %v, want %q", c.name, c.lower, err, c.want)
		}
	}

	a.Close()
	b.Close()
	// Free again: as long as there is another on it, it cannot be a port.
	addBridge(t, home, "br0")
	eventually(t, "eth1 can be a port", func() bool { return home.Enslave(11, index(t, home, "br0")) == nil })
	if _, err := add(home, "eth1", wire, "eth1", nil, 0); err == nil || !strings.Contains(err.Error(), "port of the bridge br0") {
		t.Errorf("a port: got %v", err)
	}
}

func index(t *testing.T, ns *NS, name string) int {
	t.Helper()
	i, err := ns.Index(name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestBridgePort(t *testing.T) {
	home, a, b := makeNS(t), makeNS(t), makeNS(t)
	addBridge(t, home, "br0")
	if err := home.AddVeth(Veth{End: End{Name: "eth1", Index: 11, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, Master: index(t, home, "br0"), Up: true, Far: End{Name: "eth0"}, FarNS: b}); err != nil {
		t.Fatal(err)
	}
	dressed(t, b, index(t, b, "eth0"), "10.0.0.9/24")
	dressed(t, home, index(t, home, "br0"), "10.0.0.1/24")
	before, err := home.link("br0")
	if err != nil {
		t.Fatal(err)
	}
	i, err := home.AddBridgePort("br0", a, "eth0", net.HardwareAddr{2, 0, 0, 0, 0, 0}, 1400)
	if err != nil {
		t.Fatal(err)
	}
	if i != index(t, a, "eth0") {
		t.Errorf("got the number %d, it has %d", i, index(t, a, "eth0"))
	}
	if l, err := a.link("eth0"); err != nil || l.Attrs().MTU != 1400 || l.Attrs().HardwareAddr.String() != "02:00:00:00:00:00" || l.Attrs().RawFlags&unix.IFF_UP != 0 {
		t.Errorf("got %+v, %v, want it down, with its MAC and an MTU of 1400", l.Attrs(), err)
	}
	dressed(t, a, i, "10.0.0.2/24")
	reaches(t, a, b, "10.0.0.9")
	reaches(t, home, a, "10.0.0.2")
	if after, err := home.link("br0"); err != nil || after.Attrs().MTU != before.Attrs().MTU || after.Attrs().HardwareAddr.String() != before.Attrs().HardwareAddr.String() {
		t.Errorf("the bridge has changed: %+v, %v", after.Attrs(), err)
	}
	for _, c := range []struct {
		bridge, name string
		mtu          int
		want         string
	}{
		{"br0", "eth0", 0, "eth0 already"}, {"br0", "eth1", 9000, "want at most its own, 1500"}, {"eth1", "eth1", 0, "port of the bridge br0"},
		{"lo", "eth1", 0, "want a bridge"}, {"eth9", "eth1", 0, "there are br0, eth1, lo, msh0"},
	} {
		if _, err := home.AddBridgePort(c.bridge, a, c.name, nil, c.mtu); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s on %s: got %v, want %q", c.name, c.bridge, err, c.want)
		}
	}
	if home.Has("msh1") {
		t.Error("what failed has left msh1")
	}
	a.Close()
	eventually(t, "the port is gone", func() bool { return !home.Has("msh0") })
}

func addBridge(t *testing.T, ns *NS, name string) {
	t.Helper()
	h, err := ns.Route()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
		t.Fatal(err)
	}
}
