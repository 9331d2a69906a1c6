package kernel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// everything is a spec of every kind. CPUs, memory and devices only where the
// host has them to give.
func everything(t *testing.T, h *Host) []Resource {
	t.Helper()
	base := t.TempDir()
	rs := []Resource{
		&CPU{Quota: 50, Weight: 50}, &Memory{Max: bytesOf(64 << 20), Reserve: bytesOf(1 << 20)}, &Pids{Max: 50}, &Children{Max: 1},
		&Uidspace{}, space("cgroupspace"), space("ipcspace"), space("netspace"), space("mountspace"),
		&Root{Source: smallRoot(t), Write: "overlay", Upper: base}, space("pidspace"),
		&Mount{Source: base, Target: "/here/it/is", Type: "bind", Options: []string{"ro", "idmap"}},
		&Mount{Source: "/etc/passwd", Target: "/etc/some/file", Type: "bind"},
		&Mount{Target: "/scratch", Type: "tmpfs", Options: []string{"size=64k"}},
		&Uname{Nodename: "box", Domainname: "test", Release: "1.0"}, &Sysctl{"net.ipv4.ip_forward", "1"}, &Rlimit{Name: "nofile", Soft: 64, Hard: 64},
		&Device{Path: "/dev/kmsg", Access: "r"}, &Security{Level: 2, Landlock: map[string]string{"/": "rwx"}},
	}
	if online := read(t, "/sys/devices/system/cpu/online"); online != "0" {
		rs[0].(*CPU).Set, rs[0].(*CPU).Exclusive = []int{1}, true
	}
	return rs
}

// With a fault at each step, msh's and the child's, nothing is made and nothing
// is left.
func TestFaults(t *testing.T) {
	needV1(t)
	testFaults(t)
}

func TestFaultsV2(t *testing.T) {
	needV2(t)
	testFaults(t)
}

func testFaults(t *testing.T) {
	t.Run("minimal", func(t *testing.T) {
		h := newHost(t)
		l := labOn(t, h, "")
		faults(t, h, l, l.Host(), nil)
	})
	t.Run("everything", func(t *testing.T) {
		takeCPUs(t)
		h := newHost(t)
		rs := everything(t, h)
		if os.Getenv("MSH_VM") != "" { // whose kernel shifts no owners of a tmpfs
			rs = slices.DeleteFunc(rs, func(r Resource) bool {
				m, ok := r.(*Mount)
				return ok && slices.Contains(m.Options, "idmap")
			})
			rs = slices.DeleteFunc(rs, func(r Resource) bool { return r.Kind() == "uidspace" })
		}
		l := labOn(t, h, "")
		faults(t, h, l, l.Host(), rs)
	})
	// What msh makes for the child: the network, /dev, the empty file.
	t.Run("ahead", func(t *testing.T) {
		h := newHost(t)
		l := labOn(t, h, "")
		faults(t, h, l, l.Host(), []Resource{space("netspace"), overlay(), space("pidspace"), &Security{Level: 2}})
	})
	t.Run("nested", func(t *testing.T) {
		h := newHost(t)
		l := labOn(t, h, "")
		same := &Uidspace{Map: []IDMap{{0, 0, 65536}}}
		outer := fork(t, l, space("pidspace"), same, space("mountspace"), &Children{Max: 1}, &Pids{Max: 100})
		faults(t, h, l, outer, []Resource{space("pidspace"), &Uidspace{Map: []IDMap{{0, 0, 1000}}}, &Timespace{Boottime: time.Hour}, &Pids{Max: 10},
			space("ipcspace"), &Mount{Source: "/etc", Target: "/mnt", Type: "bind"}, &Security{Level: 2}})
	})
}

func faults(t *testing.T, h *Host, l *Lab, parent *Machine, rs []Resource) {
	spec := &Spec{Name: "m", Resources: rs}
	m, err := l.Fork(t.Context(), parent, spec) // that it can be made at all
	if err != nil {
		t.Fatalf("%v%s", err, hintOf(err))
	}
	destroy(t, m)
	plan, err := l.Plan(parent, spec)
	if err != nil {
		t.Fatal(err)
	}
	l.names["m"] = false // the plan took it, and a place among the children
	parent.disown("m")
	steps := plan.Steps.Steps()
	before := hostState(t, h)

	attempt := func(k int, check func(error)) bool {
		m, err := l.Fork(t.Context(), parent, spec)
		h.Fault = Fault{}
		if err == nil {
			destroy(t, m)
			return false
		}
		check(err)
		if left := settled(t, h, before); left != "" {
			t.Errorf("fault at step %d (%v): left (-before +after):\n%s", k, err, left)
		}
		if t.Failed() {
			t.FailNow()
		}
		return true
	}
	n := 0
	for k := 1; ; k++ {
		h.Fault = Fault{Parent: k}
		if !attempt(k, func(err error) {
			if !errors.Is(err, errFault) {
				t.Errorf("step %d: %v", k, err)
			}
			contains(t, err.Error(), "machine m: ", ": injected fault")
		}) {
			break
		}
		n = k
	}
	if n < 5 {
		t.Errorf("only %d steps of msh's own", n)
	}
	for k := 1; k <= len(steps); k++ {
		h.Fault = Fault{Child: k}
		if !attempt(k, func(err error) {
			contains(t, err.Error(), "machine m: ", "function not implemented")
			if steps[k-1].Nr != unix.SYS_OPEN_TREE { // whose error is in the words of the parameter
				contains(t, err.Error(), steps[k-1].Words)
			}
		}) && (k == 1 || steps[k-2].Flags&stage0.SkipNext == 0) {
			t.Errorf("a fault at step %d, %q, did not show", k, steps[k-1].Words)
		}
	}
	t.Logf("%d steps of msh's, %d of the child's", n, len(steps))
	want(t, "at last", "", cmp.Diff(before, hostState(t, h)))
}

