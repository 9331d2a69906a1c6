package kernel

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"msh/kernel/handover"
)

func TestParseRemote(t *testing.T) {
	for in, want := range map[string]string{
		"ssh://b":                  "ssh://b",
		"ssh://root@b:2222":        "ssh://root@b:2222",
		"ssh://root@[fd00::2]:22/": "ssh://root@[fd00::2]:22",
		"b":                        "ssh://b",
		"root@b.example.org":       "ssh://root@b.example.org",
	} {
		r, err := ParseRemote(in)
		if err != nil || r.String() != want {
			t.Errorf("%s: %v, %v, want %s", in, r, err, want)
			continue
		}
		if again, err := ParseRemote(r.String()); err != nil || *again != *r {
			t.Errorf("%s: %+v, then %+v, %v", in, r, again, err)
		}
	}
	for _, in := range []string{"", "ssh://", "ssh:///x", "-oProxyCommand=x", "ssh://-oProxyCommand=x", "ssh://-x@b", "-x@b", "@b", "root@", "ssh://b:0", "ssh://b:70000",
		"ssh://b:", "ssh://u:secret@b", "ssh://b/path", "ssh://b?x", "b c", "b;c", "$(c)", "https://b"} {
		r, err := ParseRemote(in)
		if err == nil {
			t.Errorf("%q was taken for %s", in, r)
		}
	}
}

func TestRemoteArgv(t *testing.T) {
	t.Setenv("MSH_SSH", "")
	r := &Remote{User: "root", Host: "b", Port: 22, Command: "sudo msh"}
	if got, want := strings.Join(r.argv(), " "), "ssh -T -oServerAliveInterval=5 -oServerAliveCountMax=3 -p 22 -l root -- b sudo msh receive"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Why there is no line is told in ssh's words, or in those of the shell there.
func TestDialFails(t *testing.T) {
	for script, want := range map[string]string{
		"echo 'ssh: connect to host b port 22: Connection refused' >&2; exit 255": "ssh to ssh://b: ssh: connect to host b port 22: Connection refused",
		"echo 'sh: 1: msh: not found' >&2; exit 127":                              "ssh://b: no msh there: sh: 1: msh: not found",
		"echo 'receive needs root' >&2; exit 1":                                   "msh on ssh://b: receive needs root",
		"echo 'Welcome!'; exit 0":                                                 `no msh: it wrote "Welcome!\n"`,
		"exit 0":                                                                  "the line is broken",
	} {
		ssh := filepath.Join(t.TempDir(), "ssh")
		if err := os.WriteFile(ssh, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("MSH_SSH", ssh)
		_, err := handover.Give(t.Context(), (&Remote{Host: "b"}).dial, handover.Hello{}, nil, 0)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", script, err, want)
		}
	}
	t.Setenv("MSH_SSH", "/no/such/ssh")
	if _, err := (&Remote{Host: "b"}).dial(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v", err)
	}
	// One that says nothing is left with the context, and ends with its input.
	ssh := filepath.Join(t.TempDir(), "ssh")
	if err := os.WriteFile(ssh, []byte("#!/bin/sh\nwhile read -r line; do :; done\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MSH_SSH", ssh)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := handover.Give(ctx, (&Remote{Host: "b"}).dial, handover.Hello{}, nil, 0); err != context.DeadlineExceeded {
		t.Errorf("error %v", err)
	}
}
