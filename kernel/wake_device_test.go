package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A device is there when the machine wakes, as it was given, and no other; what runs
// has /dev's own open as before.
func TestHibernateDevice(t *testing.T) {
	needCriu(t)
	path, numbers := node(t)
	for name, rs := range map[string][]Resource{
		"plain": {&Device{Path: path, Access: "r"}},
		"level": {&Device{Path: path, Access: "r"}, atLevel(2)},
		"ids":   {&Device{Path: path, Access: "r"}, &Uidspace{}},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "ids" { // whose root is another user than the node's
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil || st.Mode&6 != 6 {
					t.Skip(path, " is for the host's root only: ", err)
				}
			}
			l := newLab(t)
			m := fork(t, l, append([]Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), space("ipcspace")}, rs...)...)
			started(t, m, `exec 3</dev/urandom 4>/dev/null; i=0; while sleep 0.01; do i=$((i+1)); head -c1 <&3 >&4 && echo $i >>/count; done`)
			eventuallyIn(t, m, "/count", "3\n")
			w := wakeUp(t, l, hibernate(t, m), WakeOptions{})
			want(t, "read", true, opens(t, w, "<", path))
			want(t, "write", false, opens(t, w, ">", path))
			try(t, w, "/bin/sh", "-c", "mknod /tmp/kmsg c 1 11; mknod /tmp/same "+numbers)
			want(t, "another", false, opens(t, w, "<", "/tmp/kmsg"))
			if r := try(t, w, "/bin/sh", "-c", "test -c /tmp/same && exec 3<>/tmp/same"); r.Code == 0 {
				t.Error("written to by its numbers")
			}
			eventuallyIn(t, w, "/count", fmt.Sprintf("%d\n", strings.Count(readIn(t, w, "/count"), "\n")+3))
		})
	}
}

// A process that has a device open whose state nobody can save is named.
func TestHibernateDeviceOpen(t *testing.T) {
	needCriu(t)
	path, _ := node(t)
	if path == "/dev/net/tun" {
		t.Skip("this host's only device is one that can be saved")
	}
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Device{Path: path, Access: "r"})
	started(t, m, "exec 7<"+path+"; exec sleep 1000")
	sh(t, m, "until grep -q sleep /proc/[0-9]*/comm; do :; done") // it has executed it
	_, err := m.Snapshot(t.Context(), filepath.Join(t.TempDir(), "m.msh"), SnapshotOptions{})
	if err == nil {
		t.Fatal("saved")
	}
	contains(t, err.Error(), "(sleep) has the device "+path+" open (descriptor 7)")
	want(t, "state", "running", m.State())
}

// What /proc tells of a machine's limits it tells when it has woken, and after they are
// set anew.
func TestHibernateView(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	for _, rs := range [][]Resource{nil, {atLevel(2)}, {&Uidspace{}}} {
		m := fork(t, l, append(rs, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), &ProcView{}, &Memory{Max: bytesOf(200 << 20)}, &CPU{Quota: 50})...)
		started(t, m, "i=0; while sleep 0.01; do i=$((i+1)); grep MemTotal /proc/meminfo >/total.new; mv /total.new /total; echo $i >>/count; done")
		const look = "grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online; nproc"
		before := sh(t, m, look)
		contains(t, before, "204800 kB")
		eventuallyIn(t, m, "/count", "3\n")
		w := wakeUp(t, l, hibernate(t, m), WakeOptions{})
		want(t, "woken", before, sh(t, w, look))
		if err := w.Set(&Memory{Max: bytesOf(100 << 20)}); err != nil {
			t.Fatal(err)
		}
		if !lxcfsRuns() {
			eventuallyIn(t, w, "/total", "102400 kB")
			contains(t, read(t, filepath.Join(w.Dir(), "view.meminfo")), "102400 kB")
		}
		want(t, "written to", false, opens(t, w, ">", "/proc/meminfo"))
		destroy(t, w)
		if _, err := os.Stat(w.Dir()); !os.IsNotExist(err) {
			t.Errorf("left: %v", err)
		}
	}
}
