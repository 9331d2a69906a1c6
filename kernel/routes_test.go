package kernel

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"msh/kernel/netx"
)

// In its parent's network a machine has a table to itself, by every way in.
func TestRoutesShared(t *testing.T) {
	h := newHost(t)
	own, other := uplink(t)
	far(t, own, "up1", []string{"10.1.0.1/24"}, []string{"10.1.0.9/24"})
	before := netState(t, own)
	l := labOn(t, h, "")
	binary := knockBinary(t)
	given := &Routes{Routes: []Route{
		mustRoute("192.0.2.0/24", "10.0.0.9", ""), mustRoute("10.0.0.0/24", "", "up0"),
		mustRoute("2001:db8::/32", "fd00::9", ""), mustRoute("fd00::/64", "", "up0"),
	}}
	given.Routes[1].Src = netip.MustParseAddr("10.0.0.3")
	m := fork(t, l, given)
	ownSpaces(t, m)
	want(t, "the caller's own", uint32(0), given.Number)
	const first = "1828716544"
	state := netState(t, own)
	contains(t, state, "900:\tfrom all fwmark 0x6d000000 lookup "+first, "192.0.2.0/24 via 10.0.0.9 dev up0 table "+first, "10.0.0.0/24 dev up0 table "+first, "src 10.0.0.3",
		"2001:db8::/32 via fd00::9 dev up0 table "+first, "unreachable default table "+first)
	want(t, "rules of it", 2, strings.Count(state, "fwmark"))
	want(t, "ends of it", 2, strings.Count(state, "unreachable default"))

	for _, c := range []struct{ calls, say string }{
		{"udp4|mark|connect 192.0.2.1:9|send x", first + "; ok; ok"},
		{"udp6|mark|connect [2001:db8::1]:9|send x", first + "; ok; ok"},
		{"udp4|connect 10.1.0.9:9", "EHOSTUNREACH"}, // the host knows a way
	} {
		m2 := everyWay(t, l, l.Host(), binary, strings.Replace(c.calls, first, "1828716545", 1), &Routes{Routes: given.Routes})
		sameWays(t, c.calls, strings.Replace(c.say, first, "1828716545", 1), m2)
	}
	want(t, "its source", "ok; 10.0.0.3", knockIn(t, m, binary, "udp4|connect 10.0.0.9:9|name"))
	want(t, "nowhere", "EHOSTUNREACH", knockIn(t, m, binary, "udp6|connect [2001:dead::1]:9"))
	want(t, "the host to where the machine cannot", "ok; ok", knockFrom(t, own, binary, "udp4|connect 10.1.0.9:9|send x"))
	want(t, "the host to where it knows no way", "ENETUNREACH", knockFrom(t, own, binary, "udp4|connect 192.0.2.1:9"))
	serve(t, m, binary, "tcp4|bind 0.0.0.0:80|listen|accept|recv|send hello", 80)
	want(t, "from outside", "ok; ok; hello", knockFrom(t, other, binary, "tcp4|connect 10.0.0.1:80|send x|recv"))

	list := available(t, l.Host(), "routes")
	if a := named(list, "table "+first); a == nil || a.Owner != m.ID() {
		t.Errorf("listed: %+v", list)
	}
	contains(t, list[len(list)-1].Detail, "the next free table is 1828716545")

	// Others in their place; what cannot be made leaves all as it was.
	if err := m.Set(&Routes{Routes: []Route{mustRoute("10.1.0.0/24", "", "up1"), mustRoute("192.0.2.0/24", "10.1.0.9", "")}}); err != nil {
		t.Fatal(err)
	}
	changed := netState(t, own)
	contains(t, changed, "10.1.0.0/24 dev up1 table "+first, "192.0.2.0/24 via 10.1.0.9 dev up1 table "+first)
	for _, gone := range []string{"192.0.2.0/24 via 10.0.0.9", "2001:db8::/32"} {
		if strings.Contains(changed, gone) {
			t.Errorf("%s is still there:\n%s", gone, changed)
		}
	}
	want(t, "set", "ok; EHOSTUNREACH", knockIn(t, m, binary, "udp4|connect 10.1.0.9:9|connect 10.0.0.9:9"))
	err := m.Set(&Routes{Routes: []Route{mustRoute("192.0.2.0/24", "10.0.0.9", ""), mustRoute("198.51.100.0/24", "", "up0"), mustRoute("default", "172.16.0.1", "")}})
	if err == nil {
		t.Fatal("a gateway that is nowhere")
	}
	contains(t, err.Error(), `route: via: got "172.16.0.1"`, "10.0.0.0/24 on up0")
	want(t, "after a set that failed", changed, netState(t, own))
	want(t, "its own", 2, len(m.Spec().find("routes").(*Routes).Routes))

	// With an interface that is taken down the kernel drops routes: set puts them back.
	inNS(t, own, "ip", "link", "set", "up1", "down")
	want(t, "down", "EHOSTUNREACH", knockIn(t, m, binary, "udp4|connect 10.1.0.9:9"))
	inNS(t, own, "ip", "link", "set", "up1", "up")
	if err := m.Set(m.Spec().find("routes")); err != nil {
		t.Fatal(err)
	}
	want(t, "up again", "ok", knockIn(t, m, binary, "udp4|connect 10.1.0.9:9"))

	destroy(t, m)
	want(t, "afterwards", before, netState(t, own))
}

