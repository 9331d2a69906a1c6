package kernel

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Killed while it makes networks, at each step: they are swept, the host's network
// is as it was, and its interfaces are home again.
func TestCrashNetworks(t *testing.T) {
	h := newHost(t)
	own := ownNet(t, nil)
	keepsNetwork(t)
	nicIn(t, own, "nic0")
	inNS(t, own, "/bin/sh", "-ec", "ip link add nic1 type veth peer name nic2; ip link set nic1 up; ip link set nic2 up")
	defer inNS(t, own, "ip", "link", "del", "nic1")
	inNS(t, own, "nft", "add table inet mine; add chain inet mine forward { type filter hook forward priority 0; policy drop; }")
	defer inNS(t, own, "nft", "delete table inet mine")
	before := networkOf(t, own)
	name := labName(t)
	for _, c := range []struct {
		role         string
		first, least int // steps; what is before the first, others have in common with it
	}{{"vnet", 1, 12}, {"netifs", 6, 12}, {"uplink", 6, 8}} {
		role := c.role
		for k := c.first; ; k++ {
			cmd, line := startMaker(t, h, name, fmt.Sprintf("%s:%d", role, k))
			cmd.Process.Kill()
			cmd.Wait()
			if len(leftOf(t, h)) == 0 {
				t.Error("the crash has left nothing: that is no test")
			}
			what := fmt.Sprintf("%s, killed at step %d", role, k)
			sweep(t, h, false)
			want(t, what+": left after the sweep", "", strings.Join(leftOf(t, h), "\n"))
			sameNetwork(t, what, own, before)
			if t.Failed() {
				t.FailNow()
			}
			if line != "" {
				t.Logf("%s: %d steps", role, k-1)
				if k <= c.least {
					t.Errorf("%s: only %d steps", role, k-1)
				}
				break
			}
		}
	}
}

// What is kept keeps its networks when its maker is killed; the rest is swept, and
// whoever takes the lab's name up next cleans up as well.
func TestCrashKeptNetworks(t *testing.T) {
	h := newHost(t)
	own := ownNet(t, nil)
	keepsNetwork(t)
	nicIn(t, own, "nic0")
	before := networkOf(t, own)
	name := labName(t)
	crash := func() {
		t.Helper()
		cmd, _ := startMaker(t, h, name, "nets")
		cmd.Process.Kill()
		cmd.Wait()
	}
	nets := func() string {
		left, err := filepath.Glob(filepath.Join(h.State, name, netsDir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(lastNames(left), " ")
	}
	crash()
	want(t, "left", "also-lost lan world", nets())
	sweep(t, h, false)
	want(t, "after the sweep", "world", nets())
	if !own.Has("nic0") {
		t.Error("nic0 has not come back")
	}
	kept, err := h.Find("kept")
	if err != nil {
		t.Fatal(err)
	}
	pings(t, kept, "10.5.0.1", "10.5.0.3", "10.7.0.1") // the gateway, the other one, the host
	if err := kept.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	kept.Close()
	want(t, "swept with the dead", []string{name + "/kept"}, sweep(t, h, true))
	want(t, "with one of two", "world", nets())
	if _, err := h.Down(t.Context(), name, false); err != nil {
		t.Fatal(err)
	}
	want(t, "taken down", "", strings.Join(leftOf(t, h), "\n"))
	sameNetwork(t, "the host's network", own, before)

	// A dead machine of a crashed lab that was the last kept one.
	crash()
	for _, m := range []string{"kept", "also"} {
		m, err := h.Find(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Kill(t.Context(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		m.Close()
	}
	sweep(t, h, true)
	want(t, "all dead", "", strings.Join(leftOf(t, h), "\n"))
	sameNetwork(t, "the host's network", own, before)

	// And without a sweep: another lab of that name, once nothing of it is kept.
	cmd, line := startMaker(t, h, name, "uplink:100")
	cmd.Process.Kill()
	cmd.Wait()
	want(t, "said", "past the last step", line)
	l := labOn(t, h, "")
	v := makeVNet(t, l, l.Host(), &VNetSpec{Uplink: "nic0"}, "10.7.0.0/24") // of the same name, n1
	want(t, "the lab's name", name, l.Name())
	pings(t, forkNamed(t, l, "m", on(v, "10.7.0.5")), "10.7.0.9")
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	sameNetwork(t, "the host's network", own, before)
}
