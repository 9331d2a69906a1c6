package kernel

import (
	"path/filepath"
	"testing"
)

// A machine whose processes are born all the time, by vfork, can be saved: one that was
// stopped in the middle of that is stopped anew.
func TestSnapshotVfork(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	var all []*Machine
	for _, name := range []string{"a", "b"} {
		m := forkCalled(t, l, name, &Root{Source: "/", Write: "overlay"}, space("pidspace"))
		writeIn(t, m, "/spawn.py", `
import os
while True:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 3 + i, "/", os.O_RDONLY, 0) for i in range(500)]), 0)
    open("/count", "a").write("x")
`)
		started(t, m, "exec python3 /spawn.py")
		eventuallyIn(t, m, "/count", "x")
		all = append(all, m)
	}
	for i := range 4 {
		for _, some := range [][]*Machine{all, all[:1]} {
			if _, err := SnapshotFile(t.Context(), filepath.Join(t.TempDir(), "f"), some, SnapshotOptions{}); err != nil {
				explainCriu(t, err)
				t.Fatal(i, len(some), err)
			}
		}
	}
}
