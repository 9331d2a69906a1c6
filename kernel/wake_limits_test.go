package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A machine that is at its limits wakes: what makes it is not counted against them. Once
// it is awake they hold as before.
func TestWakeTight(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	root := &Root{Source: "/", Write: "overlay"}
	m := forkCalled(t, l, "pids", root, space("pidspace"), &Pids{Max: 4})
	// init, the shell, and two that sleep: not one more.
	started(t, m, "sleep 1000 & sleep 1001 & while :; do read -r x </tick && echo $x >>/count; done")
	if _, err := m.Run(t.Context(), &Command{Argv: []string{"mkfifo", "/tick"}}, nil, long); err == nil {
		t.Log("there is room for one more yet")
	}
	m = wakeUp(t, l, hibernate(t, m), WakeOptions{})
	s, err := m.Stats()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d processes", s.Pids)
	if out, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "for i in 1 2 3 4 5 6; do sleep 5 & done"}}, nil, long); err == nil && out.Code == 0 && !strings.Contains(string(out.Stderr), "fork") {
		t.Errorf("six more were started: %+v", out)
	}

	m = forkCalled(t, l, "memory", root, space("pidspace"), &Memory{Max: bytesOf(24 << 20)})
	started(t, m, `exec python3 -c '
import time
kept = bytes(range(256)) * (12 << 12)
n = 0
while True:
    n += 1
    assert kept[n % len(kept)] == n % len(kept) % 256
    open("/count", "a").write("%d\n" % n)
    time.sleep(0.02)
'`)
	eventuallyIn(t, m, "/count", "\n3\n")
	s, err = m.Stats()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB of %d", *s.Memory>>10, 24<<10)
	for range 3 {
		m = wakeUp(t, l, hibernate(t, m), WakeOptions{})
		n := strings.Count(readIn(t, m, "/count"), "\n")
		eventuallyIn(t, m, "/count", fmt.Sprintf("\n%d\n", n+3))
	}
	r, err := m.Run(t.Context(), &Command{Argv: []string{"python3", "-c", "x = bytearray(100 << 20); print(len(x))"}}, nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code == 0 {
		t.Errorf("100M in a machine of 24M: %s", r.Stdout)
	}
}

// Nothing of a machine runs before all is ready, whatever network it is in: until then
// it may run on another host.
func TestWakeReady(t *testing.T) {
	needCriu(t)
	for name, more := range map[string][]Resource{"own": {space("netspace")}, "shared": nil} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			out := t.TempDir()
			m := forkCalled(t, l, "m", append([]Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), &Mount{Source: out, Target: "/out", Type: "bind"}}, more...)...)
			started(t, m, "while sleep 0.01; do echo x >>/out/count; done")
			eventuallyIn(t, m, "/out/count", "x")
			file := hibernate(t, m)
			count := func() int {
				b, err := os.ReadFile(out + "/count")
				if err != nil {
					t.Fatal(err)
				}
				return len(b)
			}
			before := count()
			still := func(context.Context) error {
				time.Sleep(300 * time.Millisecond)
				want(t, "lines while it was not to run", before, count())
				return errFault
			}
			if _, err := l.WakeFile(t.Context(), file, WakeOptions{Ready: still}); !errors.Is(err, errFault) {
				t.Fatal(err)
			}
			want(t, "lines after it was not to run", before, count())
			wakeUp(t, l, file, WakeOptions{})
			for end := time.Now().Add(long); count() == before; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("it does not run")
				}
			}
		})
	}
}
