package criu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"msh/kernel/criu"
)

// What a criu has found out of the kernel the next one is given, where /run is on a
// disk: also by another msh, until the next boot, and though what is kept lies in /run.
func TestFactsAreKept(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, out := t.TempDir(), t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		t.Skip("the directory for temporary files is on a tmpfs")
	}
	if err := unix.Mount(dir, "/run", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount("/run", unix.MNT_DETACH) })
	const boot = "this boot"
	keep := func(text string) {
		t.Helper()
		if err := os.WriteFile("/run/.criu", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() string { b, _ := os.ReadFile("/run/.criu"); return strings.TrimPrefix(string(b), boot+"\n") }
	// A program that shows what it is given, and leaves what it has found out.
	start := func(name, found string) (given string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			text := fmt.Sprintf("#!/bin/sh\ncat /run/criu.kdat >%s/given 2>/dev/null\n[ ! %s ] || echo -n %s >/run/criu.kdat\n", out, found, found)
			if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		c := &criu.Criu{Path: path, Keep: "/run/.criu", Boot: boot}
		if _, err := c.Features(t.Context()); err == nil {
			t.Fatal("a program that says nothing has features")
		}
		b, err := os.ReadFile(filepath.Join(out, "given"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := start("first", "facts"); got != "" || kept() != "facts" {
		t.Errorf("the first one is given %q, and what is kept is %q", got, kept())
	}
	if got := start("first", ""); got != "facts" {
		t.Errorf("the next one of this process is given %q", got)
	}
	if got := start("other", ""); got != "facts" {
		t.Errorf("the first one of another process is given %q", got)
	}
	keep("another boot\nof another boot")
	if got := start("third", "anew"); got != "" || kept() != "anew" {
		t.Errorf("after a boot it is given %q, and what is kept is %q", got, kept())
	}
	keep(boot + "\nof another build")
	if got := start("fourth", "mine"); got != "of another build" || kept() != "mine" {
		t.Errorf("another build is given %q, and what is kept is %q", got, kept())
	}
}
