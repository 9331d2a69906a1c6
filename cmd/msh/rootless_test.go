package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// The user of these tests is one that every system has, and nobody uses.
const testUser = 1 // daemon

// asUser is `asuser [-sub] [-cgroup GROUP] [-nnp] COMMAND…`: it becomes an ordinary user and executes the command. With
// -sub the user has subordinate ids, by files that are mounted over /etc/subuid and /etc/subgid in a mount table of its
// own; with -cgroup it is in a control group that has been given to it.
func asUser() {
	args := os.Args[1:]
	fail := func(what string, err error) {
		if err != nil {
			fmt.Fprintf(os.Stderr, "asuser: %s: %v\n", what, err)
			os.Exit(125)
		}
	}
	runtime.LockOSThread()
	fail("unshare", unix.Unshare(unix.CLONE_NEWNS))
	fail("make private", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	text := ""
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "-sub":
			text = "daemon:200000:65536\n"
		case "-cgroup":
			err := os.WriteFile(filepath.Join(args[1], "cgroup.procs"), []byte("0"), 0)
			if errors.Is(err, unix.EBUSY) { // it passes controllers down: its processes are in one below
				err = os.WriteFile(filepath.Join(args[1], ".msh", "cgroup.procs"), []byte("0"), 0)
			}
			fail("join", err)
			args = args[1:]
		case "-nnp":
			fail("no new privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		}
		args = args[1:]
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if _, err := os.Stat(file); err != nil && text == "" {
			continue
		}
		f, err := os.CreateTemp("", "msh-sub")
		fail("create", err)
		f.WriteString(text)
		f.Chmod(0o644)
		f.Close()
		fail("mount "+file, unix.Mount(f.Name(), file, "", unix.MS_BIND, ""))
		os.Remove(f.Name()) // which stays as long as it is mounted
	}
	if _, err := os.Stat("/dev/net/tun"); err == nil { // on most hosts it is everybody's
		node := filepath.Join(os.TempDir(), fmt.Sprintf("msh-tun-%d", os.Getpid()))
		fail("make a node", unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))))
		os.Chmod(node, 0o666)
		fail("mount it", unix.Mount(node, "/dev/net/tun", "", unix.MS_BIND, ""))
		os.Remove(node)
	}
	path, err := exec.LookPath(args[0])
	fail("find", err)
	fail("setgroups", unix.Setgroups(nil))
	fail("setgid", unix.Setresgid(testUser, testUser, testUser))
	fail("setuid", unix.Setresuid(testUser, testUser, testUser))
	fail("exec", unix.Exec(path, args, os.Environ()))
}

// TestRootless runs testdata/rootless as an ordinary user: once with subordinate ids, once without.
func TestRootless(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	for _, mode := range []string{"sub", "one"} {
		t.Run(mode, func(t *testing.T) {
			if _, err := exec.LookPath("newuidmap"); mode == "sub" && err != nil {
				t.Skip("no newuidmap here: scripts/deps installs it")
			}
			runRootless(t, mode, "", "*")
		})
	}
}

// runRootless gives each script $USER, the start of a command line that makes msh an ordinary user's.
func runRootless(t *testing.T, mode, group string, scripts ...string) {
	var files []string
	for _, s := range scripts {
		found, err := filepath.Glob(filepath.Join(repository, "testdata", "rootless", s+".txtar"))
		if err != nil || len(found) == 0 {
			t.Fatal(s, err)
		}
		files = append(files, found...)
	}
	testscript.RunT(serial{t}, testscript.Params{
		Files:               files,
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                scriptCommands,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "sub", "one":
				return cond == mode, nil
			case "delegated":
				return group != "", nil
			}
			if name, ok := strings.CutPrefix(cond, "exec:"); ok {
				_, err := exec.LookPath(name)
				return err == nil, nil
			}
			return condition(cond)
		},
		Setup: func(env *testscript.Env) error { return setupRootless(env, mode, group) },
	})
}

func setupRootless(env *testscript.Env, mode, group string) error {
	run, err := os.MkdirTemp("", "msh-user")
	if err != nil {
		return err
	}
	if err := os.Chown(run, testUser, testUser); err != nil {
		return err
	}
	env.Setenv("XDG_RUNTIME_DIR", run)
	env.Setenv("HOME", run)
	bin := filepath.SplitList(env.Getenv("PATH"))[0]
	for dir := bin; dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	for dir := env.WorkDir; dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	os.Chmod(env.WorkDir, 0o777)
	user := filepath.Join(bin, "asuser")
	if mode == "sub" {
		user += " -sub"
	}
	if group != "" {
		user += " -cgroup " + group
	}
	if err := os.WriteFile(filepath.Join(env.WorkDir, "u"), []byte("#!/bin/sh\nexec "+user+` "$@"`+"\n"), 0o755); err != nil {
		return err
	}
	env.Setenv("PATH", env.WorkDir+string(filepath.ListSeparator)+env.Getenv("PATH"))
	t := env.T().(serial).T
	env.Defer(func() {
		left := leftByUser(run)
		for range 200 {
			if left == "" {
				break
			}
			time.Sleep(10 * time.Millisecond)
			left = leftByUser(run)
		}
		if left != "" {
			t.Errorf("left behind:\n%s", left)
		}
		os.RemoveAll(run)
	})
	return nil
}

// leftByUser lists what an ordinary user's msh could leave: files, and processes of the user or of subordinate ids.
func leftByUser(run string) string {
	var b strings.Builder
	filepath.Walk(run, func(path string, _ os.FileInfo, err error) error {
		if path != run {
			fmt.Fprintf(&b, "file %s\n", path)
		}
		return nil
	})
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil || st.Uid != testUser && st.Uid < 200000 {
			continue
		}
		line, _ := os.ReadFile(p + "/cmdline")
		fmt.Fprintf(&b, "process %s of user %d: %s\n", filepath.Base(p), st.Uid, strings.ReplaceAll(string(line), "\x00", " "))
	}
	return b.String()
}

// pidOfCommand is `pidof NAME FILE`: it writes the number of the process called so, of the test's user, into the file.
func pidOfCommand(ts *testscript.TestScript, neg bool, args []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		line, _ := os.ReadFile(p + "/cmdline")
		var st unix.Stat_t
		if strings.HasPrefix(strings.ReplaceAll(string(line), "\x00", " "), args[0]) && unix.Stat(p, &st) == nil && st.Uid == testUser {
			n, _ := strconv.Atoi(filepath.Base(p))
			ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strconv.Itoa(n)), 0o644))
			return
		}
	}
	ts.Fatalf("pidof %s: no such process", args[0])
}
