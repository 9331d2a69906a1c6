package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPids(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l, &Pids{Max: 4})
	want(t, "pids.max", "4", group(t, m, "pids", "pids.max"))
	r := try(t, m, "/bin/sh", "-c", "sleep 60 & sleep 60 & sleep 60 & sleep 60 & echo all")
	if strings.Contains(string(r.Stdout), "all") {
		t.Error("more processes than allowed")
	}
	contains(t, strings.ToLower(string(r.Stderr)), "fork")
	if err := m.Set(&Pids{Max: 50}); err != nil {
		t.Fatal(err)
	}
	want(t, "pids.max, set", "50", group(t, m, "pids", "pids.max"))
	if s, err := m.Stats(); err != nil || s.Pids < 1 {
		t.Errorf("stats: %+v %v", s, err)
	}
}

// A limit on a machine that had none so far: all its processes are moved.
func TestPidsLater(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l)
	spawn(t, m, "sleep 600 & sleep 600 & wait")
	eventually(t, "three processes", func() bool { return len(pidsOf(t, m)) >= 4 })
	if err := m.Set(&Pids{Max: 8}); err != nil {
		t.Fatal(err)
	}
	want(t, "pids.max", "8", group(t, m, "pids", "pids.max"))
	want(t, "those in it", len(pidsOf(t, m)), len(strings.Fields(group(t, m, "pids", "cgroup.procs"))))
	r := try(t, m, "/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; echo all")
	if strings.Contains(string(r.Stdout), "all") {
		t.Error("more processes than allowed")
	}
}

func TestIO(t *testing.T) {
	needV1(t)
	device := loop(t)
	l := newLab(t)
	m := fork(t, l, &IO{Device: device, ReadBPS: 1 << 20, WriteBPS: 2 << 20, ReadIOPS: 50, WriteIOPS: 60})
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for file, rate := range map[string]int{"read_bps": 1 << 20, "write_bps": 2 << 20, "read_iops": 50, "write_iops": 60} {
		want(t, file, fmt.Sprintf("%s %d", number, rate), group(t, m, "blkio", "blkio.throttle."+file+"_device"))
	}
	if err := m.Set(&IO{Device: number, ReadBPS: 3 << 20}); err != nil {
		t.Fatal(err)
	}
	want(t, "read_bps, set", fmt.Sprintf("%s %d", number, 3<<20), group(t, m, "blkio", "blkio.throttle.read_bps_device"))
	want(t, "write_bps, not named", fmt.Sprintf("%s %d", number, 2<<20), group(t, m, "blkio", "blkio.throttle.write_bps_device"))
	sh(t, m, "dd if="+device+" of=/dev/null bs=64k count=4 2>&1")
	if s, err := m.Stats(); err != nil || s.ReadBytes == nil || s.WriteBytes == nil {
		t.Errorf("stats: %+v %v", s, err)
	}

	contains(t, refused(t, l, l.Host(), &IO{Device: "/dev/null", ReadBPS: 1}), "io: device", `"/dev/null"`, "block device")
	contains(t, refused(t, l, l.Host(), &IO{Device: "/dev/not-there", ReadBPS: 1}), "io: device", "no such file")
	contains(t, refused(t, l, l.Host(), &IO{Device: "999:1", ReadBPS: 1}), "io: device", "/sys/dev/block")
}

func TestIOWeight(t *testing.T) {
	needV1(t)
	device := loop(t)
	l := newLab(t)
	scheduler := "/sys/block/" + filepath.Base(device) + "/queue/scheduler"
	if err := os.WriteFile(scheduler, []byte("none"), 0); err != nil {
		t.Skipf("choose a scheduler: %v", err)
	}
	contains(t, refused(t, l, l.Host(), &IO{Device: device, Weight: 300}), "io: weight", "a scheduler without weights", "bfq")
	if err := os.WriteFile(scheduler, []byte("bfq"), 0); err != nil {
		t.Skipf("choose BFQ: %v", err)
	}
	defer os.WriteFile(scheduler, []byte("none"), 0)
	m := fork(t, l, &IO{Device: device, Weight: 300})
	contains(t, group(t, m, "blkio", "blkio.bfq.weight_device"), " 300")
}

