package kernel

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A lab that was saved where there is cgroup v2 wakes where there is v1, confined and
// limited as it was, with its cable and its answers to uname.
func TestPairBack(t *testing.T) {
	to := peer(t)
	needCriu(t)
	needV1Only(t)
	const lab = `
a, b = [machine_rfork(name=n, resources=[root("/"), pidspace(), netspace(), ipcspace(), memory(max="64M"), pids(50), cpu(weight=50), security(level=2), uname(release="4.0")]) for n in "ab".elems()]
link(a, b, addresses=["10.9.0.1/30", "10.9.0.2/30"])
a.run("setsid sh -c 'i=0; while sleep 0.1; do i=$((i+1)); echo $i $(uname -r) >/count.new; mv /count.new /count; done' </dev/null >/dev/null 2>&1 &")
a.wait_file("/count")
`
	cmd := exec.CommandContext(t.Context(), "ssh", to, "cat >/root/back.star")
	cmd.Stdin = strings.NewReader(lab)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	t.Log(there(t, "msh doctor >/dev/null; test -e /sys/fs/cgroup/cgroup.controllers && msh up /root/back.star && msh hibernate back /root/back.msh"))
	run := func(argv ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("sh", "-c", "ssh "+to+" 'cat /root/back.msh; rm /root/back.*' >/root/back.msh")
	t.Cleanup(func() {
		exec.Command("msh", "down", "back").Run()
		os.Remove("/root/back.msh")
	})
	t.Log(run("msh", "wake", "/root/back.msh"))
	count := func() int {
		f := strings.Fields(run("msh", "exec", "back/a", "--", "cat", "/count"))
		if len(f) != 2 || f[1] != "4.0" {
			t.Fatalf("it counts %q", f)
		}
		n, err := strconv.Atoi(f[0])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	for end := time.Now().Add(patient); count() < before+3; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it stands at %d", before)
		}
	}
	run("msh", "exec", "back/a", "--", "ping", "-c1", "-W10", "10.9.0.2")
	contains(t, run("msh", "exec", "back/a", "--", "grep", "-E", "NoNewPrivs|CapBnd", "/proc/1/status"), "NoNewPrivs:\t1", "CapBnd:\t00000000")
	if r, err := exec.Command("msh", "exec", "back/a", "--", "mount", "-t", "tmpfs", "none", "/mnt").CombinedOutput(); err == nil {
		t.Errorf("it may mount: %s", r)
	}
	h, err := NewHost("")
	if err != nil {
		t.Fatal(err)
	}
	m, err := h.Find("back/a")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	want(t, "memory", strconv.Itoa(64<<20), group(t, m, "memory", "memory.limit_in_bytes"))
	want(t, "pids", "50", group(t, m, "pids", "pids.max"))
}