func TestRoutesNested(t *testing.T) {
	needV1(t)
	testRoutesNested(t)
}

func TestRoutesNestedV2(t *testing.T) {
	needV2(t)
	testRoutesNested(t)
}

func testRoutesNested(t *testing.T) {
	h := newHost(t)
	own, _ := uplink(t)
	before := netState(t, own)
	l := labOn(t, h, "")
	binary := knockBinary(t)
	outer := fork(t, l, &Routes{Routes: []Route{mustRoute("192.0.2.0/24", "10.0.0.9", ""), mustRoute("10.0.0.0/24", "", "up0")}}, &Children{Max: 4}, space("pidspace"))
	inner := forkIn(t, l, outer, &Spec{Resources: []Resource{&Routes{Routes: []Route{mustRoute("192.0.2.1", "10.0.0.9", "")}}}})
	plain := forkIn(t, l, outer, &Spec{})
	for _, c := range []struct{ calls, outer, inner, plain string }{
		{"udp4|mark", "1828716544", "1828716545", "1828716544"},
		{"udp4|connect 192.0.2.1:9|send x", "ok; ok", "ok; ok", "ok; ok"},
		{"udp4|connect 192.0.2.2:9", "ok", "EHOSTUNREACH", "ok"},
		{"udp4|connect 10.0.0.9:9", "ok", "EHOSTUNREACH", "ok"},
	} {
		for m, say := range map[*Machine]string{outer: c.outer, inner: c.inner, plain: c.plain} {
			want(t, m.Name()+" "+c.calls, say, knockIn(t, m, binary, c.calls))
		}
	}
	for _, r := range []Route{mustRoute("default", "10.0.0.9", ""), mustRoute("192.0.2.0/24", "10.0.0.8", ""), mustRoute("192.0.2.0/23", "10.0.0.9", "")} {
		contains(t, refused(t, l, outer, &Routes{Routes: []Route{r}}), "route: dst: got ", "a way that m1 has: 192.0.2.0/24 via 10.0.0.9")
	}
	if err := outer.Set(&Routes{Routes: []Route{mustRoute("10.0.0.0/24", "", "up0")}}); err == nil {
		t.Error("took a way from the machine inside")
	} else {
		contains(t, err.Error(), "want the way that m2 inside has: 192.0.2.1 via 10.0.0.9")
	}

	// A machine inside with a network of its own is not concerned, and is one's to have tables in.
	apart := forkIn(t, l, outer, &Spec{Resources: []Resource{space("netspace"), &Children{Max: 1}, &Routes{Routes: []Route{mustRoute("10.9.0.0/16", "", "lo")}}}})
	want(t, "its mark", "0; ok; ok", knockIn(t, apart, binary, "udp4|mark|connect 10.9.0.1:9|send x"))
	ns := ownNet(t, apart)
	was := netState(t, ns)
	far(t, ns, "eth0", []string{"10.5.0.1/24"}, []string{"10.5.0.9/24"})
	deep := forkIn(t, l, apart, &Spec{Resources: []Resource{&Routes{Routes: []Route{mustRoute("10.5.0.0/24", "", "eth0")}, Table: 77}}})
	want(t, "deep inside", "77; ok; ok; EHOSTUNREACH", knockIn(t, deep, binary, "udp4|mark|connect 10.5.0.9:9|send x|connect 10.9.0.1:9"))
	contains(t, netState(t, ns), "900:\tfrom all fwmark 0x4d lookup 77")
	want(t, "it is not in the host's", false, strings.Contains(netState(t, own), "lookup 77"))
	destroy(t, deep)
	if s := netState(t, ns); strings.Contains(s, "77") {
		t.Errorf("left in the parent's network:\n%s\nbefore:\n%s", s, was)
	}
	// Where the parent has ended there is nothing to take back, and it is no error.
	again := forkIn(t, l, apart, &Spec{Resources: []Resource{&Routes{Table: 78}}})
	apart.Kill(t.Context(), 9)
	destroy(t, again)
	destroy(t, apart)
	destroy(t, outer)
	want(t, "afterwards", before, netState(t, own))
}

