package kernel

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestNetaddr(t *testing.T) {
	needV1(t)
	testNetaddr(t)
}

func TestNetaddrV2(t *testing.T) {
	needV2(t)
	testNetaddr(t)
}

func testNetaddr(t *testing.T) {
	h := newHost(t)
	own, other := uplink(t)
	before := netState(t, own)
	l := labOn(t, h, "")
	binary := knockBinary(t)
	given := addrs("10.0.0.2", "fd00::2")
	m := fork(t, l, given)
	ownSpaces(t, m)

	for calls, say := range map[string]string{
		"tcp4|bind 10.0.0.1:80":         "EPERM",
		"tcp6|bind [::]:80|name":        "ok; fd00::2",
		"udp4|connect 10.0.0.9:9|name":  "ok; 10.0.0.2",
		"udp6|connect [fd00::9]:9|name": "ok; fd00::2",
		"udp4|connect 127.0.0.1:9|peer": "ok; 10.0.0.2",
		"raw4|packet 10.0.0.1 10.0.0.9": "EPERM",
		"raw4|packet 0.0.0.0 10.0.0.9":  "EPERM", // which the kernel makes 10.0.0.1 (raw(7), IP_HDRINCL)
		"raw6|packet fd00::1 fd00::9":   "EPERM",
	} {
		want(t, calls, say, knockIn(t, m, binary, calls))
	}
	for _, c := range []struct{ calls, say string }{
		{"tcp4|bind 0.0.0.0:80|name", "ok; 10.0.0.2"},
		{"udp4|bind 10.0.0.3:80", "EPERM"},
		{"udp6|connect [2001:db8::1]:9|name", "ENETUNREACH; fd00::2"}, // the host has no way there
		{"raw4|packet 10.0.0.3 10.0.0.9", "EPERM"},
	} {
		sameWays(t, c.calls, c.say, everyWay(t, l, l.Host(), binary, c.calls, given))
	}

	// From outside: it is reached at its own address, and its port is the host's no more than before.
	serve(t, m, binary, "tcp4|bind 0.0.0.0:80|listen|accept|recv|send hello", 80)
	want(t, "the host's own server", "ok; 10.0.0.1", knockFrom(t, own, binary, "tcp4|bind 10.0.0.1:80|name"))
	want(t, "at another", "ECONNREFUSED", knockFrom(t, other, binary, "tcp4|connect 10.0.0.1:80"))
	want(t, "at its own", "ok; ok; hello", knockFrom(t, other, binary, "tcp4|connect 10.0.0.2:80|send x|recv"))
	serve(t, m, binary, "tcp6|bind [::]:81|listen|accept|recv|send hello", 81)
	want(t, "at its own, IPv6", "ok; ok; hello", knockFrom(t, other, binary, "tcp6|connect [fd00::2]:81|send x|recv"))
	want(t, "the host", "ok; 0.0.0.0", knockFrom(t, own, binary, "tcp4|bind 0.0.0.0:82|name"))

	destroy(t, m)
	want(t, "afterwards", before, netState(t, own))
}

func TestNetaddrNested(t *testing.T) {
	needV1(t)
	testNetaddrNested(t)
}

func TestNetaddrNestedV2(t *testing.T) {
	needV2(t)
	testNetaddrNested(t)
}

