package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"msh/kernel"
	"msh/kernel/cgroup"
	"msh/kernel/criu"
)

var update = flag.Bool("update", false, "rewrite the goldens with what msh prints")

// repository is the path from this package to the top.
const repository = "../.."

// TestMain makes msh of the test binary itself, so that scripts run what is being tested.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"msh": main, "asuser": asUser})
}

// TestScripts runs testdata/scripts. A script sees the host from outside machines by outside.star, which lies beside it.
func TestScripts(t *testing.T) {
	runScripts(t, testscript.Params{
		Dir:           filepath.Join(repository, "testdata", "scripts"),
		UpdateScripts: *update,
	})
}

// runScripts runs scripts one after the other: they share the host's control groups, and each must leave none.
func runScripts(t *testing.T, p testscript.Params) {
	p.Setup = setup
	p.Condition = condition
	p.Cmds = scriptCommands
	p.RequireExplicitExec = true
	p.RequireUniqueNames = true
	testscript.RunT(serial{t}, p)
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"waitfor":  waitFor,
	"signal":   signalCommand,
	"pidof":    pidOfCommand,
	"forge":    forgeCommand,
	"terminal": terminalCommand,
}

// serial is a testing.T whose tests do not run at the same time.
type serial struct{ *testing.T }

func (serial) Parallel()     {}
func (serial) Verbose() bool { return testing.Verbose() }
func (s serial) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(serial{t}) })
}

// setup gives a script its own state directory, and checks at its end that it left the host as it was.
func setup(env *testscript.Env) error {
	// Not in the work directory, which is closed to other users: a machine's root may be one.
	state, err := os.MkdirTemp("", "msh-state")
	if err != nil {
		return err
	}
	if err := os.Chmod(state, 0o755); err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(state) })
	env.Setenv("MSH_STATE", state)
	if c, err := criu.Find(context.Background()); err == nil {
		env.Setenv("MSH_CRIU", c.Path) // which may be below the HOME that a script does not have
	}
	env.Setenv("HOME", env.WorkDir)
	outside, err := os.ReadFile(filepath.Join(repository, "testdata", "outside.star"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(env.WorkDir, "outside.star"), outside, 0o644); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	t := env.T().(serial).T
	h := &traces{state: state, msh: filepath.SplitList(env.Getenv("PATH"))[0], labs: []string{"msh", "doctor"}}
	scripts, _ := filepath.Glob(filepath.Join(env.WorkDir, "*.star"))
	for _, s := range scripts {
		h.labs = append(h.labs, labName(s))
	}
	before := h.find()
	env.Defer(func() {
		labs := labsIn(state)
		if after := h.settled(before); after != "" || len(labs) > 0 {
			t.Errorf("left behind: labs %v, host (-before +after):\n%s", labs, after)
		}
		endLabs(state)
	})
	return nil
}

// labsIn lists the labs that have something in a state directory.
func labsIn(state string) (labs []string) {
	dirs, _ := filepath.Glob(filepath.Join(state, "[a-z0-9]*"))
	for _, d := range dirs {
		labs = append(labs, filepath.Base(d))
	}
	return labs
}

// endLabs ends what is left, so that one test's fault is not the next one's too.
func endLabs(state string) {
	h, err := kernel.NewHost(state)
	if err != nil {
		return
	}
	for _, lab := range labsIn(state) {
		h.Down(context.Background(), lab, false)
	}
}

// traces knows what a script could leave on the host, and that others may be at work there.
type traces struct {
	msh   string   // the directory of the msh under test
	state string   // the test's own state directory
	labs  []string // the script's
}

// find lists them as text: control groups of the labs, mounts, network interfaces, routes, rules, processes of msh's.
func (h *traces) find() []string {
	var all []string
	host, err := cgroup.Detect()
	if err != nil {
		return []string{err.Error()}
	}
	for _, g := range host.Find("msh.*") {
		lab := strings.Split(filepath.Base(g), ".")[1]
		if slices.ContainsFunc(h.labs, func(l string) bool { return lab == l || strings.HasPrefix(lab, l+"-") }) {
			all = append(all, "cgroup "+g)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		// Of pinned networks only the test's own count.
		if f := strings.Fields(line); !strings.HasPrefix(f[3], "net:[") || strings.HasPrefix(f[4], h.state+"/") {
			all = append(all, "mount "+strings.Join(f[3:5], " "))
		}
	}
	links, _ := os.ReadDir("/sys/class/net")
	for _, l := range links {
		all = append(all, "interface "+l.Name())
	}
	for _, list := range []string{"ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "nft list ruleset"} {
		argv := strings.Fields(list)
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if errors.Is(err, exec.ErrNotFound) {
			continue // in the VM, whose ip is busybox's
		}
		for line := range strings.Lines(string(out)) {
			all = append(all, list+": "+strings.TrimSpace(line))
		}
	}
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		if to, _ := os.Readlink(exe); strings.HasPrefix(to, h.msh+"/") {
			all = append(all, "process "+filepath.Dir(exe)+" "+to)
		}
	}
	slices.Sort(all)
	return all
}

// settled compares the host with what it was; what ends by itself gets a moment to do so.
func (h *traces) settled(before []string) (diff string) {
	for range 100 {
		if diff = cmp.Diff(before, h.find()); diff == "" {
			return ""
		}
		time.Sleep(10 * time.Millisecond)
	}
	return diff
}

// condition knows [root], [cgroup1] (v1 alone), [cgroup2] (v2 alone), [vm], [cpus:N], and [shift]: whether the owners of the host's root can be shifted
// into a uidspace, which a root on tmpfs before Linux 6.3, or on an overlay, does not allow.
func condition(cond string) (bool, error) {
	switch {
	case cond == "root":
		return os.Geteuid() == 0, nil
	case cond == "cgroup1", cond == "cgroup2":
		h, err := kernel.NewHost("")
		return err == nil && h.Cgroup.Mode() == map[string]string{"cgroup1": "v1", "cgroup2": "v2"}[cond], err
	case cond == "shift":
		return shifts(), nil
	case cond == "criu": // scripts/deps fetches it; the VM has to be given one
		_, err := criu.Find(context.Background())
		if os.Getenv("MSH_VM") != "" {
			return err == nil, nil
		}
		return true, err
	case cond == "vm":
		return os.Getenv("MSH_VM") != "", nil
	case strings.HasPrefix(cond, "cpus:"):
		n, err := strconv.Atoi(strings.TrimPrefix(cond, "cpus:"))
		return runtime.NumCPU() >= n, err
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

// shifts is what the doctor says, asked once.
var shifts = sync.OnceValue(func() bool {
	state, err := os.MkdirTemp("", "msh-state")
	if err != nil {
		return false
	}
	defer os.RemoveAll(state)
	if os.Chmod(state, 0o755) != nil {
		return false
	}
	h, err := kernel.NewHost(state)
	return err == nil && slices.ContainsFunc(h.Doctor(context.Background()), func(f kernel.Finding) bool { return f.Name == "shifted owners" && f.OK })
})

// waitFor is `waitfor FILE`: until it is there.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitfor FILE")
	}
	for range 2000 {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("waitfor %s: not within 20s", args[0])
}

// signalCommand is `signal NAME PIDFILE`: it sends a signal to the process whose number the file has.
func signalCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME PIDFILE")
	}
	sig, ok := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[0]]
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[1])))
	if !ok || err != nil || pid <= 1 { // 0 and below are groups, and everybody
		ts.Fatalf("signal %v: %v", args, err)
	}
	ts.Check(syscall.Kill(pid, sig))
}
