package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/handover"
)

// What these makers (see crash_test.go) are told beside their role.
const (
	makerFile  = "MSH_TEST_FILE"  // a snapshot
	makerOther = "MSH_TEST_OTHER" // the state directory of another host
	makerThere = "MSH_TEST_THERE" // the step at which the msh there is killed
	makerFrame = "MSH_TEST_FRAME" // "giver:G+": who is killed, behind (-: before) the first frame of that kind that it sends
)

// saver is a maker that saves machines, wakes or moves them, and is killed at a step of
// that: of all that it does, transactions of other things in it included.
func saver(ctx context.Context, h *Host, l *Lab, role string, k int) error {
	file := os.Getenv(makerFile)
	find := func(name string) []*Machine {
		all, _, err := h.FindAll(name)
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return all
	}
	lab := os.Getenv(makerLab)
	var err error
	switch role {
	case "snapshot":
		all := find(lab + "/server")
		h.killAt(k)
		_, err = SnapshotFile(ctx, file, all, SnapshotOptions{})
	case "files":
		all := find(lab + "/server")
		h.killAt(k)
		_, err = SnapshotFile(ctx, file, all, SnapshotOptions{FilesOnly: true})
	case "hibernate":
		all := find(lab)
		h.killAt(k)
		_, err = SnapshotFile(ctx, file, all, SnapshotOptions{Hibernate: true})
	case "wake":
		h.killAt(k)
		if l, err = h.NewLab(lab, true); err == nil {
			_, err = l.WakeFile(ctx, file, WakeOptions{Keep: true})
		}
	case "wakes":
		h.killAt(k)
		_, err = l.WakeFile(ctx, file, WakeOptions{})
	case "clone":
		var m *Machine
		if m, err = l.Fork(ctx, l.Host(), countingSpec()); err == nil {
			if _, err = m.Run(ctx, startCounting, nil, long); err == nil {
				h.killAt(k)
				_, err = m.Clone(ctx, WakeOptions{Keep: true})
			}
		}
	case "migrate":
		all := find(lab)
		if k > 0 {
			h.killAt(k)
		}
		if _, err := Migrate(ctx, all, &Remote{Host: "other"}, MigrateOptions{dial: dialMaker(os.Getenv(makerOther)), Patience: time.Second}); err != nil {
			fmt.Println("not moved:", err)
		}
	case "receive":
		if at, _ := strconv.Atoi(os.Getenv(makerThere)); at > 0 {
			h.killAt(at)
		}
		h.apart = true
		h.Receive(ctx, os.Stdin, cutCloser{killer("taker", os.Stdout), os.Stdout}) // the giver tells why not
	default:
		return fmt.Errorf("no role %q", role)
	}
	return err
}

func (h *Host) killAt(k int) { h.Fault = Fault{Parent: k, Kill: true, Whole: new(atomic.Int64)} }

// dialMaker is a line to an msh in a process of its own, with another state directory.
func dialMaker(state string) handover.Dial {
	return func(context.Context) (handover.Line, error) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, makerEnv) || strings.HasPrefix(s, makerState) }),
			makerEnv+"=receive", makerState+"="+state, makerLab+"=unused")
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return handover.Line{}, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return handover.Line{}, err
		}
		if err := cmd.Start(); err != nil {
			return handover.Line{}, err
		}
		return handover.Line{In: out, Out: killer("giver", in), Close: func() {
			in.Close()
			out.Close()
			cmd.Wait()
		}}, nil
	}
}

// killer kills this process at the frame that it is told.
func killer(who string, w io.Writer) io.Writer {
	at, ok := strings.CutPrefix(os.Getenv(makerFrame), who+":")
	if !ok {
		return w
	}
	return &killAtFrame{w, at[0], at[1] == '+'}
}

type killAtFrame struct {
	w     io.Writer
	kind  byte
	after bool
}

