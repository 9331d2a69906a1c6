package criu_test

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel"
	"msh/kernel/criu"
)

// Pages go over a line to a server that writes them elsewhere, and are all there
// when both have ended.
func TestServePages(t *testing.T) {
	c, l := need(t), newLab(t)
	m := fork(t, l, spaces())
	start(t, m, "x=$(head -c 4000000 /dev/zero | tr '\\0' x); while sleep 0.01; do echo ${#x} >/dev/shm/tick; done")
	eventually(t, m.Pid(), "/dev/shm/tick", "4000000")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(pair[0]), "near"), os.NewFile(uintptr(pair[1]), "far")
	defer far.Close()
	there := images(t)
	served := make(chan error, 1)
	go func() { served <- c.ServePages(t.Context(), there, far, "") }()
	d := dumpOf(t, m)
	d.Pages = &criu.PageServer{Line: near}
	s := dump(t, c, d)
	near.Close()
	if err := <-served; err != nil {
		explain(t, err)
		t.Fatal(err)
	}
	if s.PagesWritten < 900 {
		t.Errorf("%+v, want 900 pages or more", s)
	}
	// The rest of the images goes another way.
	entries, err := os.ReadDir(d.Images.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		to := there.Name() + "/" + e.Name()
		if _, err := os.Stat(to); err == nil {
			continue
		}
		b, err := os.ReadFile(d.Images.Name() + "/" + e.Name())
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r := restoreOf(t, d, nil)
	r.Images = there
	pid := restore(t, c, r)
	if err := os.WriteFile(tickOf(pid), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, pid, "/dev/shm/tick", "4000000")
}

// held is how many pages of memory the program of hold has and never changes.
const held = 4096

// hold has a machine run this test's own program, which is Go's, as one that has
// memory. It returns the file for whoever restores the machine.
func hold(t *testing.T, m *kernel.Machine) map[string]string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WriteFile(t.Context(), "/holder", b, 0o755); err != nil {
		t.Fatal(err)
	}
	start(t, m, holdEnv+"=1 exec /holder")
	return map[string]string{"/holder": string(b)}
}

// holder is what it runs.
func holder() {
	memory := make([]byte, held*4096)
	for i := range memory {
		memory[i] = byte(i >> 12)
	}
	for {
		for i := 0; i < len(memory); i += 4096 {
			if memory[i] != byte(i>>12) {
				panic("the memory is not what it was")
			}
		}
		if err := os.WriteFile("/dev/shm/tick", []byte("tick\n"), 0o644); err != nil {
			panic(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// The memory is written ahead while the tree runs, and the dump writes only what
// has changed since. The kernel has to tell which pages those are.
func TestV2PreCopy(t *testing.T) {
	c := need(t)
	f, err := c.Features(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !f.Track {
		if os.Getenv("MSH_VM") != "" {
			t.Fatal("the VM's kernel has soft-dirty bits, and criu does not find them")
		}
		t.Skip("this kernel does not track dirty pages (CONFIG_MEM_SOFT_DIRTY)")
	}
	l := newLab(t)
	m := fork(t, l, spaces())
	program := hold(t, m)
	eventually(t, m.Pid(), "/dev/shm/tick", "tick")
	d := dumpOf(t, m)
	base := d.Images
	for _, name := range []string{"1", "2", "3"} {
		if err := os.Mkdir(base.Name()+"/"+name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d.Track, d.Images = true, open(t, base.Name()+"/1")
	first, err := c.PreDump(t.Context(), d)
	if err != nil {
		explain(t, err)
		t.Fatal(err)
	}
	d.Parent, d.Images = "../1", open(t, base.Name()+"/2")
	second, err := c.PreDump(t.Context(), d)
	if err != nil {
		explain(t, err)
		t.Fatal(err)
	}
	if m.State() != "running" {
		t.Errorf("state %s after a pre-dump", m.State())
	}
	d.Parent, d.Images = "../2", open(t, base.Name()+"/3")
	last := dump(t, c, d)
	t.Logf("first %+v, second %+v, last %+v", first, second, last)
	if first.PagesWritten < held || last.PagesWritten > held/2 || last.PagesSkipped < held/2 {
		t.Errorf("first %+v, last %+v: want most pages in the first", first, last)
	}
	pid := restore(t, c, restoreOf(t, d, program))
	if err := os.WriteFile(tickOf(pid), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, pid, "/dev/shm/tick", "tick")
}
