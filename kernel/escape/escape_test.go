package escape

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel"
	"msh/kernel/cgroup"
)

// levels are those of security(…).
var levels = []int{0, 1, 2, 3}

// atLevel asks for no level 0: that is what a machine is without.
func atLevel(n int) []kernel.Resource {
	if n == 0 {
		return nil
	}
	return []kernel.Resource{&kernel.Security{Level: n}}
}

// idsOf are the columns of an attack's From: the host's ids, and the machine's own.
var idsOf = []string{"host's ids", "own ids"}

// rootSource is what the machines' roots are made over.
var rootSource = "/"

// alone is a machine that has everything of its own.
func alone(ids, level int) []kernel.Resource {
	rs := []kernel.Resource{
		&kernel.Root{Source: rootSource, Write: "overlay", Size: rootSize},
		&kernel.Mount{Source: self, Target: "/attack", Type: "bind", Options: []string{"ro"}},
		&kernel.Mount{Source: filepath.Join(filepath.Dir(outside.Marker), "shared"), Target: "/shared", Type: "bind", Options: []string{"ro"}},
		&kernel.Pids{Max: int64(outside.Pids)}, &kernel.Rlimit{Name: "nofile", Soft: outside.Nofile, Hard: outside.Nofile},
		&kernel.Uname{Nodename: "inside"},
	}
	for _, s := range []string{"pidspace", "ipcspace", "netspace", "cgroupspace"} {
		rs = append(rs, &kernel.Space{Name: s})
	}
	if ids == 1 {
		rs = append(rs, &kernel.Uidspace{})
	}
	return append(rs, atLevel(level)...)
}

// self is this binary, the attacker.
var self = func() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}()

// long bounds what must end by itself.
const long = 60 * time.Second

var labs atomic.Int32 // made so far, for their names

func newLab(t *testing.T) *kernel.Lab {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	// As /run/msh, it can be reached by the root of a uidspace.
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	h, err := kernel.NewHost(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.NewLab(fmt.Sprintf("escape%d-%d", os.Getpid(), labs.Add(1)), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

func fork(t *testing.T, l *kernel.Lab, parent *kernel.Machine, s *kernel.Spec) *kernel.Machine {
	t.Helper()
	m, err := l.Fork(t.Context(), parent, s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// column is the outcomes at one level, with the host's ids or its own.
type column struct {
	ids, level int
	results    map[string]map[string]Result // by attack and entry
}

// TestEscape makes every attack by every entry at every level, and prints the table.
func TestEscape(t *testing.T) {
	needRoot(t)
	escape(t, Attacks(), []int{0, 1}, levels)
}

// elsewhere are the attacks that meet something else where control groups are one tree
// of v2's, and where a whole kernel is the machine's own: with 32-bit programs, modules,
// ports.
var elsewhere = []string{"release_agent", "raise limit", "leave group", "modprobe", "sysrq", "uevent_helper", "modules", "kexec", "ports", "memory", "console", "int 0x80", "real-time"}

// TestEscapeV2 makes those, at the levels between which they are held.
func TestEscapeV2(t *testing.T) {
	needRoot(t)
	needV2(t)
	if os.Getenv("MSH_VM") == "1" {
		rootSource = diskRoot(t)
		defer func() { rootSource = "/" }()
	}
	attacks := slices.DeleteFunc(Attacks(), func(a Attack) bool { return !slices.Contains(elsewhere, a.Name) })
	escape(t, attacks, []int{0, 1}, []int{1, 2})
}

// diskRoot copies the programs that are there into a file system whose owners can be
// shifted: those of the VM's own root cannot, before Linux 6.3.
func diskRoot(t *testing.T) string {
	t.Helper()
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "ext2")
	const script = `truncate -s 64M $2 && mke2fs -F $2 >/dev/null && mount -t ext4 -o loop $2 $1 && chmod 755 $1 &&
cp -a /bin /sbin /usr /etc $1/ && mkdir $1/proc $1/sys $1/dev $1/run $1/root && mkdir -m 1777 $1/tmp`
	if out, err := exec.Command("sh", "-c", script, "sh", dir, image).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("machines need root")
	}
}

func needV2(t *testing.T) {
	t.Helper()
	h, err := cgroup.Detect()
	switch {
	case err == nil && h.Unified && slices.Contains(h.Controllers, "pids"):
	case os.Getenv("MSH_VM") == "1":
		t.Fatalf("cgroup v2 with its controllers should be here: %+v, %v", h, err)
	default:
		t.Skip("cgroup v2's controllers are not on this host: `make vmtest` runs this test")
	}
}

// escape makes the attacks at the levels, with the ids of those columns of From.
func escape(t *testing.T, attacks []Attack, ids, levels []int) {
	var columns []*column
	for _, ids := range ids {
		for _, level := range levels {
			columns = append(columns, &column{ids, level, map[string]map[string]Result{}})
		}
	}
	args := targeting(outside, attacks).Arguments()
	var control map[string]Result
	t.Run("attack", func(t *testing.T) {
		t.Run("outside", func(t *testing.T) { t.Parallel(); control = controls(t, attacks) })
		for _, c := range columns {
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(idsOf[c.ids], " ", "-"), c.level), func(t *testing.T) {
				t.Parallel()
				c.fill(t, args)
			})
		}
	})
	judge(t, "A machine with everything of its own", attacks, control, columns)
}

// targeting is a target for those attacks alone.
func targeting(of *Target, attacks []Attack) *Target {
	t := *of
	t.Only = nil
	for _, a := range attacks {
		t.Only = append(t.Only, a.Name)
	}
	return &t
}

func (c *column) fill(t *testing.T, args []string) {
	l := newLab(t)
	rs := alone(c.ids, c.level)
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: rs})
	for _, e := range entries {
		text := e.run(t, l, m, rs, attacking(args))
		c.take(t, e.name, text)
	}
}

