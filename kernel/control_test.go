package kernel

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFreeze(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Children{Max: 1})
	c := forkIn(t, l, m, &Spec{Resources: []Resource{space("pidspace")}})
	p, q := spawn(t, m, busy), spawn(t, c, busy)
	if err := m.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "state", "frozen", m.State())
	used := func(pid int) uint64 {
		b := []byte(read(t, "/proc/"+strconv.Itoa(pid)+"/stat"))
		return statField(b, 11) + statField(b, 12)
	}
	a, b := used(p.Pid()), used(q.Pid())
	time.Sleep(50 * time.Millisecond)
	want(t, "CPU time while frozen", []uint64{a, b}, []uint64{used(p.Pid()), used(q.Pid())})
	if err := m.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "state", "running", m.State())
	eventually(t, "both run on", func() bool { return used(p.Pid()) > a && used(q.Pid()) > b })
	// A frozen machine can be ended.
	if err := m.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	destroy(t, m)
}

// A command in a machine that is frozen meanwhile ends with its timeout all the same.
func TestRunFrozen(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	frozen := make(chan error, 1)
	go func() {
		for len(pidsOf(t, m)) < 3 { // init, sh, sleep
			time.Sleep(5 * time.Millisecond)
		}
		frozen <- m.Freeze(context.Background())
	}()
	r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "echo begun; sleep 600; echo over"}}, nil, 2*time.Second)
	if e := <-frozen; e != nil {
		t.Fatal(e)
	}
	if err == nil {
		t.Fatalf("it has ended: %+v", r)
	}
	contains(t, err.Error(), "still running after 2s: killed")
	want(t, "what it said", "begun\n", string(r.Stdout))
	want(t, "state", "frozen", m.State())
	eventually(t, "only init is left", func() bool { return len(pidsOf(t, m)) == 1 })
	if err := m.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "afterwards", "here", run(t, m, "echo", "here"))
}

func TestStop(t *testing.T) {
	l := newLab(t)
	for _, rs := range [][]Resource{nil, {space("pidspace")}} {
		m := fork(t, l, rs...)
		p := spawn(t, m, "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.02; done")
		eventually(t, "ready", func() bool { b, _ := p.Log(); return string(b) == "ready\n" })
		if err := m.Freeze(t.Context()); err != nil { // it is thawed for it
			t.Fatal(err)
		}
		if err := m.Stop(t.Context(), long); err != nil {
			t.Fatal(err)
		}
		want(t, "state", "dead", m.State())
		if code, err := p.Wait(t.Context(), long); err != nil || code != 0 {
			t.Errorf("%d, %v", code, err)
		}
		want(t, "left", 0, len(pidsOf(t, m)))

		deaf := fork(t, l, rs...)
		p = spawn(t, deaf, "trap '' TERM; echo ready; while :; do sleep 0.02; done")
		eventually(t, "ready", func() bool { b, _ := p.Log(); return string(b) == "ready\n" })
		if err := deaf.Stop(t.Context(), 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		want(t, "state of the deaf one", "dead", deaf.State())
		if code, err := p.Wait(t.Context(), long); err != nil || code != 137 {
			t.Errorf("the deaf one: %d, %v", code, err)
		}
	}
}

func TestKill(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	p := spawn(t, m, "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done")
	log := func() string { b, _ := p.Log(); return string(b) }
	eventually(t, "ready", func() bool { return log() == "ready\n" })
	if err := m.Kill(t.Context(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the signal", func() bool { return strings.Contains(log(), "usr1") })
	want(t, "state", "running", m.State())
	// Even what forks as fast as it can has no chance.
	spawn(t, m, "while :; do (sleep 5 &) & done")
	eventually(t, "forks", func() bool { return len(pidsOf(t, m)) > 10 })
	if err := m.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want(t, "state", "dead", m.State())
	want(t, "left", 0, len(pidsOf(t, m)))
	if err := l.Host().Kill(t.Context(), unix.SIGTERM); err == nil {
		t.Error("killed the host")
	}
	if err := l.Host().Destroy(t.Context()); err == nil {
		t.Error("destroyed the host")
	}
}

func TestSetRefused(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	for _, r := range []Resource{space("netspace"), overlay(), &Uidspace{}, &Timespace{}, &Mount{Target: "/x", Type: "tmpfs"}, &Pids{Max: -1}, &CPU{}} {
		if err := m.Set(r); err == nil {
			t.Errorf("set %s", r.Kind())
		}
	}
	if err := l.Host().Set(&Pids{Max: 5}); err == nil {
		t.Error("set on the host")
	}
	want(t, "spec", 1, len(m.Spec().Resources))
}

func TestStatsPlain(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	spawn(t, m, busy)
	eventually(t, "CPU time is counted", func() bool {
		s, err := m.Stats()
		return err == nil && s.CPUSeconds > 0 && s.Pids >= 2 && s.Memory != nil && *s.Memory > 0
	})
}

func TestWaitFile(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), overlay())
	spawn(t, m, "sleep 0.1; touch /tmp/here")
	if err := m.WaitFile(t.Context(), "/tmp/here", long); err != nil {
		t.Error(err)
	}
	err := m.WaitFile(t.Context(), "/tmp/never", 20*time.Millisecond)
	if err == nil {
		t.Fatal("it is there")
	}
	contains(t, err.Error(), "wait for file /tmp/never in "+m.Name(), "not within 20ms")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.WaitFile(ctx, "/tmp/never", long); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	killed := make(chan error)
	go func() { killed <- m.Kill(context.Background(), unix.SIGKILL) }()
	if err := m.WaitFile(t.Context(), "/tmp/never", long); !errors.Is(err, ErrDead) {
		t.Errorf("in a machine that dies: %v", err)
	}
	if err := <-killed; err != nil {
		t.Error(err)
	}
}

func TestWaitRun(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), overlay())
	try := &Command{Argv: []string{"/bin/sh", "-c", "echo x >> /tmp/n; [ $(wc -l < /tmp/n) = 3 ]"}}
	if err := m.WaitRun(t.Context(), try, long); err != nil {
		t.Error(err)
	}
	want(t, "tries", "3", sh(t, m, "wc -l < /tmp/n"))
	err := m.WaitRun(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "echo why >&2; exit 3"}}, 100*time.Millisecond)
	if err == nil {
		t.Fatal("it succeeded")
	}
	contains(t, err.Error(), "not within 100ms", "last code 3", "why")
	if err := m.WaitRun(t.Context(), &Command{Argv: []string{"/not/there"}}, long); err == nil {
		t.Error("waited for what cannot run")
	}
}

func TestWaitPort(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	if err := m.WaitPort(t.Context(), port, long); err != nil {
		t.Error(err)
	}
	other := fork(t, l, space("netspace"), space("pidspace"))
	if err := other.WaitPort(t.Context(), port, 20*time.Millisecond); err == nil {
		t.Error("seen from another network")
	}
	ln.Close()
	if err := m.WaitPort(t.Context(), port, 20*time.Millisecond); err == nil {
		t.Error("nobody listens any more")
	}
	if err := m.WaitPort(t.Context(), 70000, long); err == nil {
		t.Error("no such port")
	}
}
