package kernel

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The maker is this test binary once more, as an msh that makes machines and is
// killed. It is told what to make, where, and in which lab; what it says on its
// standard output is when.

const (
	makerState = "MSH_TEST_STATE"
	makerLab   = "MSH_TEST_LAB"
)

func maker(role string) {
	ctx := context.Background()
	h, err := NewHost(os.Getenv(makerState))
	fail := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	fail(err)
	l, err := h.NewLab(os.Getenv(makerLab), false)
	fail(err)
	make := func(parent *Machine, s *Spec) *Machine {
		m, err := l.Fork(ctx, parent, s)
		fail(err)
		return m
	}
	role, arg, _ := strings.Cut(role, ":")
	vnet := func(parent *Machine, s *VNetSpec, subnets ...string) *VNet {
		s.Subnets = prefixes(subnets...)
		v, err := l.VNet(ctx, parent, s)
		fail(err)
		return v
	}
	killAt := func() {
		k, err := strconv.Atoi(arg)
		fail(err)
		h.Fault = Fault{Parent: k, Kill: true}
	}
	switch role {
	case "vnet": // killed at that step of a network with all it can have
		killAt()
		vnet(l.Host(), &VNetSpec{NAT: true, Uplink: "nic0", VXLAN: &VXLAN{ID: 9, Peers: peers("10.7.0.9")}}, "10.0.0.0/24", "fd00::/64")
		fmt.Println("past the last step")
	case "netifs": // of a machine that gets what another one has been given, and a port of its network
		outer := make(l.Host(), &Spec{Resources: []Resource{inParent("nic0"), &Netif{Device: "nic1", Share: "macvlan"}, &Children{Max: 1}}})
		lan := vnet(outer, &VNetSpec{NAT: true}, "10.0.0.0/24")
		killAt()
		make(outer, &Spec{Resources: []Resource{inParent("nic0"), on(lan), space("mountspace")}})
		fmt.Println("past the last step")
	case "uplink": // of a network that lies in the machine that has it
		outer := make(l.Host(), &Spec{Resources: []Resource{inParent("nic0"), space("pidspace"), &Children{Max: 1}}})
		killAt()
		lan := vnet(outer, &VNetSpec{Uplink: "nic0"}, "10.0.0.0/24")
		_, err := l.Link(ctx, LinkEnd{Machine: outer, Netif: &Netif{}}, LinkEnd{VNet: lan}, Cable{})
		fail(err)
		make(outer, &Spec{Resources: []Resource{on(lan)}})
		fmt.Println("past the last step")
	case "nets": // leaves what is kept, and what is not, on networks
		world := vnet(l.Host(), &VNetSpec{Name: "world", NAT: true}, "10.5.0.0/24")
		make(l.Host(), &Spec{Name: "kept", Keep: true, Resources: []Resource{on(world), space("mountspace")}})
		make(l.Host(), &Spec{Name: "also", Keep: true, Resources: []Resource{on(world), space("mountspace")}})
		lost := make(l.Host(), &Spec{Name: "lost", Resources: []Resource{on(world), inParent("nic0"), space("pidspace"), &Children{Max: 1}}})
		lan := vnet(lost, &VNetSpec{Name: "lan", NAT: true, Uplink: "nic0"}, "10.5.0.0/24")
		make(lost, &Spec{Name: "inside", Resources: []Resource{on(lan)}})
		vnet(l.Host(), &VNetSpec{Name: "also-lost"})
		fmt.Println("go")
		select {}
	case "inner", "alone": // killed at that step of msh's
		outer := make(l.Host(), &Spec{Resources: []Resource{space("pidspace"), &Uidspace{Size: 200000}, &Children{Max: 2}}})
		k, err := strconv.Atoi(arg)
		fail(err)
		h.Fault = Fault{Parent: k, Kill: true}
		if role == "inner" {
			make(outer, &Spec{Resources: []Resource{space("pidspace"), &Uidspace{Size: 1000}, &Timespace{Boottime: time.Hour}, &Pids{Max: 10}}})
		} else {
			make(l.Host(), &Spec{Resources: []Resource{space("pidspace"), space("mountspace"), &Uidspace{}, alone(), &Memory{Reserve: bytesOf(1 << 20)}}})
		}
		fmt.Println("past the last step")
	case "busy": // makes and ends machines until it is killed
		fmt.Println("go")
		for {
			outer := make(l.Host(), &Spec{Resources: []Resource{space("pidspace"), &Uidspace{Size: 200000}, &Children{Max: 1}, alone()}})
			_, err := outer.Spawn(ctx, &Command{Argv: []string{"sleep", "600"}}, "", RestartAlways)
			fail(err)
			inner := make(outer, &Spec{Resources: []Resource{space("pidspace"), &Uidspace{Size: 1000}, &Pids{Max: 10}}})
			_, err = inner.Run(ctx, &Command{Argv: []string{"/bin/sh", "-c", "sleep 600 & "}}, nil, 0)
			fail(err)
			fail(outer.Destroy(ctx))
		}
	case "snapshot", "files", "hibernate", "wake", "wakes", "clone", "migrate", "receive":
		k, _ := strconv.Atoi(arg)
		fail(saver(ctx, h, l, role, k))
		if role != "receive" {
			fmt.Println("past the last step")
		}
	case "keep": // leaves machines that are kept, and some that are not
		kept := make(l.Host(), &Spec{Name: "kept", Keep: true, Resources: []Resource{space("pidspace"), &Uidspace{Size: 200000}, &Children{Max: 1}, &Root{Source: "/", Write: "overlay"}}})
		_, err := kept.Spawn(ctx, &Command{Argv: []string{"sleep", "600"}}, "", RestartNo)
		fail(err)
		make(kept, &Spec{Name: "inside", Keep: true, Resources: []Resource{space("pidspace"), &Uidspace{Size: 1000}, &Pids{Max: 10}}})
		make(l.Host(), &Spec{Name: "lost", Resources: []Resource{space("pidspace"), alone()}})
		fmt.Println("go")
		select {}
	}
}