// In a network of its own they are put into its main table, or the one named.
func TestRoutesOwn(t *testing.T) {
	l := newLab(t)
	host := netState(t, ownNet(t, nil))
	m := fork(t, l, space("netspace"), &Routes{Routes: []Route{mustRoute("10.9.0.0/16", "", "lo"), mustRoute("10.10.0.0/16", "10.9.0.1", "")}})
	contains(t, sh(t, m, "ip route"), "10.9.0.0/16 dev lo proto static scope link", "10.10.0.0/16 via 10.9.0.1 dev lo proto static")
	ns := ownNet(t, m)
	far(t, ns, "eth0", []string{"10.0.0.1/24", "fd00::1/64"}, []string{"10.0.0.9/24", "fd00::9/64"})
	r := mustRoute("default", "10.0.0.9", "")
	r.Metric, r.Src = 50, netip.MustParseAddr("10.0.0.1")
	if err := m.Set(&Routes{Routes: []Route{r, mustRoute("default", "fd00::9", ""), mustRoute("10.9.0.0/16", "", "lo")}}); err != nil {
		t.Fatal(err)
	}
	state := sh(t, m, "ip route; ip -6 route")
	contains(t, state, "default via 10.0.0.9 dev eth0 proto static src 10.0.0.1 metric 50", "default via fd00::9 dev eth0", "10.9.0.0/16 dev lo")
	if strings.Contains(state, "10.10.0.0") {
		t.Errorf("still there:\n%s", state)
	}
	if err := m.Set(&Routes{}); err != nil {
		t.Fatal(err)
	}
	if state := sh(t, m, "ip route; ip -6 route"); strings.Contains(state, "default") || !strings.Contains(state, "10.0.0.0/24 dev eth0") {
		t.Errorf("none of its own:\n%s", state)
	}
	for _, c := range []struct {
		r   Route
		say []string
	}{
		{mustRoute("10.0.0.0/24", "10.0.0.9", ""), nil}, // the kernel's own is to it, of that metric
		{mustRoute("10.8.0.0/16", "10.7.0.1", ""), []string{`route: via: got "10.7.0.1"`, "m1 has: 10.0.0.0/24 on eth0"}},
		{mustRoute("fd08::/64", "fd00::1", ""), []string{`route: via: got "fd00::1"`, "another's address"}},
		{mustRoute("fd08::/64", "fd07::1", ""), []string{`route: via: got "fd07::1"`, "fd00::/64 on eth0"}},
		{mustRoute("10.8.0.0/16", "", "eth7"), []string{`route: dev: got "eth7"`, "an interface of m1: lo eth0"}},
		{Route{Dst: netip.MustParsePrefix("10.8.0.0/16"), Dev: "eth0", Src: netip.MustParseAddr("10.7.0.1")}, []string{`route: src: got "10.7.0.1"`, "an address that m1 has"}},
	} {
		err := m.Set(&Routes{Routes: []Route{c.r}})
		if err == nil {
			if c.say != nil {
				t.Errorf("%v: set", c.r)
			}
			continue
		}
		contains(t, err.Error(), c.say...)
	}

	tabled := fork(t, l, space("netspace"), &Routes{Routes: []Route{mustRoute("10.9.0.0/16", "", "lo")}, Table: 100})
	contains(t, sh(t, tabled, "ip route show table 100"), "10.9.0.0/16 dev lo")
	want(t, "main", "", sh(t, tabled, "ip route"))
	if err := tabled.Set(&Routes{Routes: []Route{mustRoute("10.8.0.0/16", "", "lo")}}); err != nil {
		t.Fatal(err)
	}
	want(t, "set, in that table", "10.8.0.0/16 dev lo proto static scope link", sh(t, tabled, "ip route show table 100"))
	if err := tabled.Set(&Routes{Table: 101}); err == nil {
		t.Error("another table")
	} else {
		contains(t, err.Error(), "table: got 101", "stays")
	}
	plain := fork(t, l)
	if err := plain.Set(&Routes{}); err == nil {
		t.Error("a machine without routes of its own took the host's")
	} else {
		contains(t, err.Error(), "shares its parent's routes")
	}
	refusedDev := refused(t, l, l.Host(), space("netspace"), &Routes{Routes: []Route{mustRoute("default", "", "eth0")}})
	contains(t, refusedDev, `route: dev: got "eth0"`, ": lo")
	want(t, "the host's", host, netState(t, ownNet(t, nil)))
}

