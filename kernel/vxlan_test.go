package kernel

import (
	"net/netip"
	"testing"
)

func peers(texts ...string) (all []netip.Addr) {
	for _, s := range texts {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestVXLANBad(t *testing.T) {
	l := paperLab()
	for _, c := range []struct {
		want string
		x    VXLAN
	}{
		{"vnet: vxlan: id: got 16777216, want 0 to 16777215", VXLAN{ID: 1 << 24, Peers: peers("192.0.2.1")}},
		{"vnet: vxlan: id: got -1, want 0 to 16777215", VXLAN{ID: -1, Peers: peers("192.0.2.1")}},
		{"vnet: vxlan: port: got 65536, want 1 to 65535", VXLAN{Port: 65536, Peers: peers("192.0.2.1")}},
		{"vnet: vxlan: peers: got none, want the addresses of the other hosts", VXLAN{ID: 1}},
		{`vnet: vxlan: peers: got "2001:db8::1", want addresses of one family, local's included`, VXLAN{Peers: peers("192.0.2.1", "2001:db8::1")}},
		{`vnet: vxlan: peers: got "192.0.2.1", want addresses of one family, local's included`, VXLAN{Peers: peers("192.0.2.1"), Local: netip.MustParseAddr("2001:db8::1")}},
		{`vnet: vxlan: peers: got "192.0.2.1 twice", want each once`, VXLAN{Peers: peers("192.0.2.1", "192.0.2.3", "192.0.2.1")}},
	} {
		want(t, "error", c.want, refusedVNet(t, l, l.root, &VNetSpec{Name: "x", VXLAN: &c.x}))
	}
}

// One Ethernet on several hosts, each of which is a machine here.
func TestVXLAN(t *testing.T) {
	for _, c := range []struct {
		family, subnet string
		hosts          []netip.Addr
		local          bool
	}{
		{"IPv4", "192.0.2.0/24", peers("192.0.2.1", "192.0.2.2", "192.0.2.3"), false},
		{"IPv6", "2001:db8::/64", peers("2001:db8::1", "2001:db8::2", "2001:db8::3"), false},
		{"IPv6 with local", "2001:db8::/64", peers("2001:db8::1", "2001:db8::2"), true},
	} {
		t.Run(c.family, func(t *testing.T) {
			l := netLab(t)
			w := makeVNet(t, l, l.Host(), &VNetSpec{Name: "world"}, c.subnet)
			var m []*Machine
			var v []*VNet
			for i, h := range c.hosts {
				name := string(rune('a' + i))
				host := forkNamed(t, l, "host-"+name, on(w), &Children{Max: 1})
				x := &VXLAN{ID: 7}
				for _, p := range c.hosts {
					if p != h {
						x.Peers = append(x.Peers, p)
					}
				}
				if c.local {
					x.Local = h
				}
				before := networkOf(t, ownNet(t, host))
				v = append(v, makeVNet(t, l, host, &VNetSpec{Name: name, MTU: 1430, VXLAN: x}, "10.0.0.0/24", "fd00::/64"))
				sameNetwork(t, "the host's network", ownNet(t, host), before) // nothing of it is to be seen
				address := []string{"10.0.0." + string(rune('1'+i)), "fd00::" + string(rune('1'+i))}
				m = append(m, forkIn(t, l, host, &Spec{Name: name, Resources: []Resource{on(v[i], address...)}}))
			}
			for _, m := range m {
				for i := range c.hosts {
					pings(t, m, "10.0.0."+string(rune('1'+i)), "fd00::"+string(rune('1'+i)))
				}
			}
			run(t, m[0], "ping", "-n", "-c1", "-w5", "-Mdo", "-s1402", "10.0.0.2") // a whole frame
			if c.local {
				destroy(t, m[1].Parent())
				cannotReach(t, m[0], "10.0.0.2")
				return
			}
			site := m[2].Parent()
			bad := refusedVNet(t, l, site, &VNetSpec{Name: "twice", VXLAN: &VXLAN{ID: 7, Peers: c.hosts[:1]}})
			want(t, "error", "vnet twice: vxlan: id 7, port 4789: another VXLAN of this host has that id and port: file exists", bad)
			if err := v[2].Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			makeVNet(t, l, site, &VNetSpec{Name: "twice", VXLAN: &VXLAN{ID: 7, Peers: c.hosts[:1], Port: 4789}}) // which is free again
			makeVNet(t, l, site, &VNetSpec{Name: "other", VXLAN: &VXLAN{ID: 7, Peers: c.hosts[:1], Port: 4790}})
		})
	}
}