func TestRlimit(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, &Rlimit{Name: "nofile", Soft: 100, Hard: 200}, &Rlimit{Name: "core", Soft: 0, Hard: 0}, &Children{Max: 2})
	limit := func(pid any, words string) string {
		for line := range strings.Lines(read(t, fmt.Sprintf("/proc/%v/limits", pid))) {
			if rest, ok := strings.CutPrefix(line, words); ok {
				f := strings.Fields(rest)
				return f[0] + " " + f[1]
			}
		}
		return ""
	}
	want(t, "init's", "100 200", limit(m.Pid(), "Max open files"))
	want(t, "init's core", "0 0", limit(m.Pid(), "Max core file size"))
	want(t, "a command's", "100 200", sh(t, m, "echo $(ulimit -Sn) $(ulimit -Hn)"))
	p := spawn(t, m, "exec sleep 600")
	want(t, "a spawned one's", "100 200", limit(p.Pid(), "Max open files"))

	c := forkIn(t, l, m, &Spec{Resources: []Resource{&Rlimit{Name: "nproc", Soft: 77, Hard: 77}}})
	want(t, "nested, inherited", "100 200", limit(c.Pid(), "Max open files"))
	want(t, "nested, inherited, a command's", "100 200", sh(t, c, "echo $(ulimit -Sn) $(ulimit -Hn)"))
	want(t, "nested, its own", "77 77", limit(c.Pid(), "Max processes"))
	contains(t, refused(t, l, m, &Rlimit{Name: "nofile", Soft: 50, Hard: 201}), "rlimit: hard", "201", "at most 200")

	if err := m.Set(&Rlimit{Name: "nofile", Soft: 50, Hard: 60}); err != nil {
		t.Fatal(err)
	}
	want(t, "init's, set", "50 60", limit(m.Pid(), "Max open files"))
	want(t, "the spawned one's, set", "50 60", limit(p.Pid(), "Max open files"))
	want(t, "a command's, set", "50 60", sh(t, m, "echo $(ulimit -Sn) $(ulimit -Hn)"))
	if limit("self", "Max open files") == "50 60" {
		t.Error("msh limited itself")
	}
}

func TestChildren(t *testing.T) {
	l := newLab(t)
	none := fork(t, l)
	contains(t, refused(t, l, none), "machine 1 of "+none.Name(), "at most 0")
	m := fork(t, l, &Children{Max: 2})
	a, _ := forkIn(t, l, m, &Spec{}), forkIn(t, l, m, &Spec{})
	contains(t, refused(t, l, m), "machine 3 of "+m.Name(), "at most 2")
	destroy(t, a)
	forkIn(t, l, m, &Spec{}) // the place is free again
	want(t, "children", 2, len(m.Children()))
	if m.group.Unified {
		return
	}
	if err := m.Set(&Children{Max: 3}); err != nil {
		t.Fatal(err)
	}
	forkIn(t, l, m, &Spec{})
	kids := l.Machines()
	destroy(t, m)
	for _, c := range kids[1:] {
		want(t, c.Name()+" after its parent's end", "dead", c.State())
	}
}

// A parent loaded by name knows of no lab what machines it has.
func TestChildrenOfLoaded(t *testing.T) {
	h := newHost(t)
	l := labOn(t, h, "")
	m := forkIn(t, l, l.Host(), &Spec{Resources: []Resource{&Children{Max: 2}}})
	forkIn(t, l, m, &Spec{})
	loaded, err := h.Find(m.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	left := func() string {
		t.Helper()
		list, err := loaded.Resources("children")
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		return list[0].Detail
	}
	want(t, "places", "1 more of 2", left())
	forkIn(t, l, loaded, &Spec{Name: "second"})
	contains(t, refused(t, l, loaded), "machine 3 of "+m.Name(), "at most 2")
	want(t, "places", "0 more of 2", left())
}

// The limits are set last: what msh itself opens and writes on the way up does
// not count.
func TestRlimitSmall(t *testing.T) {
	l := newLab(t)
	rs := []Resource{space("pidspace"), overlay()}
	for i := range 12 {
		rs = append(rs, &Mount{Source: "/etc", Target: fmt.Sprintf("/mnt/%d", i), Type: "bind"})
	}
	for _, n := range []uint64{0, 4, 16} {
		m := fork(t, l, append(rs, &Rlimit{Name: "nofile", Soft: n, Hard: n}, &Rlimit{Name: "fsize"})...)
		f := strings.Fields(read(t, fmt.Sprintf("/proc/%d/limits", m.Pid())))
		at := slices.Index(f, "open")
		want(t, "nofile", fmt.Sprint(n), f[at+2])
		destroy(t, m)
	}
}
