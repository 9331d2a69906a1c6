package criu

import (
	"strings"
	"testing"
)

// The reason is found in logs as criu writes them.
func TestLog(t *testing.T) {
	for _, c := range []struct{ op, log, want string }{
		{"dump", `
(00.000100) Error (criu/rlimit.c:12): rlimit: Can't setup RLIMIT_NOFILE for self
(00.041000) Dumping task (pid: 1234 comm: my server)
(00.046268) 1234 fdinfo 0: pos:                0 flags:           100002/0
(00.046280) Error (criu/files-reg.c:1790): Can't lookup mount=60 for fd=0 path=/dev/null
(00.046287) Error (criu/cr-dump.c:1545): Dump files (pid: 1234) failed with -1
(00.046531) net: Unlock network
(00.046807) Error (criu/cr-dump.c:1975): Dumping FAILED.`,
			"dump: process 1234 (my server): descriptor 0 (/dev/null) is a file in a mount table outside: criu: Can't lookup mount=60 for fd=0 path=/dev/null"},
		{"restore", `
(00.000100) Error (criu/rlimit.c:12): rlimit: Can't setup RLIMIT_NOFILE for self
(00.012107)      3: Error (criu/files-reg.c:2353): Can't open file tmp/log on restore: No such file or directory
(00.012110)      3: Error (criu/files-reg.c:2267): Can't open file tmp/log: No such file or directory
(00.012111)      3: Error (criu/files.c:1221): Unable to open fd=1 id=0xe
(00.012752)      1: Error (criu/cr-restore.c:1265): 3 exited, status=1
(00.013550) Error (criu/cr-restore.c:2331): Restoring FAILED.
(00.014232) Error (criu/cgroup.c:2055): cg: cgroupd: recv req error: No such file or directory`,
			"restore: process 3 of the tree: criu: Can't open file tmp/log on restore: No such file or directory"},
		{"restore", `
(00.079307) pie: 23: 23: Restored
(00.080000)      4: Error (criu/files.c:1221): Unable to open fd=4 id=0x17
(00.080591) pie: 3: Error (criu/pie/restorer.c:1): Task 4 exited, status= 1
(00.085963) Error (criu/cr-restore.c:2331): Restoring FAILED.`,
			"restore: process 4 of the tree: criu: Unable to open fd=4 id=0x17"},
		{"dump", `(00.014924) Error (criu/kerndat.c:2010): kerndat_tcp_repair failed when initializing kerndat.`,
			"dump: criu: kerndat_tcp_repair failed when initializing kerndat."},
		{"dump", `
(00.045753) Dumping task (pid: 7 comm: postgres)
(00.019968) Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted
(00.019970) Error (criu/cr-dump.c:1584): Dump core (pid: 7) failed with -1`,
			"dump: process 7 (postgres): it runs as another user, and msh lacks CAP_SYS_RESOURCE, without which its limits cannot be read: criu: Can't get rlimit 0: Operation not permitted"},
		{"dump", "(00.1) some line\nnot a line of the log at all", "dump: criu: "},
	} {
		e := &Error{Op: c.op}
		e.read(c.log)
		if e.Error() != c.want {
			t.Errorf("got  %s\nwant %s", e.Error(), c.want)
		}
	}
}

// A log may be anything.
func FuzzLog(f *testing.F) {
	f.Add("(00.0) 1: Error (a:1): 1 exited, status=1\n")
	f.Fuzz(func(t *testing.T, log string) {
		e := &Error{}
		e.read(log)
		if strings.Contains(e.Text, "\n") {
			t.Errorf("text of several lines: %q", e.Text)
		}
	})
}