func (c *column) take(t *testing.T, entry, text string) {
	t.Helper()
	results, whole := Results(text)
	if !whole {
		t.Errorf("by %s: the attacker did not come to its end:\n%s", entry, text)
	}
	for name, r := range results {
		if c.results[name] == nil {
			c.results[name] = map[string]Result{}
		}
		c.results[name][entry] = r
	}
}

// controls makes the attacks outside, where nothing holds them: as the caller itself
// is, or in what an attack is the way out of.
func controls(t *testing.T, attacks []Attack) map[string]Result {
	all := map[string]Result{}
	// The host's root without what is mounted in it: the file is not in sight there.
	jail := t.TempDir()
	for _, m := range [][3]string{{"/", jail, ""}, {"proc", jail + "/proc", "proc"}, {"tmpfs", jail + "/run", "tmpfs"}, {"/dev", jail + "/dev", ""}} {
		flags := uintptr(0)
		if m[2] == "" {
			flags = unix.MS_BIND
		}
		if err := unix.Mount(m[0], m[1], m[2], flags, ""); err != nil {
			t.Fatalf("mount %s: %v", m[1], err)
		}
	}
	if err := unix.Mount("", jail, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(jail, unix.MNT_DETACH)
	dir, err := unix.Open(filepath.Dir(outside.Marker), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	leak := os.NewFile(uintptr(dir), "leak")
	defer leak.Close()
	group := groupBelow(t)
	for _, kind := range []string{"", "chroot", "userns"} {
		target := targeting(outside, slices.DeleteFunc(slices.Clone(attacks), func(a Attack) bool { return a.Control != kind }))
		if target.Only == nil {
			continue
		}
		target.Shared = filepath.Join(filepath.Dir(outside.Marker), "shared")
		cmd := exec.Command(self, target.Arguments()...)
		cmd.ExtraFiles = []*os.File{leak}
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		if group >= 0 {
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, group
		}
		switch kind {
		case "chroot":
			cmd.SysProcAttr.Chroot, cmd.Dir = jail, "/"
		case "userns":
			// Without a map nobody is root in it, and only so do rights outlive exec.
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
			cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SETUID, unix.CAP_SYS_ADMIN}
		}
		out, err := cmd.CombinedOutput()
		results, whole := Results(string(out))
		if err != nil || !whole {
			t.Errorf("control %q: %v\n%s", kind, err, out)
		}
		maps.Copy(all, results)
	}
	return all
}

// groupBelow is a control group of v2's for the controls, where the tests run in the root
// of all groups, which there is no way out of. -1 is none.
func groupBelow(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != "0::/\n" {
		return -1
	}
	dir := fmt.Sprintf("/sys/fs/cgroup/escape-%d", os.Getpid())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fd)
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return fd
}

