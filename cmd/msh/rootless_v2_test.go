package main

import (
	"os"
	"path/filepath"
	"testing"

	"msh/kernel"
)

// TestRootlessV2 gives the user a control group, as a service manager delegates one: limits, freezing, kept machines.
func TestRootlessV2(t *testing.T) {
	h, err := kernel.NewHost("")
	if os.Geteuid() != 0 || err != nil || !h.Cgroup.Unified {
		t.Skip("needs root, and cgroup v2 alone")
	}
	const top = "/sys/fs/cgroup"
	for _, c := range []string{"cpu", "cpuset", "memory", "pids", "io"} {
		if err := os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			t.Logf("pass %s down: %v", c, err)
		}
	}
	group := filepath.Join(top, "delegated")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, _ := filepath.Glob(group + "/*/cgroup.procs")
		if err := os.Remove(group); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
	for _, f := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(group, f), testUser, testUser); err != nil {
			t.Fatal(err)
		}
	}
	runRootless(t, "one", group, "kinds", "snapshot") // the others take minutes there
}
