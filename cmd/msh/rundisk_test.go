package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRunOnDisk has a machine saved and woken where msh's state is in its usual place, /run/msh, and that is on a disk, as it is in
// most containers: there criu gets a /run of its own, which hides the machine's directory.
func TestRunOnDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("machines need root")
	}
	run := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(run, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("the directory for temporary files is not on a disk; TMPDIR names another")
	}
	const script = `
m = machine_rfork([root("/"), pidspace(), netif(vnet("lan", subnet="10.9.0.0/24"))] + ([uidspace()] if args[0] == "true" else []))
m.write_file("/word", "hello")
m.hibernate(args[1])
print(wake(args[1]).read_file("/word"))
`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1" /run && exec msh -c "$2" "$3" "$1/file"`, "sh", run, script, strconv.FormatBool(shifts()))
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MSH_STATE=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("%v\n%s%s", err, out, stderr.Bytes())
	}
	if labs := labsIn(filepath.Join(run, "msh")); len(labs) > 0 {
		t.Errorf("left behind: %v", labs)
	}
}
