package kernel

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"msh/kernel/cgroup"
	"msh/kernel/netx"
	"msh/kernel/stage0"
)

type stage0FD = stage0.FD

// every is one resource of each kind, with all that it can have.
func every() []Resource {
	base := uint32(100000)
	return append(fullSpec().Resources, &Timespace{Boottime: time.Hour, Monotonic: -time.Second},
		&Uidspace{Base: &base, Size: 10}, &Uidspace{Map: []IDMap{{0, 5, 10}}}, space("mountspace"),
		&Memory{High: bytesOf(1 << 30)}, &Root{Source: "/x", Write: "overlay", Upper: "/y"},
		&IO{Device: "8:0", WriteBPS: 1, ReadIOPS: 2, WriteIOPS: 3},
		&Netif{VNet: "lan", Name: "eth0", Addresses: []Address{{netip.MustParsePrefix("10.0.0.2/24")}}, Gateway: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			MTU: 1400, Cable: Cable{Out: netx.Impair{Rate: 1e6}, Named: []string{"rate"}}},
		&Netaddr{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}},
		&Routes{Routes: []Route{{Dst: netip.MustParsePrefix("10.0.0.0/8"), Via: netip.MustParseAddr("10.0.0.1"), Metric: 3}}, Table: 7},
		&Security{Level: 2, Caps: []string{"+net_admin"}, Landlock: map[string]string{"/": "r"}}, &Device{Path: "/dev/fuse", Access: "rw"}, &ProcView{})
}

func TestSpecJSON(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range every() {
		seen[r.Kind()] = true
		s := Spec{Name: "m", Init: []string{"a", "b"}, Keep: true, Resources: []Resource{r}, Pos: "x.star:1:2"}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Spec
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		want(t, r.Kind()+" there and back", s, back)
	}
	for _, k := range kindNames() {
		if !seen[k] {
			t.Errorf("%s is not in every()", k)
		}
	}
	var s Spec
	for _, text := range []string{`{"Resources":[{"Kind":"soul","With":{}}]}`, `{"Resources":[{"Kind":"controller","With":{}}]}`, `{"Resources":[{"Kind":"pids","With":{"Max":"x"}}]}`, `{"Resources":3}`} {
		if err := json.Unmarshal([]byte(text), &s); err == nil {
			t.Errorf("%s: read", text)
		}
	}
}