func (k *killAtFrame) Write(b []byte) (int, error) {
	if b[0] != k.kind {
		return k.w.Write(b)
	}
	if k.after {
		k.w.Write(b)
	}
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

func countingSpec() *Spec {
	return &Spec{Name: "m", Keep: true, Resources: []Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace")}}
}

var startCounting = &Command{Argv: []string{"/bin/sh", "-c", "echo '" + counting + "' >/start; setsid sh /start </dev/null >/log 2>&1 &"}}

// crashes are what an msh that is killed does to what it is at.
type crashes struct {
	*testing.T
	h     *Host
	name  string   // of the lab
	empty []string // the host without it
	up    []string // the host with it
}

func newCrashes(t *testing.T) *crashes {
	needCriu(t)
	h := newHost(t)
	c := &crashes{T: t, h: h, name: labName(t)}
	t.Setenv(makerFile, filepath.Join(t.TempDir(), "f.msh"))
	t.Cleanup(func() {
		c.down(h)
		os.Remove(filepath.Join(h.State, ".criu"))
		h.tidy()
	})
	return c
}

func (c *crashes) down(h *Host) {
	labs, _ := h.Labs()
	for _, lab := range labs {
		if _, err := h.down(context.Background(), lab, true); err != nil {
			c.Error(err)
		}
	}
}

// pair are a server and its client, with a connection between them, that are kept.
func (c *crashes) pair() {
	c.Helper()
	l, err := c.h.NewLab(c.name, true)
	if err != nil {
		c.Fatal(err)
	}
	if _, err := l.VNet(c.Context(), l.Host(), &VNetSpec{Name: "lan", Keep: true, Subnets: prefixes("10.7.0.0/24")}); err != nil {
		c.Fatal(err)
	}
	var all []*Machine
	for _, name := range []string{"server", "client"} {
		all = append(all, forkIn(c.T, l, l.Host(), &Spec{Name: name, Keep: true, Resources: []Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), &Netif{VNet: "lan"}}}))
	}
	streamer(c.T, all[0], "serve", "")
	if err := all[0].WaitPort(c.Context(), 7000, long); err != nil {
		c.Fatal(err)
	}
	streamer(c.T, all[1], "get", all[0].Address())
	eventuallyIn(c.T, all[1], "/got", "0")
	if err := l.Close(c.Context()); err != nil {
		c.Fatal(err)
	}
	c.goOn("at first")
}

// run has a maker do it, and looks after it with a sweep; done where it was not killed.
func (c *crashes) run(role string, k int) (done bool) {
	c.Helper()
	cmd, line := startMaker(c.T, c.h, c.name, fmt.Sprintf("%s:%d", role, k))
	cmd.Wait()
	sweep(c.T, c.h, false)
	c.noCriu(fmt.Sprintf("%s, killed at step %d", role, k))
	if line != "" && k < 6 {
		c.Errorf("%s: only %d steps", role, k-1)
	}
	return line != ""
}

// noCriu waits until no criu of this test's is left: one that has lost its msh ends by
// itself.
func (c *crashes) noCriu(what string) {
	c.Helper()
	mine, _ := os.Readlink("/proc/self/ns/net")
	c.noProcess(what+": a criu", func(dir string) bool {
		comm, _ := os.ReadFile(dir + "/comm")
		net, _ := os.Readlink(dir + "/ns/net") // a zombie has none
		return string(comm) == "criu\n" && net == mine
	})
}

// noMaker waits until the msh at the other end has noticed that the line is broken.
func (c *crashes) noMaker(what string) {
	c.Helper()
	c.noProcess(what+": the other msh", func(dir string) bool {
		env, _ := os.ReadFile(dir + "/environ")
		return strings.Contains(string(env), makerState+"="+os.Getenv(makerOther)+"\x00")
	})
}

func (c *crashes) noProcess(what string, is func(dir string) bool) {
	c.Helper()
	var left []string
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		if left = slices.DeleteFunc(dirs, func(dir string) bool { return !is(dir) }); len(left) == 0 {
			return
		}
	}
	c.Fatalf("%s is left: %v", what, left)
}

// isUp tells whether the lab is there, of which all or nothing has to be.
func (c *crashes) isUp(what string) bool {
	c.Helper()
	var up []string
	for _, id := range machines(c.T, c.h) {
		m, err := c.h.Find(id)
		if err != nil {
			c.Fatal(err)
		}
		up = append(up, m.Name()+" "+m.State())
		m.Close()
	}
	switch text := strings.Join(up, ", "); text {
	case "client running, server running":
		return true
	case "":
		return false
	default:
		c.Fatalf("%s: %s", what, text)
		return false
	}
}

// goOn looks whether both run, and their connection goes on.
func (c *crashes) goOn(what string) {
	c.Helper()
	if !c.isUp(what) {
		c.Fatalf("%s: they are gone", what)
	}
	m, err := c.h.Find(c.name + "/client")
	if err != nil {
		c.Fatal(err)
	}
	defer m.Close()
	n := got(c.T, m, 0)
	got(c.T, m, n+20)
	if notes, err := c.h.stills(c.name); len(notes) > 0 || err != nil {
		c.Errorf("%s: notes %v, %v", what, notes, err)
	}
}

func (c *crashes) same(what string, before []string) {
	c.Helper()
	if left := settled(c.T, c.h, before); left != "" {
		c.Fatalf("%s: left behind (-before +after):\n%s", what, left)
	}
}

func (c *crashes) hibernate() {
	c.Helper()
	all, _, err := c.h.FindAll(c.name)
	if err != nil {
		c.Fatal(err)
	}
	if _, err := SnapshotFile(c.Context(), os.Getenv(makerFile), all, SnapshotOptions{Hibernate: true}); err != nil {
		explainCriu(c.T, err)
		c.Fatal(err)
	}
	for _, m := range all {
		m.Close()
	}
}

func (c *crashes) wake() {
	c.Helper()
	l, err := c.h.NewLab(c.name, true)
	if err == nil {
		_, err = l.WakeFile(c.Context(), os.Getenv(makerFile), WakeOptions{Keep: true})
		err = errors.Join(err, l.Close(c.Context()))
	}
	if err != nil {
		explainCriu(c.T, err)
		c.Fatal(err)
	}
}

