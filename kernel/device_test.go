package kernel

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// node is a device node of the host's that opens and is in no machine's /dev of
// itself, with its numbers for mknod(1).
func node(t *testing.T) (path, numbers string) {
	t.Helper()
	for _, path := range []string{"/dev/fuse", "/dev/net/tun", "/dev/loop-control"} {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		return path, fmt.Sprintf("c %d %d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	t.Skip("this host has no device for it")
	return "", ""
}

func opens(t *testing.T, m *Machine, how, path string) bool {
	t.Helper()
	return try(t, m, "/bin/sh", "-c", "exec 3"+how+path).Code == 0
}

// The guard is the same program on v1 and v2, in a group of v2's.
func TestDeviceV2(t *testing.T) {
	path, numbers := node(t)
	l := newLab(t)
	for _, level := range []int{0, 1} {
		for _, rs := range [][]Resource{nil, {&Root{Source: "/", Write: "overlay"}, space("pidspace")}} {
			m := fork(t, l, append(rs, &Device{Path: path, Access: "r"}, atLevel(level))...)
			what := fmt.Sprintf("level %d, %d resources", level, len(rs))
			want(t, what+": read", true, opens(t, m, "<", path))
			want(t, what+": write", false, opens(t, m, ">", path))
			for _, n := range deviceNodes[:5] {
				want(t, what+": "+n.name, true, opens(t, m, "<>", "/dev/"+n.name))
			}
			// A node of another, under whatever name, is of no use.
			other := "/tmp/msh-test-" + labPrefix() + "kmsg"
			try(t, m, "/bin/sh", "-c", "mknod "+other+" c 1 11")
			want(t, what+": another", false, opens(t, m, "<", other))
			os.Remove(other)
			destroy(t, m)
		}
	}
	// With both accesses, and a second way in by its numbers.
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, &Device{Path: path, Access: "rw"})
	want(t, "both", true, opens(t, m, "<>", path))
	sh(t, m, "mknod /tmp/same "+numbers)
	want(t, "by number", true, opens(t, m, "<>", "/tmp/same"))
}

// A terminal of its own can be had, at every level, and nothing typed into it.
func TestDeviceTerminal(t *testing.T) {
	l := newLab(t)
	for n := 0; n <= topLevel; n++ {
		m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), atLevel(n))
		var out strings.Builder
		code, err := m.Interact(t.Context(), &Command{Argv: []string{"python3", "-c", `
import fcntl, os, termios
print(os.ttyname(0), os.path.exists("/dev/console"))
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"x")
    print("typed")
except OSError as e:
    print(e.strerror)
`}}, nil, &out)
		if err != nil || code != 0 {
			t.Fatalf("%d %v %s", code, err, out.String())
		}
		contains(t, out.String(), "/dev/pts/0 False")
		if n > 0 {
			contains(t, out.String(), "Operation not permitted")
		}
	}
}

// A machine in a machine has no device that that one has not.
func TestDeviceNested(t *testing.T) {
	path, numbers := node(t)
	l := newLab(t)
	outer := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), atLevel(1), &Children{Max: 5})
	contains(t, refused(t, l, outer, &Device{Path: path, Access: "rw"}, &Root{Source: "/", Write: "overlay"}), "device: path: got", "that m1 has")
	m := forkIn(t, l, outer, &Spec{Resources: []Resource{space("mountspace")}})
	want(t, "in it", false, opens(t, m, "<", path))
	given := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Device{Path: path, Access: "rw"}, &Children{Max: 5})
	inner := forkIn(t, l, given, &Spec{Resources: []Resource{&Root{Source: "/", Write: "overlay"}, &Device{Path: path, Access: "r"}}})
	want(t, "handed on", true, opens(t, inner, "<", path))
	want(t, "handed on, to be read", false, opens(t, inner, "<>", path))
	sh(t, given, "mknod /tmp/n "+numbers)
	want(t, "set, before", true, opens(t, given, "<", path))
	if err := given.Set(atLevel(1)); err != nil {
		t.Fatal(err)
	}
	want(t, "set, what was given stays", true, opens(t, given, "<", path))
	plain := fork(t, l)
	want(t, "a plain one", true, opens(t, plain, "<", path))
	if err := plain.Set(atLevel(1)); err != nil {
		t.Fatal(err)
	}
	want(t, "set", false, opens(t, plain, "<", path))
}

func TestDeviceErrors(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		d    *Device
		want string
	}{
		{&Device{Path: "kvm", Access: "rw"}, "a device node below /dev"},
		{&Device{Path: "/dev/../etc/passwd", Access: "rw"}, "a device node below /dev"},
		{&Device{Path: "/etc/passwd", Access: "rw"}, "a device node below /dev"},
		{&Device{Path: "/dev/pts/0", Access: "rw"}, "has not already"},
		{&Device{Path: "/dev/kmsg", Access: "rx"}, `"r", "w" or "rw"`},
		{&Device{Path: "/dev/no-such", Access: "rw"}, "a device node that host has"},
		{&Device{Path: "/dev/stdin-", Access: "r"}, "a device node that host has"},
	} {
		contains(t, refused(t, l, l.Host(), c.d), "device: ", c.want)
	}
}