// alone is a CPU of one's own where there are two.
func alone() Resource {
	if b, err := os.ReadFile("/sys/devices/system/cpu/online"); err == nil && strings.TrimSpace(string(b)) != "0" {
		return &CPU{Set: []int{1}, Exclusive: true}
	}
	return &CPU{Quota: 50}
}

// startMaker starts one and returns when it says its first line, or ends.
func startMaker(t *testing.T, h *Host, lab, role string) (cmd *exec.Cmd, line string) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), makerEnv+"="+role, makerState+"="+h.State, makerLab+"="+lab)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ = bufio.NewReader(out).ReadString('\n')
	if strings.HasPrefix(line, "error:") {
		cmd.Wait()
		t.Fatal(strings.TrimSpace(line))
	}
	t.Cleanup(func() { // where the test has not killed it
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, strings.TrimSpace(line)
}

// leftOf is what is left of a lab on the host: groups, directories, claims.
func leftOf(t *testing.T, h *Host) []string {
	t.Helper()
	left := groupsLeft(labPrefix())
	for _, g := range left {
		if procs, err := os.ReadFile(strings.TrimPrefix(g, "cgroup ") + "/cgroup.procs"); err == nil && len(procs) > 0 {
			left = append(left, "processes in "+g)
		}
	}
	filepath.WalkDir(h.State, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != h.State && path != filepath.Join(h.State, ".book") {
			left = append(left, path)
		}
		return nil
	})
	return left
}

func sweep(t *testing.T, h *Host, dead bool) []string {
	t.Helper()
	removed, err := h.Sweep(t.Context(), dead)
	if err != nil {
		t.Fatal(err)
	}
	return removed
}

func TestCrash(t *testing.T) {
	needV1(t)
	testCrash(t)
}

func TestCrashV2(t *testing.T) {
	needV2(t)
	testCrash(t)
}