func FuzzSpecJSON(f *testing.F) {
	for _, r := range every() {
		b, err := json.Marshal(Spec{Name: "m", Resources: []Resource{r}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"Resources":[{"Kind":"cpu","With":null},{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Spec
		if json.Unmarshal(b, &s) != nil || s.Validate() != nil {
			return
		}
		// What is valid can be planned, or refused, on any host, and read again.
		for _, h := range []*cgroup.Host{hybridHost, unifiedHost} {
			s.Name = "m"
			if p, err := NewPlan(&s, Under{Lab: "l"}, h, "/run/msh/l/m"); err == nil {
				p.Print(&strings.Builder{})
			}
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Spec
		if err := json.Unmarshal(again, &back); err != nil {
			t.Fatal(err)
		}
		third, err := json.Marshal(back)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(again), string(third)); diff != "" {
			t.Errorf("there and back (-want +got):\n%s", diff)
		}
	})
}

// Every error of Validate, in one file.
func TestValidate(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	u := func(v uint32) *uint32 { return &v }
	long := strings.Repeat("x", 65)
	specs := []*Spec{
		{Name: "Upper"}, {Name: "-a"}, {Name: strings.Repeat("a", 64)}, {Name: "a/b"}, {Name: ".."}, {Init: []string{}}, {Init: []string{""}},
		{Resources: []Resource{&Pids{5}, &Pids{6}}},
		{Resources: []Resource{&Mount{Target: "/a", Type: "tmpfs"}, &Mount{Target: "/b/../a", Type: "tmpfs"}}},
		{Resources: []Resource{&Rlimit{Name: "core"}, &Rlimit{Name: "core", Hard: 1}}},
		{Resources: []Resource{&Sysctl{"net.ipv4.ip_forward", "1"}}}, {Resources: []Resource{&Sysctl{"kernel.shmmax", "1"}, space("netspace")}},
	}
	for _, r := range []Resource{
		&CPU{}, &CPU{Quota: 0.01}, &CPU{Quota: -5}, &CPU{Quota: 2e6}, &CPU{Weight: -1}, &CPU{Weight: 10001}, &CPU{Set: []int{}}, &CPU{Exclusive: true},
		&Memory{}, &Memory{Max: n(0)}, &Memory{Max: n(-1)}, &Memory{High: n(100)}, &Memory{Reserve: n(0)}, &Memory{Swap: n(-1)},
		&Memory{Max: n(1 << 20), High: n(2 << 20)}, &Memory{Max: n(1 << 20), Reserve: n(2 << 20)},
		&Pids{}, &Pids{-1}, &Pids{1 << 30},
		&IO{}, &IO{Device: "/dev/sda"}, &IO{Device: "/dev/sda", Weight: 10001}, &IO{Device: "/dev/sda", Weight: -1},
		&Children{-1}, &Children{5000},
		&Rlimit{Name: "files"}, &Rlimit{Name: "nofile", Soft: 5, Hard: 4}, &Rlimit{Name: "nofile", Soft: Unlimited, Hard: 4},
		&Uidspace{Base: u(1), Map: []IDMap{{0, 0, 1}}}, &Uidspace{Size: 1, Map: []IDMap{{0, 0, 1}}}, &Uidspace{Map: []IDMap{}}, &Uidspace{Map: make([]IDMap, 341)},
		&Uidspace{Map: []IDMap{{0, 0, 0}}}, &Uidspace{Map: []IDMap{{0, 1<<32 - 1, 1}}}, &Uidspace{Map: []IDMap{{1, 0, 1}}}, &Uidspace{Map: []IDMap{{0, 0, 10}, {5, 20, 10}}},
		&Uidspace{Map: []IDMap{{0, 0, 10}, {20, 5, 10}}}, &Uidspace{Base: u(1<<32 - 5)},
		&Timespace{Boottime: 101 * 365 * 24 * time.Hour}, &Timespace{Monotonic: -101 * 365 * 24 * time.Hour},
		&Root{}, &Root{Source: "/"}, &Root{Source: "/", Write: "copy"}, &Root{Source: "/", Write: "none", Size: 1 << 20}, &Root{Source: "/", Write: "direct", Upper: "/u"},
		&Root{Source: "/", Write: "overlay", Upper: "/u", Size: 1 << 20}, &Root{Source: "/", Write: "overlay", Size: 100}, &Root{Source: "/", Write: "overlay", Size: -1},
		&Mount{}, &Mount{Target: "/", Type: "tmpfs"}, &Mount{Target: "/a/..", Type: "tmpfs"}, &Mount{Target: "/a", Type: "bind"}, &Mount{Target: "/a"},
		&Mount{Source: "/a", Target: "/a", Type: "bind", Options: []string{"size=1m"}}, &Mount{Target: "/a", Type: "tmpfs", Options: []string{"a\x00b"}},
		&Mount{Source: "/a", Target: "/a", Type: "bind", Options: []string{"rbind", "idmap"}},
		&Uname{}, &Uname{Nodename: long}, &Uname{Domainname: long}, &Uname{Nodename: "a b"}, &Uname{Domainname: "a\nb"},
		&Sysctl{}, &Sysctl{"kernel.hostname", "x"}, &Sysctl{"kernel.panic", "1"}, &Sysctl{"net..x", "1"}, &Sysctl{"net.ipv4.ip_forward", ""}, &Sysctl{"../../etc/passwd", "x"},
		&Sysctl{"net/../kernel/panic", "1"},
	} {
		specs = append(specs, &Spec{Resources: []Resource{r}})
	}
	var b strings.Builder
	for _, s := range specs {
		err := s.Validate()
		if err == nil {
			j, _ := json.Marshal(s)
			t.Errorf("%s: valid", j)
			continue
		}
		fmt.Fprintln(&b, err)
		if h := hintOf(err); h != "" {
			fmt.Fprintln(&b, "\t"+strings.TrimSpace(h))
		}
	}
	golden(t, "validate.txt", b.String())
	for _, r := range every() {
		if err := r.Validate(); err != nil {
			t.Errorf("%s: %v", r.Kind(), err)
		}
	}
}

// Whatever is asked of several kinds together, one error names all it takes.
func TestModes(t *testing.T) {
	for _, k := range kinds() {
		if k.New == nil {
			continue
		}
		r := k.New()
		want(t, "kind", k.Name, r.Kind())
		if s, ok := r.(*Space); ok {
			want(t, "space", k.Name, s.Name)
		}
	}
	for _, c := range []struct {
		r    Resource
		mode Mode
	}{
		{&CPU{Quota: 1}, Shared}, {&CPU{Set: []int{0}, Exclusive: true}, Exclusive}, {&Memory{Max: bytesOf(1)}, Shared}, {&Memory{Reserve: bytesOf(1)}, Exclusive},
		{&Uidspace{}, Exclusive}, {&Uidspace{Map: []IDMap{{0, 0, 1}}}, New}, {&Root{Write: "overlay"}, New}, {&Root{Write: "none"}, Shared},
		{&Mount{Type: "bind"}, Shared}, {&Mount{Type: "tmpfs"}, New}, {space("pidspace"), New}, {&Pids{}, Shared}, {&Timespace{}, New}, {&Uname{}, New},
	} {
		want(t, fmt.Sprintf("%T", c.r), c.mode, c.r.Mode())
	}
}
