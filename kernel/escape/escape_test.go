package escape

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// alone is a machine that has everything of its own.
func alone(ids, level int) []kernel.Resource {
	rs := []kernel.Resource{
		&kernel.Root{Source: "/", Write: "overlay", Size: rootSize},
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
	if os.Getuid() != 0 {
		t.Skip("machines need root")
	}
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

// entries are the ways in. Each makes the attacks and returns what they said.
var entries = []struct {
	name string
	run  func(t *testing.T, l *kernel.Lab, m *kernel.Machine, rs []kernel.Resource, args []string) string
}{
	{"run", byRun}, {"spawn", bySpawn}, {"shell", byShell}, {"exec", byExec}, {"init", byInit}, {"restart", byRestart}, {"nested", byNested},
}

func command(args []string) *kernel.Command {
	return &kernel.Command{Argv: append([]string{"/attack"}, args...)}
}

func byRun(t *testing.T, _ *kernel.Lab, m *kernel.Machine, _ []kernel.Resource, args []string) string {
	r, err := m.Run(t.Context(), command(args), nil, long)
	if err != nil {
		t.Errorf("run: %v", err)
		return ""
	}
	return string(r.Stdout) + string(r.Stderr)
}

func bySpawn(t *testing.T, _ *kernel.Lab, m *kernel.Machine, _ []kernel.Resource, args []string) string {
	p, err := m.Spawn(t.Context(), command(args), "", kernel.RestartNo)
	if err != nil {
		t.Errorf("spawn: %v", err)
		return ""
	}
	if _, err := p.Wait(t.Context(), long); err != nil {
		t.Error(err)
	}
	b, err := p.Log()
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func byShell(t *testing.T, _ *kernel.Lab, m *kernel.Machine, _ []kernel.Resource, args []string) string {
	var out bytes.Buffer
	if _, err := m.Interact(t.Context(), command(args), nil, &out); err != nil {
		t.Errorf("shell: %v", err)
	}
	return out.String()
}

// byExec has the caller's own terminal as the command's standard error, as when the
// output of msh exec is sent elsewhere.
func byExec(t *testing.T, _ *kernel.Lab, m *kernel.Machine, _ []kernel.Resource, args []string) string {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer tty.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Error(err)
		return ""
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Error(err)
		return ""
	}
	said := make(chan string)
	go func() { b, _ := io.ReadAll(r); r.Close(); said <- string(b) }()
	_, err = m.Attach(t.Context(), command(args), [3]int{int(null.Fd()), int(w.Fd()), int(tty.Fd())}, nil)
	w.Close()
	if err != nil {
		t.Errorf("exec: %v", err)
	}
	return <-said
}

func byInit(t *testing.T, l *kernel.Lab, _ *kernel.Machine, rs []kernel.Resource, args []string) string {
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: rs, Init: append([]string{"/attack"}, args...)})
	defer m.Destroy(context.Background())
	for end := time.Now().Add(long); m.State() == "running" && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	logs, err := m.Logs()
	if err != nil {
		t.Error(err)
	}
	return string(logs["init"])
}

// byRestart is a process that failed, and was started again by a supervisor.
func byRestart(t *testing.T, l *kernel.Lab, _ *kernel.Machine, rs []kernel.Resource, args []string) string {
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: rs, Keep: true})
	defer m.Destroy(context.Background())
	c := command(append([]string{"attack-again"}, args[1:]...))
	p, err := m.Spawn(t.Context(), c, "", kernel.RestartOnFailure)
	if err != nil {
		t.Errorf("spawn: %v", err)
		return ""
	}
	if _, err := p.Wait(t.Context(), long); err != nil {
		t.Error(err)
	}
	b, err := p.Log()
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// byNested is a machine of the machine's, which asks for no level of its own.
func byNested(t *testing.T, l *kernel.Lab, _ *kernel.Machine, rs []kernel.Resource, args []string) string {
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: append(slices.Clone(rs), &kernel.Children{Max: 1})})
	defer m.Destroy(context.Background())
	inner := fork(t, l, m, &kernel.Spec{Resources: []kernel.Resource{
		&kernel.Root{Source: "/", Write: "overlay", Size: rootSize}, &kernel.Space{Name: "pidspace"},
		&kernel.Mount{Source: "/attack", Target: "/attack", Type: "bind"}, &kernel.Mount{Source: "/shared", Target: "/shared", Type: "bind"},
	}})
	defer inner.Destroy(context.Background())
	return byRun(t, l, inner, nil, args)
}

// column is the outcomes at one level, with the host's ids or its own.
type column struct {
	ids, level int
	results    map[string]map[string]Result // by attack and entry
}

// TestEscape makes every attack by every entry at every level, and prints the table.
func TestEscape(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("machines need root")
	}
	var columns []*column
	for ids := range idsOf {
		for _, level := range levels {
			columns = append(columns, &column{ids, level, map[string]map[string]Result{}})
		}
	}
	var control map[string]Result
	t.Run("attack", func(t *testing.T) {
		t.Run("outside", func(t *testing.T) { t.Parallel(); control = controls(t, Attacks()) })
		for _, c := range columns {
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(idsOf[c.ids], " ", "-"), c.level), func(t *testing.T) {
				t.Parallel()
				c.fill(t)
			})
		}
	})
	judge(t, "A machine with everything of its own", Attacks(), control, columns)
}

func (c *column) fill(t *testing.T) {
	l := newLab(t)
	rs := alone(c.ids, c.level)
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: rs})
	for _, e := range entries {
		text := e.run(t, l, m, rs, outside.Arguments())
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
	for _, kind := range []string{"", "chroot", "userns"} {
		target := *outside
		target.Only = nil
		target.Shared = filepath.Join(filepath.Dir(outside.Marker), "shared")
		for _, a := range attacks {
			if a.Control == kind {
				target.Only = append(target.Only, a.Name)
			}
		}
		if target.Only == nil {
			continue
		}
		cmd := exec.Command(self, target.Arguments()...)
		cmd.ExtraFiles = []*os.File{leak}
		cmd.SysProcAttr = &syscall.SysProcAttr{}
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
			cell := "held"
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
				case r.Outcome != Held && r.Outcome != Absent:
					cell = "BROKEN"
					t.Errorf("%s: by %s at level %d with the %s: %s %s", a.Name, e, c.level, idsOf[c.ids], r.Outcome, r.Detail)
				}
			}
			if len(c.results[a.Name]) == 0 {
				cell = "NOT RUN"
				unrun[fmt.Sprintf("level %d with the %s", c.level, idsOf[c.ids])]++
			}
			if out.Outcome == Absent {
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
		&kernel.Root{Source: "/", Write: "overlay", Size: rootSize},
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
	if os.Getuid() != 0 {
		t.Skip("machines need root")
	}
	listen(t)
	victim := exec.Command("sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer victim.Wait()
	defer victim.Process.Kill()
	target := *outside
	target.Victim = victim.Process.Pid
	for _, a := range Neighbours() {
		target.Only = append(target.Only, a.Name)
	}
	was := outside
	outside = &target
	defer func() { outside = was }()
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
			c.take(t, "run", byRun(t, l, m, nil, target.Arguments()))
		}
	}
	judge(t, "A machine that shares the host's network, processes and names", Neighbours(), control, columns)
}
