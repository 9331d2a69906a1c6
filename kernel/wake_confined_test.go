package kernel

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"msh/kernel/checkpoint"
)

// tried is a program that, once it is told to, writes down how it is confined and what
// it could do all the same.
const tried = `until test -e /again; do sleep 0.01; done
` + confinedLines + ` >/tried.new
unshare -n true && echo unshared >>/tried.new
mknod /node c 1 3 && cat /node && echo made a node >>/tried.new
test -w /proc/sys/kernel/shmmax && echo writes to /proc/sys >>/tried.new
grep -q . /proc/keys && echo reads keys >>/tried.new
mv /tried.new /tried
`

// What a machine may not do, it may not do when it has been woken: neither what ran
// then, nor what comes in, and what was masked is masked.
func TestHibernateConfined(t *testing.T) {
	needCriu(t)
	const mountPoints = "cut -d' ' -f5,6 /proc/self/mountinfo | sort"
	for _, ids := range []bool{false, true} {
		for n, more := range []string{"unshared\nmade a node\nwrites to /proc/sys\nreads keys\n", "unshared\nwrites to /proc/sys\nreads keys\n", ""} {
			if ids { // whose root is none of the kernel's
				more = strings.NewReplacer("made a node\n", "", "reads keys\n", "").Replace(more)
			}
			t.Run(fmt.Sprintf("%d-%v", n, ids), func(t *testing.T) {
				l := newLab(t)
				rs := []Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), space("ipcspace"), atLevel(n)}
				if ids {
					rs = append(rs, &Uidspace{})
				}
				m := fork(t, l, rs...)
				started(t, m, tried)
				before, mounts := ways(t, m), sh(t, m, mountPoints)
				w := wakeUp(t, l, hibernate(t, m), WakeOptions{})
				for way, got := range ways(t, w) {
					want(t, "by "+way, before[way], got)
				}
				want(t, "mounts", mounts, sh(t, w, mountPoints))
				writeIn(t, w, "/again", "")
				eventuallyIn(t, w, "/tried", "Seccomp_filters")
				want(t, "what ran", before["run"]+"\n"+more, sh(t, w, "cat /tried")+"\n")
			})
		}
	}
}

// A level that was set, and set again, is what it was; a profile is there still.
func TestHibernateTightened(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"),
		&Security{Seccomp: []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64"],"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`)})
	started(t, m, "until test -e /again; do sleep 0.01; done; mkdir /made 2>/tried.new; mv /tried.new /tried")
	for _, s := range []*Security{{Level: 2, Caps: []string{"kill"}}, {Level: 2}} {
		if err := m.Set(s); err != nil {
			t.Fatal(err)
		}
	}
	before := ways(t, m)
	w := wakeUp(t, l, hibernate(t, m), WakeOptions{})
	for way, got := range ways(t, w) {
		want(t, "by "+way, before[way], got)
	}
	contains(t, string(try(t, w, "mkdir", "/x").Stderr), "Operation not supported")
	writeIn(t, w, "/again", "")
	eventuallyIn(t, w, "/tried", "Operation not supported")
	err := w.Set(atLevel(1))
	if err == nil {
		t.Fatal("loosened")
	}
	contains(t, err.Error(), "want at least 2")
	c, err := w.Clone(t.Context(), WakeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "the clone, run", before["run"], sh(t, c, confinedLines))
}

// A fence cannot be put back: it is refused before anything stops, and files alone are
// saved, whose init is in the fence anew.
func TestHibernateFenced(t *testing.T) {
	needCriu(t)
	if landlockABI() == 0 {
		t.Skip("no Landlock in this kernel")
	}
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), &Security{Landlock: map[string]string{"/": "rx", "/tmp": "rw", "/dev": "rw"}})
	file := filepath.Join(t.TempDir(), "m.msh")
	_, err := m.Snapshot(t.Context(), file, SnapshotOptions{})
	if err == nil {
		t.Fatal("saved")
	}
	contains(t, err.Error(), "fenced in by Landlock", "want a machine of at most level 2")
	contains(t, hintOf(err), "files_only=True")
	sh(t, m, "echo kept >/tmp/f")
	if _, err := m.Snapshot(t.Context(), file, SnapshotOptions{FilesOnly: true, Hibernate: true}); err != nil {
		t.Fatal(err)
	}
	w := wakeUp(t, l, file, WakeOptions{})
	want(t, "files", "kept", sh(t, w, "cat /tmp/f"))
	if r := try(t, w, "/bin/sh", "-c", "echo x >/etc/x"); r.Code == 0 {
		t.Error("wrote past the fence")
	}
}

// A state that confines as no machine is confined is refused.
func TestSavedConfinementHostile(t *testing.T) {
	for _, c := range []*Confinement{{Level: -1}, {Level: 4}, {Level: 2, Fences: []*fence{{}}}} {
		w := &waking{saved: &checkpoint.Machine{Name: "m"}, state: savedState{Confined: c}}
		if err := w.checkConfined(); err == nil {
			t.Errorf("%+v: taken", c)
		}
	}
}
