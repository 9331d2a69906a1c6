package kernel

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// viewed is what a machine is told of its limits, in a line.
const viewed = "echo $(sed -n 's/^MemTotal: *//p' /proc/meminfo) online $(cat /sys/devices/system/cpu/online) cpus $(sed -n 's/^processor.*: //p' /proc/cpuinfo)"

func forkViewed(t *testing.T, l *Lab, rs ...Resource) *Machine {
	return fork(t, l, append(rs, space("pidspace"), &ProcView{}, &Root{Source: "/", Write: "overlay"})...)
}

func set(t *testing.T, m *Machine, r Resource) {
	t.Helper()
	if err := m.Set(r); err != nil {
		t.Fatal(err)
	}
}

func lxcfsRuns() bool {
	l, _ := lxcfs(context.Background())
	return l
}

// runLxcfs starts it, as its distribution does or with more options, and returns what
// stops or ends it: when it is killed its mount stays, and answers nothing.
func runLxcfs(t *testing.T, options ...string) (end func(unix.Signal)) {
	t.Helper()
	program, err := exec.LookPath("lxcfs")
	if err != nil {
		t.Skip("no lxcfs here: scripts/deps installs it")
	}
	if err := os.MkdirAll(lxcfsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append(options, "-f", "-p", t.TempDir()+"/pid", lxcfsDir)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := true
	end = func(sig unix.Signal) {
		switch {
		case !running:
		case sig == unix.SIGSTOP: // all of its threads
			cmd.Process.Signal(sig)
			var st unix.WaitStatus
			if _, err := unix.Wait4(cmd.Process.Pid, &st, unix.WUNTRACED, nil); err != nil || !st.Stopped() {
				t.Errorf("stop lxcfs: %v, %v", st, err)
			}
		default:
			running = false
			cmd.Process.Signal(sig)
			cmd.Wait()
		}
	}
	t.Cleanup(func() {
		end(unix.SIGKILL) // it may be stopped
		unix.Unmount(lxcfsDir, unix.MNT_DETACH)
	})
	eventually(t, "lxcfs runs", lxcfsRuns)
	return end
}

// A machine is told the CPUs that its quota fills, and its memory, whether lxcfs runs or
// not, counts quotas or not, begins to run or dies meanwhile, and when they are set anew.
func TestViewLxcfs(t *testing.T)   { viewLxcfs(t) }
func TestViewLxcfsV2(t *testing.T) { needV2(t); viewLxcfs(t) }

func viewLxcfs(t *testing.T) {
	l := newLab(t)
	if lxcfsRuns() {
		t.Skip("lxcfs runs here for others: what it does when it ends cannot be tried")
	}
	limits := func() []Resource { return []Resource{&CPU{Quota: 50}, &Memory{Max: bytesOf(64 << 20)}, atLevel(2)} }
	mounts := func(m *Machine) string {
		return sh(t, m, "awk '$3 == \"fuse.lxcfs\" { print $2 }' /proc/mounts | xargs")
	}
	before := forkViewed(t, l, limits()...)
	want(t, "without lxcfs", "65536 kB online 0 cpus 0", sh(t, before, viewed))
	want(t, "mounts without", "", mounts(before))

	for _, options := range [][]string{nil, {"--enable-cfs"}} {
		end := runLxcfs(t, options...)
		m := forkViewed(t, l, limits()...)
		want(t, "lxcfs "+strings.Join(options, " "), "65536 kB online 0 cpus 0", sh(t, m, viewed))
		want(t, "its mounts", "/proc/meminfo /proc/stat /proc/uptime /proc/loadavg /proc/swaps", mounts(m))
		set(t, m, &CPU{Quota: 150})
		set(t, m, &Memory{Max: bytesOf(32 << 20)})
		want(t, "set", "32768 kB online 0-1 cpus 0 1", sh(t, m, viewed))
		last := forkViewed(t, l, &CPU{Set: []int{1}})
		contains(t, sh(t, last, viewed), "online 1 cpus 1")
		destroy(t, last)
		// What was made without it goes on without it.
		set(t, before, &Memory{Max: bytesOf(48 << 20)})
		want(t, "begun since", "49152 kB online 0 cpus 0", sh(t, before, viewed))
		set(t, before, &Memory{Max: bytesOf(64 << 20)})

		// One that does not answer is an error before it holds anybody, and can be interrupted.
		end(unix.SIGSTOP)
		was := lxcfsPatience
		lxcfsPatience = 50 * time.Millisecond
		contains(t, refused(t, l, l.Host(), space("pidspace"), &ProcView{}), "view: lxcfs, which is mounted on "+lxcfsDir+", has not answered for 50ms")
		lxcfsPatience = long
		ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := lxcfs(ctx)
		stop()
		want(t, "interrupted", context.DeadlineExceeded, err)
		lxcfsPatience = was

		end(unix.SIGKILL)
		contains(t, sh(t, m, "cat /proc/meminfo 2>&1 || :"), "not connected")
		set(t, m, &CPU{Quota: 50})
		set(t, m, &Memory{Max: bytesOf(16 << 20)})
		contains(t, sh(t, m, viewed+" 2>&1"), "online 0 cpus 0")
		after := forkViewed(t, l, limits()...)
		want(t, "after it has died", "65536 kB online 0 cpus 0", sh(t, after, viewed))
		want(t, "mounts then", "", mounts(after))
		all, err := listView(nil)
		if err != nil {
			t.Fatal(err)
		}
		contains(t, all[0].Detail, "lxcfs has died: unmount "+lxcfsDir)
		destroy(t, m)
		destroy(t, after)
		if err := unix.Unmount(lxcfsDir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
}

// The machines inside are told of what the one around them is set to, and all of the CPUs
// that another has for itself.
func TestViewFollows(t *testing.T)   { viewFollows(t) }
func TestViewFollowsV2(t *testing.T) { needV2(t); viewFollows(t) }

func viewFollows(t *testing.T) {
	l := newLab(t)
	if lxcfsRuns() {
		t.Skip("lxcfs runs here, and tells of memory")
	}
	outer := forkViewed(t, l, &CPU{Quota: 150}, &Memory{Max: bytesOf(64 << 20)}, &Children{Max: 1})
	inner := forkIn(t, l, outer, &Spec{Resources: []Resource{space("pidspace"), space("ipcspace"), &ProcView{}}})
	const both = "65536 kB online 0-1 cpus 0 1"
	want(t, "inner", both, sh(t, inner, viewed))
	set(t, outer, &CPU{Quota: 50})
	set(t, outer, &Memory{Max: bytesOf(32 << 20)})
	want(t, "inner, outer set", "32768 kB online 0 cpus 0", sh(t, inner, viewed))
	set(t, outer, &CPU{Quota: 200})
	set(t, outer, &Memory{Max: bytesOf(64 << 20)})
	want(t, "outer", both, sh(t, outer, viewed))

	alone := fork(t, l, &CPU{Set: []int{0}, Exclusive: true})
	for _, m := range []*Machine{outer, inner} {
		want(t, m.Name()+", CPU 0 taken", "65536 kB online 1 cpus 1", sh(t, m, viewed))
	}
	late := forkViewed(t, l)
	contains(t, sh(t, late, viewed), "online 1 cpus 1")
	destroy(t, alone)
	for _, m := range []*Machine{outer, inner} {
		want(t, m.Name()+", given back", both, sh(t, m, viewed))
	}
	contains(t, sh(t, late, viewed), "online 0-1 cpus 0 1")
}