// move has a new machine move in a process of its own, with one side killed, and looks
// what has become of it.
func (c *crashes) move(there *Host, what string, giver, taker int, frame string, moved, asked *int) (line string) {
	c.Helper()
	t := c.T
	release := c.takeName(there) // both share the control groups
	defer release()
	l, err := c.h.NewLab(c.name, true)
	if err != nil {
		t.Fatal(err)
	}
	m := forkIn(t, l, l.Host(), countingSpec())
	if _, err := m.Run(t.Context(), startCounting, nil, long); err != nil {
		t.Fatal(err)
	}
	eventuallyIn(t, m, "/count", "\n3 ")
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Setenv(makerThere, strconv.Itoa(taker))
	t.Setenv(makerFrame, frame)
	cmd, line := startMaker(t, c.h, c.name, fmt.Sprintf("migrate:%d", giver))
	cmd.Wait()
	t.Setenv(makerThere, "0")
	t.Setenv(makerFrame, "")
	c.noMaker(what)
	sweep(t, c.h, false)
	sweep(t, there, false)
	c.noCriu(what)
	if notes, err := c.h.stills(c.name); err != nil {
		t.Fatal(err)
	} else if len(notes) > 0 {
		*asked++
		c.ask(there, what)
	}
	at := c.h
	lives := machines(t, c.h)
	if gone := machines(t, there); len(lives)+len(gone) != 1 {
		t.Fatalf("%s: here %v, there %v", what, lives, gone)
	} else if len(gone) == 1 {
		*moved++
		at, lives = there, gone
	}
	if m, err = at.Find(lives[0]); err != nil {
		t.Fatal(err)
	}
	want(t, what, "running", m.State())
	n := strings.Count(readIn(t, m, "/count"), "\n")
	eventuallyIn(t, m, "/count", fmt.Sprintf("\n%d ", n+3))
	m.Close()
	if notes, err := c.h.stills(c.name); len(notes) > 0 || err != nil {
		t.Errorf("%s: notes %v, %v", what, notes, err)
	}
	release()
	c.down(c.h)
	c.down(there)
	sweep(t, there, true)
	c.nothing(what, c.h)
	c.nothing(what, there)
	return line
}

// ask looks whether a machine in doubt stands still whatever is done to it, and has the
// other host asked.
func (c *crashes) ask(there *Host, what string) {
	t := c.T
	t.Helper()
	m, err := c.h.Find("m")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	_, run := m.Run(t.Context(), &Command{Argv: []string{"true"}}, nil, long)
	_, down := c.h.Down(t.Context(), c.name, false)
	_, save := m.Snapshot(t.Context(), os.Getenv(makerFile), SnapshotOptions{})
	for word, err := range map[string]error{"thaw": m.Thaw(t.Context()), "set": m.Set(&Pids{Max: 50}), "destroy": m.Destroy(t.Context()), "freeze": m.Freeze(t.Context()),
		"stop": m.Stop(t.Context(), time.Second), "kill": m.Kill(t.Context(), unix.SIGKILL), "run": run, "down": down, "snapshot": save} {
		if err == nil || !strings.Contains(err.Error(), "it may run on ssh://other already") || !strings.Contains(hintOf(err), "--take-back m") {
			t.Errorf("%s: %s in doubt: error %v%s", what, word, err, hintOf(err))
		}
	}
	want(t, what+": in doubt", "frozen", m.State())
	r, err := Migrate(t.Context(), []*Machine{m}, &Remote{Host: "other"}, MigrateOptions{dial: dialMaker(there.State), Patience: long})
	if err != nil {
		t.Fatalf("%s: asked once more: %v", what, err)
	}
	t.Logf("%s: asked; it had moved: %v", what, r.Settled)
	c.noMaker(what)
	sweep(t, c.h, false)
}

// nothing looks whether anything of the lab is left on a host. That a move has come
// there is written down for a giver who has not said that he has heard it.
func (c *crashes) nothing(what string, h *Host) {
	c.Helper()
	left := slices.DeleteFunc(leftOf(c.T, h), func(s string) bool {
		name, in := filepath.Base(s), filepath.Base(filepath.Dir(s))
		others := !strings.Contains(s, c.name) && !strings.HasPrefix(s, h.State)
		return others || name == ".criu" || name == ".moves" || in == ".moves" && !strings.Contains(name, ".")
	})
	if len(left) > 0 {
		c.Fatalf("%s: left behind:\n%s", what, strings.Join(left, "\n"))
	}
}

// takeName keeps a lab's name from being free on the other host.
func (c *crashes) takeName(h *Host) (release func()) {
	c.Helper()
	l, err := h.NewLab(c.name, false)
	if err == nil {
		l.mu.Lock()
		err = l.claim(c.Context())
		l.mu.Unlock()
	}
	if err != nil {
		c.Fatal(err)
	}
	return sync.OnceFunc(func() { l.Close(context.Background()) })
}