// With a fault at each step of msh's, no network with all that it can have is made,
// and nothing is left.
func TestFaultsVNet(t *testing.T) {
	l := netLab(t)
	parent := forkNamed(t, l, "parent", space("netspace"), &Children{Max: 1})
	nicIn(t, ownNet(t, parent), "nic0")
	run(t, parent, "nft", "add table inet mine; add chain inet mine forward { type filter hook forward priority 0; policy drop; }")
	spec := &VNetSpec{Name: "lan", NAT: true, Uplink: "nic0", VXLAN: &VXLAN{ID: 5, Peers: peers("10.7.0.9")}, Subnets: prefixes("10.0.0.0/24", "fd00::/64")}
	netFaults(t, l, parent, 12, func() (func() error, error) {
		v, err := l.VNet(t.Context(), parent, spec)
		if err != nil {
			return nil, err
		}
		return func() error { return v.Destroy(t.Context()) }, nil
	})
}

// A cable between machines, of which only the patch panel has steps.
func TestFaultsLink(t *testing.T) {
	l := netLab(t)
	a, b := forkNamed(t, l, "a", space("netspace"), space("mountspace")), forkNamed(t, l, "b", space("netspace"))
	netFaults(t, l, a, 3, func() (func() error, error) {
		k, err := l.Link(t.Context(), LinkEnd{Machine: a, Netif: cableEnd("10.0.0.1/30")}, LinkEnd{Machine: b, Netif: cableEnd("10.0.0.2/30")}, Cable{})
		if err != nil {
			want(t, "interfaces", 0, len(a.Netifs())+len(b.Netifs()))
			return nil, err
		}
		return func() error {
			err := k.Destroy(t.Context())
			if w := l.patch; w != nil { // which else stays until the lab's end
				l.patch = nil
				err = errors.Join(err, w.remove(t.Context(), l.host))
			}
			return err
		}, nil
	})
}

// A machine with interfaces of every sort, in a machine.
func TestFaultsNetifs(t *testing.T) {
	l := netLab(t)
	parent := forkNamed(t, l, "parent", space("netspace"), &Children{Max: 3})
	nicIn(t, ownNet(t, parent), "nic0")
	sh(t, parent, "ip link add nic1 type veth peer name nic2; ip link set nic1 up; ip link set nic2 up; ip link add br0 type bridge; ip link set br0 up; ip link add p0 type veth peer name q0; ip link set p0 up master br0; ip link set q0 up")
	lan := makeVNet(t, l, parent, &VNetSpec{Name: "lan", NAT: true}, "10.0.0.0/16", "fd00::/64")
	six := makeVNet(t, l, parent, &VNetSpec{Name: "six"}, "fd06::/64")
	other := forkIn(t, l, parent, &Spec{Name: "other", Resources: []Resource{on(lan), space("mountspace")}})
	know, taken := names(t, other), len(lan.taken)
	netFaults(t, l, parent, 15, func() (func() error, error) {
		m, err := l.Fork(t.Context(), parent, &Spec{Name: "m", Resources: []Resource{
			on(lan), &Netif{VNet: "six", Cable: lossy(0, 10)}, inParent("nic0"), &Netif{Device: "nic1", Share: "macvlan", MTU: 1400}, &Netif{Device: "br0", Share: "bridge"},
			space("mountspace"), space("pidspace"), &Netif{VNet: "lan", Bare: true},
		}})
		if err != nil {
			want(t, "what a neighbour knows", know, names(t, other))
			want(t, "addresses taken", taken, len(lan.taken))
			want(t, "machines on it", []string{"other"}, lan.Machines())
			return nil, err
		}
		return func() error { return m.Destroy(t.Context()) }, nil
	})
	eventually(t, "the ports have gone", func() bool { return len(devices(t, lan.net.ns)) == 3 && len(devices(t, six.net.ns)) == 1 })

	// And the child's steps, of which the names of the network are some.
	faults(t, l.host, l, parent, []Resource{on(lan), space("mountspace")})
	want(t, "what a neighbour knows", know, names(t, other))
}

// netFaults has try fail at each of its steps, at least so many, and looks at what
// it has left: on the host, and in the network of a machine's.
func netFaults(t *testing.T, l *Lab, m *Machine, least int, try func() (undo func() error, err error)) {
	t.Helper()
	h := l.host
	attempt := func(k int) error {
		h.Fault = Fault{Parent: k}
		undo, err := try()
		h.Fault = Fault{}
		if err == nil {
			if err := undo(); err != nil {
				t.Fatal(err)
			}
		}
		return err
	}
	ns := ownNet(t, m)
	network := networkOf(t, ns)
	if err := attempt(0); err != nil { // that it can be made at all
		needs(t, err)
		t.Fatalf("%v%s", err, hintOf(err))
	}
	sameNetwork(t, "without a fault: the network of "+m.Name(), ns, network)
	before := hostState(t, h)
	k := 1
	for ; ; k++ {
		err := attempt(k)
		if left := settled(t, h, before); left != "" {
			t.Errorf("fault at step %d (%v): left (-before +after):\n%s", k, err, left)
		}
		sameNetwork(t, fmt.Sprintf("fault at step %d (%v): the network of %s", k, err, m.Name()), ns, network)
		if t.Failed() {
			t.FailNow()
		}
		if err == nil {
			break
		}
		if !errors.Is(err, errFault) {
			t.Fatalf("step %d: %v", k, err)
		}
	}
	if k <= least {
		t.Errorf("only %d steps", k-1)
	}
	t.Logf("%d steps", k-1)
}