// judge compares what happened with what the attacks say of themselves, and prints
// the table.
func judge(t *testing.T, title string, attacks []Attack, control map[string]Result, columns []*column) {
	t.Helper()
	unrun := map[string]int{}
	width := 0
	for _, a := range attacks {
		width = max(width, len(a.Name))
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%s\n%-*s  outside ", title, width, "")
	for _, c := range columns {
		fmt.Fprintf(&table, " %s %d", strings.Fields(idsOf[c.ids])[0], c.level)
	}
	table.WriteByte('\n')
	for _, a := range attacks {
		out := control[a.Name]
		fmt.Fprintf(&table, "%-*s  %-8s", width, a.Name, map[Outcome]string{Escaped: "escapes", Held: "held", Absent: "absent"}[out.Outcome])
		bites := out.Outcome == Escaped || out.Outcome == Absent
		for _, c := range columns {
			cell, absent := "held", 0
			for _, e := range slices.Sorted(maps.Keys(c.results[a.Name])) {
				r := c.results[a.Name][e]
				may := c.level < a.From[c.ids]
				switch {
				case r.Outcome == Escaped && may:
					bites = true
					if cell == "held" {
						cell = "may"
					}
				case r.Outcome == Escaped:
					cell = "ESCAPED"
					t.Errorf("%s: escaped by %s at level %d with the %s", a.Name, e, c.level, idsOf[c.ids])
				case r.Outcome == Absent:
					absent++
				case r.Outcome != Held:
					cell = "BROKEN"
					t.Errorf("%s: by %s at level %d with the %s: %s %s", a.Name, e, c.level, idsOf[c.ids], r.Outcome, r.Detail)
				}
			}
			if len(c.results[a.Name]) == 0 {
				cell = "NOT RUN"
				unrun[fmt.Sprintf("level %d with the %s", c.level, idsOf[c.ids])]++
			}
			if out.Outcome == Absent || absent > 0 && absent == len(c.results[a.Name]) {
				cell = "-"
			}
			fmt.Fprintf(&table, " %-*s", len(strings.Fields(idsOf[c.ids])[0])+2, cell)
		}
		table.WriteByte('\n')
		if !bites && !a.Rare {
			t.Errorf("%s: has no teeth: outside, where nothing holds it, it met: %s %s", a.Name, out.Outcome, out.Detail)
		}
	}
	for where, n := range unrun {
		t.Errorf("%d attacks not made at %s", n, where)
	}
	if testing.Verbose() || t.Failed() {
		fmt.Print("\n" + table.String() + "\n")
	}
	if *details {
		for _, a := range attacks {
			fmt.Printf("outside %-16s %s %s\n", a.Name, control[a.Name].Outcome, control[a.Name].Detail)
		}
		for _, c := range columns {
			for _, a := range attacks {
				for _, e := range slices.Sorted(maps.Keys(c.results[a.Name])) {
					r := c.results[a.Name][e]
					fmt.Printf("%s %d %-16s %-8s %s %s\n", idsOf[c.ids], c.level, a.Name, e, r.Outcome, r.Detail)
				}
			}
		}
	}
}

// listen has the server that abstract sockets lead to.
func listen(t *testing.T) {
	l, err := net.Listen("unix", "@"+outside.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// sharing is a machine that has a root of its own, and all else with the host.
func sharing(ids, level int) []kernel.Resource {
	rs := []kernel.Resource{
		&kernel.Root{Source: rootSource, Write: "overlay", Size: rootSize},
		&kernel.Mount{Source: self, Target: "/attack", Type: "bind", Options: []string{"ro"}},
		&kernel.Pids{Max: int64(outside.Pids)},
	}
	if ids == 1 {
		rs = append(rs, &kernel.Uidspace{})
	}
	return append(rs, atLevel(level)...)
}

// TestNeighbours attacks the host from machines that share its network, processes and
// names.
func TestNeighbours(t *testing.T) {
	needRoot(t)
	listen(t)
	victim := exec.Command("sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer victim.Wait()
	defer victim.Process.Kill()
	was := outside
	defer func() { outside = was }()
	outside = targeting(was, Neighbours())
	outside.Victim = victim.Process.Pid
	control := controls(t, Neighbours())
	var columns []*column
	for ids := range idsOf {
		for _, level := range levels {
			l := newLab(t)
			m, err := l.Fork(t.Context(), l.Host(), &kernel.Spec{Resources: sharing(ids, level)})
			if errors.Is(err, kernel.ErrNotSupported) && level == 3 {
				continue // Landlock's scopes, since Linux 6.12, without which there is no such machine
			}
			if err != nil {
				t.Fatal(err)
			}
			c := &column{ids, level, map[string]map[string]Result{}}
			columns = append(columns, c)
			c.take(t, "run", byRun(t, l, m, nil, attacking(outside.Arguments())))
		}
	}
	judge(t, "A machine that shares the host's network, processes and names", Neighbours(), control, columns)
}