// On a vnet they stand beside what the interface brings.
func TestRoutesVNet(t *testing.T) {
	l := newLab(t)
	v, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}})
	if err != nil {
		t.Fatal(err)
	}
	m := fork(t, l, &Netif{VNet: v.Name()}, &Routes{Routes: []Route{mustRoute("default", "10.0.0.9", ""), mustRoute("default", "fd00::9", "eth0"), mustRoute("10.7.0.0/16", "", "eth0")}})
	contains(t, sh(t, m, "ip route; ip -6 route"), "default via 10.0.0.9 dev eth0", "default via fd00::9 dev eth0", "10.7.0.0/16 dev eth0", "10.0.0.0/24 dev eth0")
	contains(t, refused(t, l, l.Host(), &Netif{VNet: v.Name()}, &Routes{Routes: []Route{mustRoute("default", "", "eth1")}}), `route: dev: got "eth1"`, "lo eth0")
	contains(t, refused(t, l, l.Host(), &Netif{VNet: v.Name()}, addrs("10.0.0.2")), "netaddr beside netif or netspace")
}

func TestRoutesTable(t *testing.T) {
	h := newHost(t)
	own, _ := uplink(t)
	before := netState(t, own)
	l := labOn(t, h, "")
	m := fork(t, l, &Routes{Table: 300})
	contains(t, netState(t, own), "fwmark 0x12c lookup 300", "unreachable default table 300")
	_, err := l.Fork(t.Context(), l.Host(), &Spec{Resources: []Resource{&Routes{Table: 300}}})
	if err == nil {
		t.Fatal("a table that a machine has")
	}
	contains(t, err.Error()+hintOf(err), "routes: table: got 300", "machine "+m.ID()+" has it", "leave table out")
	destroy(t, m)
	for _, c := range []struct{ add, remove, say string }{
		{"rule add priority 5 from 10.0.0.1 lookup 301", "rule del priority 5", "rule 5 uses it"},
		{"rule add priority 6 fwmark 0x5/0x5 lookup 9", "rule del priority 6", "rule 6 uses it"},
		{"-6 rule add priority 7 lookup 301", "-6 rule del priority 7", "rule 7 uses it"},
		{"route add 10.9.0.0/16 dev up0 table 301", "route del 10.9.0.0/16 table 301", "1 routes are in it"},
		{"-6 route add fd09::/64 dev up0 table 301", "-6 route del fd09::/64 table 301", "1 routes are in it"},
	} {
		inNS(t, own, "ip", strings.Fields(c.add)...)
		contains(t, refused(t, l, l.Host(), &Routes{Table: 301}), "routes: table: got 301", c.say)
		inNS(t, own, "ip", strings.Fields(c.remove)...)
	}
	inNS(t, own, "ip", strings.Fields("rule add priority 8 lookup 1828716544")...)
	next := fork(t, l, &Routes{})
	contains(t, netState(t, own), "fwmark 0x6d000001 lookup 1828716545")
	inNS(t, own, "ip", strings.Fields("rule del priority 8")...)
	// What others have put into the table goes with it.
	inNS(t, own, "ip", strings.Fields("route add 10.9.0.0/16 dev up0 table 1828716545")...)
	inNS(t, own, "ip", strings.Fields("-6 route add fd09::/64 dev up0 metric 5 table 1828716545")...)
	destroy(t, next)
	want(t, "afterwards", before, netState(t, own))

	list := []Resource{&Routes{}, addrs("10.0.0.2")}
	list[0].(*Routes).Routes = []Route{{Dst: netip.MustParsePrefix("10.9.0.0/16"), Dev: "up0", Src: netip.MustParseAddr("10.0.0.1")}}
	contains(t, refused(t, l, l.Host(), list...), `route: src: got "10.0.0.1"`, "netaddr: 10.0.0.2")
	for _, c := range []struct{ r, say string }{{"up7", `dev: got "up7", want an interface of host: lo up0`}} {
		contains(t, refused(t, l, l.Host(), &Routes{Routes: []Route{mustRoute("default", "", c.r)}}), c.say)
	}
	contains(t, refused(t, l, l.Host(), &Routes{Routes: []Route{mustRoute("default", "172.16.0.1", "")}}), `route: via: got "172.16.0.1"`, "10.0.0.0/24 on up0")
	inNS(t, own, "ip", "link", "set", "up0", "down")
	_, err = l.Fork(t.Context(), l.Host(), &Spec{Resources: []Resource{&Routes{Routes: []Route{mustRoute("10.9.0.0/16", "", "up0")}}}})
	if err == nil {
		t.Fatal("an interface that is down")
	}
	contains(t, err.Error()+hintOf(err), `dev: got "up0", want an interface that is up`, "ip link set up0 up")
	want(t, "rules afterwards", false, strings.Contains(netState(t, own), "fwmark"))
}