func testCrash(t *testing.T) {
	takeCPUs(t)
	h := newHost(t)
	live := labOn(t, h, "-live")
	alive := fork(t, live, space("pidspace"))
	p := spawn(t, alive, "exec sleep 600")
	name := labName(t)
	crashed := func() []string {
		return slices.DeleteFunc(leftOf(t, h), func(s string) bool { return strings.Contains(s, live.Name()) })
	}
	after := func(what string) {
		t.Helper()
		sweep(t, h, false)
		want(t, what+": left after the sweep", "", strings.Join(crashed(), "\n"))
		want(t, what+": the live machine's CPUs", read(t, "/sys/devices/system/cpu/online"), allowed(t, alive))
		if t.Failed() {
			t.FailNow()
		}
	}

	for _, role := range []string{"inner", "alone"} {
		for k := 1; ; k++ {
			cmd, line := startMaker(t, h, name, fmt.Sprintf("%s:%d", role, k))
			cmd.Wait()
			if len(crashed()) == 0 {
				t.Error("the crash has left nothing: that is no test")
			}
			after(fmt.Sprintf("%s: killed at step %d", role, k))
			if line != "" {
				if k < 8 {
					t.Errorf("%s: only %d steps", role, k-1)
				}
				break
			}
		}
	}

	busy := 16
	if os.Getenv("MSH_VM") == "1" {
		busy = 4 // it is slow there
	}
	for i := range busy {
		cmd, _ := startMaker(t, h, name, "busy")
		time.Sleep(time.Duration(i*i) * 700 * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		after(fmt.Sprintf("killed, the %dth time", i+1))
	}

	// The name is free again, and what the live lab has is as it was.
	l := labOn(t, h, "")
	m := fork(t, l, space("pidspace"), alone())
	want(t, "the lab's name", name, l.Name())
	want(t, "a machine in it", "here", run(t, m, "echo", "here"))
	sweep(t, h, true)
	want(t, "the live machine", "running", alive.State())
	want(t, "its process", true, p.Alive())
	want(t, "the new machine", "running", m.State())
}

// Without a sweep, whoever takes the lab's name up next cleans up first.
func TestCrashSameName(t *testing.T) {
	takeCPUs(t)
	h := newHost(t)
	cmd, _ := startMaker(t, h, labName(t), "busy")
	time.Sleep(20 * time.Millisecond)
	cmd.Process.Kill()
	cmd.Wait()
	l := labOn(t, h, "")
	fork(t, l, space("pidspace"))
	want(t, "name", labName(t), l.Name())
	want(t, "machines on the host", 1, len(machines(t, h)))
}

func machines(t *testing.T, h *Host) []string {
	t.Helper()
	all, err := h.Machines()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range all {
		ids = append(ids, m.ID())
		m.Close()
	}
	return ids
}

// Kept machines live on after their maker, and are anybody's to use and end.
func TestKept(t *testing.T) {
	takeCPUs(t)
	h := newHost(t)
	name := labName(t)
	cmd, _ := startMaker(t, h, name, "keep")
	lost, err := h.Find("lost")
	if err != nil {
		t.Fatal(err)
	}
	lost.Close()
	want(t, "swept while its maker lives", []string(nil), sweep(t, h, true))
	cmd.Process.Kill()
	cmd.Wait()
	want(t, "swept", []string{name + "/lost"}, sweep(t, h, false))
	want(t, "kept", []string{name + "/inside", name + "/kept"}, machines(t, h))

	kept, err := h.Find("kept")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	inner, err := h.Find(name + "/inside")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	for _, m := range []*Machine{kept, inner} {
		want(t, m.ID(), "running", m.State())
		want(t, "a command in it", "0 /", run(t, m, "/bin/sh", "-c", "echo $(id -u) $(pwd)"))
		if b, err := m.ReadFile(t.Context(), "/etc/passwd"); err != nil || len(b) == 0 {
			t.Errorf("read_file: %d bytes, %v", len(b), err)
		}
		if _, err := m.Stats(); err != nil {
			t.Errorf("stats: %v", err)
		}
	}
	want(t, "the spec", 4, len(kept.Spec().Resources))
	want(t, "the parent of the inner one", "kept", inner.Parent().Name())
	want(t, "the process it was left with", "1", sh(t, kept, "n=0; for p in /proc/[0-9]*; do grep -qs sleep $p/comm && n=$((n+1)); done; echo $n"))
	if err := kept.WriteFile(t.Context(), "/tmp/x", []byte("y"), 0o644); err != nil {
		t.Error(err)
	}
	if err := kept.Set(&Pids{Max: 60}); err != nil {
		t.Error(err)
	}

	// A second lab of that name gets another.
	l := labOn(t, h, "")
	m := fork(t, l, space("pidspace"))
	want(t, "the second lab", name+"-2", l.Name())
	other, err := h.NewLab(name, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Fork(t.Context(), other.Host(), &Spec{}); err == nil {
		t.Error("a lab that is up was brought up again")
	} else {
		contains(t, err.Error(), "lab "+name+" is up already, with machine")
	}
	destroy(t, m)

	// The inner one dies and is swept; the outer one is destroyed by name.
	if err := inner.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want(t, "killed", "dead", inner.State())
	want(t, "swept without the dead", []string(nil), sweep(t, h, false))
	want(t, "swept with the dead", []string{name + "/inside"}, sweep(t, h, true))
	destroy(t, kept)
	want(t, "machines", []string(nil), machines(t, h))
	sweep(t, h, true)
	if _, err := h.Find("kept"); err == nil {
		t.Error("found what is gone")
	} else {
		contains(t, err.Error(), `no machine "kept"`)
	}
}

// With a kept machine goes what is inside, whoever destroys it.
func TestKeptNested(t *testing.T) {
	takeCPUs(t)
	h := newHost(t)
	cmd, _ := startMaker(t, h, labName(t), "keep")
	cmd.Process.Kill()
	cmd.Wait()
	kept, err := h.Find("kept")
	if err != nil {
		t.Fatal(err)
	}
	destroy(t, kept)
	sweep(t, h, false)
	want(t, "machines", []string(nil), machines(t, h))
	left := slices.DeleteFunc(leftOf(t, h), func(s string) bool { return strings.HasSuffix(s, ownerFile) })
	want(t, "left", 0, len(left))
}

func TestFindTwo(t *testing.T) {
	h := newHost(t)
	a, b := labOn(t, h, "-a"), labOn(t, h, "-b")
	for _, l := range []*Lab{a, b} {
		forkIn(t, l, l.Host(), &Spec{Name: "web"})
	}
	_, err := h.Find("web")
	if err == nil {
		t.Fatal("found one of two")
	}
	contains(t, err.Error()+hintOf(err), `"web" names 2 machines`, "LAB/MACHINE", a.Name()+"/web", b.Name()+"/web")
	m, err := h.Find(b.Name() + "/web")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "its lab", b.Name(), m.LabName())
	m.Close()
	_, err = a.Fork(t.Context(), a.Host(), &Spec{Name: "web"})
	if err == nil {
		t.Fatal("two of one name in a lab")
	}
	contains(t, err.Error(), "machine_rfork: name", `"web"`, "a machine has it")
}
