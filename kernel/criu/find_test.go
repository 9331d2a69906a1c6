package criu_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"msh/kernel/criu"
)

// Find takes what is new enough, and says what it has seen where nothing is.
func TestFind(t *testing.T) {
	program := func(text string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "criu"), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "criu")
	}
	says := func(v string) string { return program(fmt.Sprintf("echo 'Version: %s\nGitID: 0'", v)) }
	old, exact, newer, broken := says("3.17.1"), says("4.2"), says("4.12.1"), program("echo 'error while loading shared libraries' >&2; exit 127")
	for _, c := range []struct {
		env  string
		path []string
		want string // the program, or a part of the error
	}{
		{"", []string{old, exact, newer}, exact},
		{"", []string{newer, exact}, newer},
		{"", []string{broken, newer}, newer},
		{newer, []string{exact}, newer},
		{old, []string{exact}, "no CRIU 4.2 or newer: MSH_CRIU is " + old + ", which is 3.17.1"},
		{broken, []string{exact}, "MSH_CRIU: " + broken + " does not start: error while loading"},
		{"/nonexistent", nil, "MSH_CRIU: stat /nonexistent"},
	} {
		t.Setenv("MSH_CRIU", c.env)
		var dirs []string
		for _, p := range c.path {
			dirs = append(dirs, filepath.Dir(p))
		}
		t.Setenv("PATH", strings.Join(dirs, ":")+":/bin")
		found, err := criu.Find(t.Context())
		if err != nil && (found != nil || !strings.Contains(err.Error(), c.want)) || err == nil && found.Path != c.want {
			t.Errorf("MSH_CRIU=%s PATH=%v: %+v, %v, want %s", c.env, c.path, found, err, c.want)
		}
	}
	// Where the host's own is not new enough either.
	t.Setenv("MSH_CRIU", "")
	t.Setenv("PATH", filepath.Dir(old)+":"+filepath.Dir(broken)+":/bin")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	_, err := criu.Find(t.Context())
	var missing *criu.ErrMissing
	if err == nil {
		t.Skip("the host has one of its own")
	}
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), old+" is 3.17.1") || !strings.Contains(err.Error(), "does not start") || !strings.Contains(missing.Hint(), "package criu") {
		t.Errorf("error %v", err)
	}
}
