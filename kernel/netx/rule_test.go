package netx

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// state is what ip(8) says of rules and routes in a namespace.
func ruleState(t *testing.T, ns *NS) string {
	t.Helper()
	var b strings.Builder
	for _, f := range []string{"-4", "-6"} {
		for _, what := range [][]string{{"rule"}, {"route", "show", "table", "all"}} {
			cmd := exec.Command("ip", append([]string{f}, what...)...)
			cmd.Stdout = &b
			cmd.Stderr = &b
			if err := ns.Do(cmd.Run); err != nil {
				t.Fatalf("%v: %v\n%s", cmd.Args, err, &b)
			}
		}
	}
	return b.String()
}

func TestRules(t *testing.T) {
	ns, _ := pair(t)
	before := ruleState(t, ns)
	mine := Lookup{Table: 0x6d000000, Mark: 0x6d000000, Priority: 900}
	other := Lookup{Table: 0x6d000001, Mark: 0x6d000000, Priority: 900}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, l := range []Lookup{mine, other} {
			if err := ns.AddLookup(family, l); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := ns.AddLookup(unix.AF_INET, mine); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same rule again: %v", err)
	}
	if got := ruleState(t, ns); strings.Count(got, "900:	from all fwmark 0x6d000000 lookup 1828716544") != 2 {
		t.Errorf("rules:\n%s", got)
	}
	rules, err := ns.Rules()
	if err != nil {
		t.Fatal(err)
	}
	met := 0
	for _, r := range rules {
		if r.Meets(0x6d000000) {
			met++
		}
		if r.Meets(0x6d000005) {
			t.Errorf("%+v meets a number that nobody has", r)
		}
	}
	want(t, "rules that use the number", 4, met)
	want(t, "a rule for a bit of the mark", true, Rule{Table: 5, Mark: 4, Mask: 4}.Meets(0x6d000004))
	want(t, "a rule for all", false, Rule{Table: 254}.Meets(0x6d000004))
	for range 2 { // the second time there is none
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			if err := ns.RemoveLookup(family, mine); err != nil {
				t.Error(err)
			}
		}
	}
	want(t, "the other one is left", 2, strings.Count(ruleState(t, ns), "fwmark"))
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := ns.RemoveLookup(family, other); err != nil {
			t.Error(err)
		}
	}
	want(t, "as before", before, ruleState(t, ns))
}

func TestTables(t *testing.T) {
	ns, _ := pair(t)
	eventually(t, "the IPv6 addresses are there to be sent to", func() bool { return strings.Count(ruleState(t, ns), "local fd00::") == 3 })
	before := ruleState(t, ns)
	const number = 0x6d000000
	list := []Route{
		{Dst: netip.MustParsePrefix("10.7.0.0/16"), Index: 5},
		{Dst: netip.MustParsePrefix("10.7.0.0/16"), Index: 5, Metric: 7, Src: netip.MustParseAddr("10.0.0.2")},
		{Dst: netip.MustParsePrefix("10.8.0.1/32"), Via: netip.MustParseAddr("10.0.0.9")},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.7.0.1"), Index: 5}, // behind the first
		{Dst: netip.MustParsePrefix("fd01::/64"), Via: netip.MustParseAddr("fd00::9"), Metric: 5},
		{Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::1"), Index: 5},
	}
	for _, r := range list {
		r.Table = number
		r.Protocol = unix.RTPROT_STATIC
		if err := ns.AddRoute(r); err != nil {
			t.Fatalf("%v: %v", r, err)
		}
		if err := ns.AddRoute(r); !errors.Is(err, unix.EEXIST) {
			t.Errorf("%v again: %v", r, err)
		}
	}
	for _, six := range []bool{false, true} {
		if err := ns.AddRoute(Unreachable(number, six)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ns.TableRoutes(number)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "routes", len(list)+2, len(got))
	want(t, "unreachable", true, got[len(got)-1].Unreachable)
	moved := Route{Dst: list[2].Dst, Via: netip.MustParseAddr("10.0.0.8"), Table: number, Protocol: unix.RTPROT_STATIC}
	if err := ns.PutRoute(moved); err != nil {
		t.Fatal(err)
	}
	if s := ruleState(t, ns); !strings.Contains(s, "10.8.0.1 via 10.0.0.8 dev a table 1828716544 proto static") || strings.Contains(s, "via 10.0.0.9 dev a table") {
		t.Errorf("moved:\n%s", s)
	}
	for range 2 {
		if err := ns.RemoveRoute(moved); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := ns.ClearTable(number); err != nil {
			t.Error(err)
		}
	}
	if got, err := ns.TableRoutes(number); len(got) != 0 || err != nil {
		t.Errorf("left: %v, %v", got, err)
	}
	want(t, "as before", before, ruleState(t, ns))
	if got, err := ns.TableRoutes(unix.RT_TABLE_MAIN); len(got) == 0 || err != nil {
		t.Errorf("main: %v, %v", got, err)
	}
	for _, r := range []Route{
		{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("172.16.0.1")},
		{Dst: netip.MustParsePrefix("10.9.0.0/16"), Index: 5, Src: netip.MustParseAddr("172.16.0.1")},
		{Dst: netip.MustParsePrefix("10.9.0.0/16"), Index: 99},
		{Dst: netip.MustParsePrefix("fd01::/64"), Via: netip.MustParseAddr("fd77::9")},
		{Dst: netip.MustParsePrefix("fd01::/64"), Index: 5, Src: netip.MustParseAddr("fd77::1")},
	} {
		r.Table = number
		err := ns.AddRoute(r)
		if err == nil {
			t.Errorf("%v: made", r)
		}
		t.Logf("%v: %v", r, err)
	}
	want(t, "still as before", before, ruleState(t, ns))
}

func TestAddresses(t *testing.T) {
	ns, _ := pair(t)
	held, err := ns.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, h := range held {
		found[h.Prefix.String()] = h.Device
	}
	for a, dev := range map[string]string{"127.0.0.1/8": "lo", "10.0.0.2/24": "a", "fd00::3/64": "a", "::1/128": "lo"} {
		want(t, a, dev, found[a])
	}
}
