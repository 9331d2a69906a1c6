package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// uidMap is a process's map, as numbers between blanks.
func uidMap(t *testing.T, m *Machine) string {
	t.Helper()
	uid := strings.Join(strings.Fields(read(t, fmt.Sprintf("/proc/%d/uid_map", m.Pid()))), " ")
	want(t, "gid_map", uid, strings.Join(strings.Fields(read(t, fmt.Sprintf("/proc/%d/gid_map", m.Pid()))), " "))
	return uid
}

func TestUidspaceAuto(t *testing.T) {
	l := newLab(t)
	a, b := fork(t, l, &Uidspace{}, space("pidspace"), overlay()), fork(t, l, &Uidspace{Size: 1000}, space("pidspace"))
	ownSpaces(t, a, "user", "pid", "mnt")
	var bases []int
	for _, m := range []*Machine{a, b} {
		f := strings.Fields(uidMap(t, m))
		base, err := strconv.Atoi(f[1])
		if err != nil || f[0] != "0" || base < firstID {
			t.Fatalf("uid_map %v: %v", f, err)
		}
		bases = append(bases, base)
		status := strings.Fields(field(t, fmt.Sprintf("/proc/%d/status", m.Pid()), "Uid"))
		want(t, "init's user, outside", f[1], status[0])
		want(t, "a command's user, inside", "0", run(t, m, "id", "-u"))
		contains(t, read(t, filepath.Join(l.host.State, ".book", "uid-"+f[1])), m.ID(), f[2])
	}
	if bases[0] < bases[1]+1000 && bases[1] < bases[0]+65536 {
		t.Errorf("ranges overlap: %v", bases)
	}
	want(t, "sizes", "65536 1000", strings.Fields(uidMap(t, a))[2]+" "+strings.Fields(uidMap(t, b))[2])
	destroy(t, a)
	if _, err := os.Stat(filepath.Join(l.host.State, ".book", fmt.Sprintf("uid-%d", bases[0]))); !os.IsNotExist(err) {
		t.Errorf("the claim afterwards: %v", err)
	}
	again := fork(t, l, &Uidspace{})
	want(t, "the range is given anew", bases[0], int(again.IDs()[0].Outside))
}

func TestUidspaceBase(t *testing.T) {
	l := newLab(t)
	base := uint32(300000)
	m := fork(t, l, &Uidspace{Base: &base, Size: 5000})
	want(t, "uid_map", "0 300000 5000", uidMap(t, m))
	inside := uint32(304999)
	for _, u := range []*Uidspace{{Base: &base}, {Base: &inside, Size: 10}} {
		contains(t, refused(t, l, l.Host(), u), "uidspace: base", "machine "+m.ID()+" has 300000 to 304999")
	}
	free := uint32(305000)
	fork(t, l, &Uidspace{Base: &free, Size: 10})
}

// Inside a machine a base is exclusive as well, among its machines; its first ids
// may be those its own processes have.
func TestUidspaceBaseNested(t *testing.T) {
	l := newLab(t)
	base, size := uint32(300000), uint32(100000)
	outer := fork(t, l, &Uidspace{Base: &base, Size: size}, space("pidspace"), &Children{Max: 9})
	at := func(n uint32) *uint32 { return &n }
	a := forkIn(t, l, outer, &Spec{Name: "a", Resources: []Resource{&Uidspace{Base: at(0), Size: 1000}}})
	want(t, "as the host sees it", []IDMap{{0, 300000, 1000}}, a.IDs())
	for _, b := range []uint32{0, 999} {
		contains(t, refused(t, l, outer, &Uidspace{Base: at(b), Size: 1000}), fmt.Sprintf("uidspace: base: got %d", b), "machine "+a.ID()+" has 0 to 999")
	}
	forkIn(t, l, outer, &Spec{Resources: []Resource{&Uidspace{Map: []IDMap{{0, 0, 1000}}}}}) // shared on purpose
	forkIn(t, l, outer, &Spec{Resources: []Resource{&Uidspace{Base: at(65536), Size: 1000}}})
	free := forkIn(t, l, outer, &Spec{Resources: []Resource{&Uidspace{Size: 1000}}})
	want(t, "the next that is free", []IDMap{{0, 300000 + 66536, 1000}}, free.IDs())
	destroy(t, a)
	again := forkIn(t, l, outer, &Spec{Name: "again", Resources: []Resource{&Uidspace{Base: at(0), Size: 500}}})
	contains(t, refused(t, l, again), "at most 0")
	for _, a := range available(t, l.Host(), "uidspace") {
		if a.Owner == again.ID() {
			want(t, "as it is listed", "300000-300499", a.Name)
		}
	}
}

