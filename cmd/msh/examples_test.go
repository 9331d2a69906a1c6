package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// mshCommand is this test's own binary, run as msh, with a state directory of the test's.
func mshCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("machines need root")
	}
	state, err := os.MkdirTemp("", "msh-state")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(state, 0o755); err != nil { // a machine's root may be another user
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if labs := labsIn(state); len(labs) > 0 {
			t.Errorf("left behind: %v", labs)
			endLabs(state)
		}
		os.RemoveAll(state)
	})
	cmd := exec.CommandContext(t.Context(), "msh", args...) // testscript.Main has put it on the PATH
	cmd.Env = append(os.Environ(), "MSH_STATE="+state)
	return cmd
}

// TestExamples runs every script in examples and compares what it prints with its golden in testdata/examples.
func TestExamples(t *testing.T) {
	scripts, err := filepath.Glob(filepath.Join(repository, "examples", "*.star"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, script := range scripts {
		name := strings.TrimSuffix(filepath.Base(script), ".star")
		t.Run(name, func(t *testing.T) {
			cmd := mshCommand(t, name+".star")
			if text, err := os.ReadFile(script); err != nil {
				t.Fatal(err)
			} else if strings.Contains(string(text), "uidspace()") && !shifts() {
				t.Skip("the owners of / cannot be shifted here: msh doctor")
			}
			cmd.Dir = filepath.Join(repository, "examples")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s%s", err, got, stderr.Bytes())
			}
			if name == "exclusive" && strings.HasPrefix(string(got), "this host has one CPU") {
				t.Skip("one CPU only")
			}
			golden(t, filepath.Join(repository, "testdata", "examples", name+".out"), string(got))
		})
	}
}

// TestExampleREPL types what stands behind the prompts of examples/repl.txt, and compares the whole session.
func TestExampleREPL(t *testing.T) {
	path := filepath.Join(repository, "examples", "repl.txt")
	transcript, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const prompt, more = ">>> ", "... "
	var typed, want strings.Builder
	for line := range strings.Lines(string(transcript)) {
		switch {
		case strings.HasPrefix(line, prompt):
			typed.WriteString(line[len(prompt):])
		case strings.HasPrefix(line, strings.TrimSpace(more)):
			typed.WriteString(strings.TrimPrefix(strings.TrimSpace(line), "...")[min(1, len(strings.TrimSpace(line))-3):] + "\n")
		default:
			want.WriteString(line)
		}
	}
	cmd := mshCommand(t)
	cmd.Stdin = strings.NewReader(typed.String())
	got, err := cmd.CombinedOutput()
	// One input of the session goes wrong. On a pipe msh says so at its end.
	if cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v\n%s", err, got)
	}
	want.WriteString("inputs that failed: 1\n")
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("session (-%s +got):\n%s", path, diff)
	}
}

// TestReference compares docs/reference.md with what `msh doc --markdown` writes.
func TestReference(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"doc", "--markdown"}, strings.NewReader(""), &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr.Bytes())
	}
	golden(t, filepath.Join(repository, "docs", "reference.md"), stdout.String())
}

// TestREADME holds the README to the example that it shows: its text, and what it prints.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"examples/lab.star", "testdata/examples/lab.out"} {
		text, err := os.ReadFile(filepath.Join(repository, path))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(readme), "\n"+string(text)+"```\n") {
			t.Errorf("README.md does not show %s as it is", path)
		}
	}
}

// golden compares with a file; -update writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; -update writes it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}