func TestRouteErrors(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	for _, c := range []struct {
		dst, via, dev string
		metric        *int64
		src, say      string
	}{
		{"", "10.0.0.1", "", nil, "", `route: dst: got ""`},
		{"10.0.0", "10.0.0.1", "", nil, "", `route: dst: got "10.0.0"`},
		{"10.0.0.1/24", "10.0.0.1", "", nil, "", "whose host bits are 0"},
		{"0.0.0.0", "10.0.0.1", "", nil, "", `"default" for all`},
		{"::ffff:1.2.3.4", "", "lo", nil, "", "a network of IPv4 or IPv6"},
		{"fe80::1%lo", "", "lo", nil, "", "or one address"},
		{"10.0.0.0/8", "", "", nil, "", "the gateway or the interface"},
		{"10.0.0.0/8", "gate", "", nil, "", `route: via: got "gate"`},
		{"10.0.0.0/8", "fd00::1", "", nil, "", "of the family of 10.0.0.0/8"},
		{"fd00::/64", "10.0.0.1", "", nil, "", "of the family of fd00::/64"},
		{"fd00::/64", "fe80::1", "", nil, "", "the interface beside it"},
		{"fd00::/64", "fe80::1%eth0", "", nil, "", "want the address alone"},
		{"10.0.0.0/8", "127.0.0.1", "", nil, "", "one that a machine can have"},
		{"10.0.0.0/8", "0.0.0.0", "", nil, "", "one that a machine can have"},
		{"10.0.0.0/8", "10.0.0.1", "", n(-1), "", "route: metric: got -1"},
		{"10.0.0.0/8", "10.0.0.1", "", n(1<<32 - 1), "", "0 to 4294967294"},
		{"10.0.0.0/8", "10.0.0.1", "", nil, "fd00::1", "route: src"},
		{"default", "10.0.0.1", "", nil, "fd00::1", "of the family of"},
		{"10.0.0.0/8", "", "a-name-that-is-too-long", nil, "", "route: dev"},
		{"10.0.0.0/8", "", "a/b", nil, "", "route: dev"},
	} {
		if _, err := ParseRoute(c.dst, c.via, c.dev, c.metric, c.src); err == nil {
			t.Errorf("%+v: read", c)
		} else {
			contains(t, err.Error(), "route: ", c.say)
		}
	}
	for dst, say := range map[string]string{"default": "default via 10.0.0.1", "10.0.0.0/8": "10.0.0.0/8 via 10.0.0.1", "10.7.7.7": "10.7.7.7 via 10.0.0.1"} {
		want(t, dst, say, mustRoute(dst, "10.0.0.1", "").String())
	}
	want(t, "::/0", "default (IPv6) dev lo", mustRoute("::/0", "", "lo").String())

	six := mustRoute("fd00::/64", "", "lo")
	same := six
	same.Metric = 1024 // which is what 0 means
	for _, list := range [][]Route{{six, same}, {mustRoute("default", "10.0.0.1", ""), mustRoute("default", "10.0.0.2", "")}} {
		if err := (&Routes{Routes: list}).Validate(); err == nil {
			t.Errorf("%v: valid", list)
		} else {
			contains(t, err.Error(), "of one metric, want each once")
		}
	}
	for _, table := range []int64{-1, 0, 253, 254, 255, 1 << 32} {
		if err := CheckTable(table); err == nil {
			t.Errorf("table %d: valid", table)
		} else {
			contains(t, err.Error(), fmt.Sprintf("routes: table: got %d", table))
		}
	}
	for _, table := range []int64{1, 252, 256, 1<<32 - 1} {
		if err := CheckTable(table); err != nil {
			t.Error(err)
		}
	}
}