func testNetaddrNested(t *testing.T) {
	h := newHost(t)
	uplink(t)
	l := labOn(t, h, "")
	binary := knockBinary(t)
	outer := fork(t, l, addrs("10.0.0.1", "10.0.0.2", "fd00::2"), &Children{Max: 5}, space("pidspace"))
	inner := forkIn(t, l, outer, &Spec{Resources: []Resource{addrs("10.0.0.2"), &Children{Max: 2}}})
	plain := forkIn(t, l, outer, &Spec{})
	apart := forkIn(t, l, outer, &Spec{Resources: []Resource{space("netspace")}})
	for _, c := range []struct{ calls, outer, inner, plain, apart string }{
		{"tcp4|bind 0.0.0.0:80|name", "ok; 10.0.0.1", "ok; 10.0.0.2", "ok; 10.0.0.1", "ok; 0.0.0.0"},
		{"tcp4|bind 127.0.0.1:80|name", "ok; 10.0.0.1", "ok; 10.0.0.2", "ok; 10.0.0.1", "ok; 127.0.0.1"},
		{"tcp4|bind 10.0.0.1:80", "ok", "EPERM", "ok", "EADDRNOTAVAIL"},
		{"tcp4|bind 10.0.0.3:80", "EPERM", "EPERM", "EPERM", "EADDRNOTAVAIL"},
		{"tcp6|bind [::]:80|name", "ok; fd00::2", "ok; ::ffff:10.0.0.2", "ok; fd00::2", "ok; ::"},
		{"udp4|connect 127.0.0.1:9|name|send x", "ok; 10.0.0.1; ok", "ok; 10.0.0.2; ok", "ok; 10.0.0.1; ok", "ok; 127.0.0.1; ok"},
		{"raw4|packet 10.0.0.1 10.0.0.9", "ok", "EPERM", "ok", "ENETUNREACH"},
	} {
		for m, say := range map[*Machine]string{outer: c.outer, inner: c.inner, plain: c.plain, apart: c.apart} {
			want(t, m.Name()+" "+c.calls, say, knockIn(t, m, binary, c.calls))
		}
	}
	contains(t, refused(t, l, outer, addrs("10.0.0.3")), `netaddr: address: got "10.0.0.3"`, "addresses that m1 has: 10.0.0.1 10.0.0.2 fd00::2")
	contains(t, refused(t, l, inner, addrs("10.0.0.1")), "addresses that m2 has: 10.0.0.2")
	var names []string
	for _, a := range available(t, inner, "netaddr") {
		names = append(names, a.Name)
	}
	want(t, "what inner could give", "10.0.0.2", strings.Join(names, " "))
}

// Whoever has other ids is held to them as well.
func TestNetaddrUidspace(t *testing.T) {
	h := newHost(t)
	uplink(t)
	l := labOn(t, h, "")
	binary := knockBinary(t)
	m := fork(t, l, addrs("10.0.0.2"), &Uidspace{}, space("pidspace"))
	want(t, "bind", "ok; 10.0.0.2", knockIn(t, m, binary, "tcp4|bind 0.0.0.0:8080|name"))
	want(t, "bind another", "EPERM", knockIn(t, m, binary, "tcp4|bind 10.0.0.1:8080"))
}

func TestNetaddrErrors(t *testing.T) {
	h := newHost(t)
	uplink(t)
	l := labOn(t, h, "")
	_, err := l.Fork(t.Context(), l.Host(), &Spec{Resources: []Resource{addrs("10.0.0.2", "10.7.7.7", "fd77::1")}})
	if err == nil {
		t.Fatal("an address that is not there")
	}
	contains(t, err.Error()+hintOf(err), `netaddr: address: got 10.7.7.7 fd77::1`, "addresses of interfaces of host: 127.0.0.1 10.0.0.1", "ip address add 10.7.7.7/32 dev")
	contains(t, refused(t, l, l.Host(), addrs("10.0.0.2"), space("netspace")), "netaddr: got netaddr beside netif or netspace")
	contains(t, refused(t, l, l.Host(), addrs("10.0.0.2"), addrs("10.0.0.3")), "got netaddr twice")

	for _, c := range []struct{ list, say string }{
		{"", "1 to 64 addresses"}, {"10.0.0.2 10.0.0.2", "10.0.0.2 twice"}, {"0.0.0.0", "one that a machine can have"}, {"::", "one that a machine can have"},
		{"224.0.0.1", "one that a machine can have"}, {"255.255.255.255", "one that a machine can have"}, {"ff02::1", "one that a machine can have"},
		{"::ffff:10.0.0.1", "an IPv4 address as one"}, {"fe80::1", "link-local"}, {strings.Repeat("10.0.0.2 ", 65), "1 to 64"},
	} {
		err := addrs(strings.Fields(c.list)...).Validate()
		if err == nil {
			t.Errorf("%q: valid", c.list)
			continue
		}
		contains(t, err.Error(), "netaddr: address", c.say)
	}
	for text, say := range map[string]string{"10.0.0.1/24": "without a prefix length", "10.0.0": "an address, as", "host": "an address, as", "": "an address, as"} {
		if _, err := ParseNetaddr(text); err == nil {
			t.Errorf("%q: read", text)
		} else {
			contains(t, err.Error(), say)
		}
	}
}

func TestNetaddrJSON(t *testing.T) {
	s := Spec{Name: "m", Resources: testRoutes()}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Spec
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(back)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "there and back", string(b), string(again))
	if err := back.Validate(); err != nil {
		t.Error(err)
	}
}