func TestUidspaceMap(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{Map: []IDMap{{0, 400000, 1000}, {1000, 0, 1}, {2000, 500000, 10}}})
	want(t, "uid_map", "0 400000 1000 1000 0 1 2000 500000 10", uidMap(t, m))
	want(t, "one that is the host's root", "1000", sh(t, m, "stat -c %u /etc"))
	want(t, "ids, in order", []IDMap{{0, 400000, 1000}, {1000, 0, 1}, {2000, 500000, 10}}, m.IDs())
}

// Owners look shifted inside and are not changed outside: nothing is chowned.
func TestUidspaceRoot(t *testing.T) {
	root := smallRoot(t)
	if err := os.Chown(filepath.Join(root, "data/secret"), 1000, 1001); err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	for _, write := range []string{"overlay", "direct", "none"} {
		m := fork(t, l, space("pidspace"), &Uidspace{}, &Root{Source: root, Write: write})
		want(t, write+": owners inside", "0:0 1000:1001", sh(t, m, "echo $(stat -c %u:%g /bin/busybox /data/secret)"))
		want(t, write+": owner outside", "1000:1001", ownerOf(t, filepath.Join(root, "data/secret")))
		want(t, write+": a file with no right for others", "root's", run(t, m, "cat", "/data/secret"))
		if write == "none" {
			continue
		}
		sh(t, m, "touch /tmp/new && chown 7:8 /tmp/new && touch /tmp/roots")
		want(t, write+": a new file inside", "7:8", sh(t, m, "stat -c %u:%g /tmp/new"))
	}
	want(t, "a new file of direct's, outside", "7:8", ownerOf(t, filepath.Join(root, "tmp/new")))
	want(t, "root's new file, outside", "0:0", ownerOf(t, filepath.Join(root, "tmp/roots")))
}

func TestUidspaceIdmap(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{}, &Root{Source: smallRoot(t), Write: "overlay"},
		&Mount{Source: dir, Target: "/mapped", Type: "bind", Options: []string{"idmap"}},
		&Mount{Source: dir, Target: "/plain", Type: "bind"})
	want(t, "owners", "0 65534", sh(t, m, "echo $(stat -c %u /mapped/file /plain/file)"))
	sh(t, m, "touch /mapped/new")
	want(t, "a new one, outside", "0:0", ownerOf(t, filepath.Join(dir, "new")))
	if try(t, m, "touch", "/plain/new").Code == 0 {
		t.Error("it wrote where only the host's root may")
	}
	contains(t, refused(t, l, l.Host(), &Mount{Source: dir, Target: "/mnt", Type: "bind", Options: []string{"idmap"}}), "mount: options", "uidspace()")
}

// A file system that cannot have its owners shifted is a clear error.
func TestUidspaceNoIdmap(t *testing.T) {
	l := newLab(t)
	lower, upper, work, merged := smallRoot(t), t.TempDir(), t.TempDir(), t.TempDir()
	if err := unix.Mount("o", merged, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work); err != nil {
		t.Skipf("mount an overlay: %v", err)
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	_, err := l.Fork(t.Context(), l.Host(), &Spec{Resources: []Resource{&Uidspace{}, &Root{Source: merged, Write: "none"}}})
	if err == nil {
		return // a kernel that can
	}
	contains(t, err.Error()+hintOf(err), "root: source", merged, "idmapped mount", "an overlay cannot")
}

// Its root cannot do on the host what only the host's root may.
func TestUidspaceRights(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), &Uidspace{}, overlay())
	for _, script := range []string{
		"mknod /tmp/sda b 8 0", "echo 1 > /proc/sys/kernel/panic", "hostname hacked", "mount -o remount,rw /sys", "chown 70000 /tmp",
	} {
		if r := try(t, m, "/bin/sh", "-c", script); r.Code == 0 {
			t.Errorf("%s: allowed", script)
		}
	}
	// but in its own tables it is root
	sh(t, m, "mkdir -p /mnt/x && mount -t tmpfs t /mnt/x && chown 1000:1000 /mnt/x")
}