// With a fault at each step nothing is left, in the tests' network neither.
func TestRoutesFaults(t *testing.T) {
	needV1(t)
	testRoutesFaults(t)
}

func TestRoutesFaultsV2(t *testing.T) {
	needV2(t)
	testRoutesFaults(t)
}

func testRoutesFaults(t *testing.T) {
	h := newHost(t)
	own, _ := uplink(t)
	before := netState(t, own)
	l := labOn(t, h, "")
	for name, rs := range map[string][]Resource{
		"shared": testRoutes(),
		"own":    {space("netspace"), &Routes{Routes: []Route{mustRoute("10.9.0.0/16", "", "lo"), mustRoute("10.10.0.0/16", "10.9.0.1", "")}}},
	} {
		faults(t, h, l, l.Host(), rs)
		want(t, name+": rules and routes", before, netState(t, own))
	}
}

// A killed msh's table is found and taken back by the next.
func TestRoutesCrash(t *testing.T) {
	needV1(t)
	testRoutesCrash(t)
}

func TestRoutesCrashV2(t *testing.T) {
	needV2(t)
	testRoutesCrash(t)
}

func testRoutesCrash(t *testing.T) {
	h := newHost(t)
	own, _ := uplink(t)
	before := netState(t, own)
	made := 0
	for k := 1; ; k++ {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", netMakerEnv, k), makerState+"="+h.State, makerLab+"="+labName(t))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		cmd.Wait()
		if strings.HasPrefix(line, "error:") {
			t.Fatal(line)
		}
		if netState(t, own) != before {
			made++
		}
		sweep(t, h, false)
		want(t, fmt.Sprintf("killed at step %d: rules and routes", k), before, netState(t, own))
		want(t, fmt.Sprintf("killed at step %d: left", k), "", strings.Join(leftOf(t, h), "\n"))
		if t.Failed() {
			t.FailNow()
		}
		if line != "" {
			break
		}
	}
	if made < 5 {
		t.Errorf("only %d crashes left something in the network: that is no test", made)
	}

	// Somebody else's rule of that mark stays.
	rule := netx.Lookup{Table: 99, Mark: firstTable, Priority: tablePriority}
	if err := own.AddLookup(2, rule); err != nil {
		t.Fatal(err)
	}
	if err := h.removeTable(routeTable{Home: home{Boot: bootID(), ID: mustID(t, own)}, Lookup: netx.Lookup{Table: firstTable, Mark: firstTable, Priority: tablePriority}}); err != nil {
		t.Fatal(err)
	}
	contains(t, netState(t, own), "lookup 99")
	if err := own.RemoveLookup(2, rule); err != nil {
		t.Fatal(err)
	}
	want(t, "at last", before, netState(t, own))
}

func mustID(t *testing.T, ns *netx.NS) uint64 {
	t.Helper()
	id, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}
