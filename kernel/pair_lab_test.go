package kernel

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The example's lab is hibernated in the middle of a transfer, its file copied to the
// other host, and woken there: the transfer completes, and the database has gone on.
func TestPairLab(t *testing.T) {
	to := peer(t)
	needCriu(t)
	run := func(argv ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
		return string(out)
	}
	run("msh", "up", "--lab", "shop", "/src/examples/shop.star", "stay")
	t.Cleanup(func() {
		exec.Command("msh", "down", "shop").Run()
		exec.Command("ssh", to, "msh down shop; rm -f /root/shop.msh").Run()
	})
	whole, before := run("msh", "exec", "shop/app", "--", "stat", "-c", "%s", "/shop/film"), run("msh", "exec", "shop/client", "--", "stat", "-c", "%s", "/film")
	t.Log(run("msh", "hibernate", "shop", "/root/shop.msh"))
	if ls := run("msh", "ls"); strings.Contains(ls, "shop") {
		t.Errorf("still here: %s", ls)
	}
	run("sh", "-c", "ssh "+to+" 'cat >/root/shop.msh' </root/shop.msh")
	t.Log(there(t, "msh inspect /root/shop.msh"))
	there(t, "msh doctor && true; true") // criu looks at a new kernel once; three that do so at once are in each other's way
	t.Log(there(t, "msh wake /root/shop.msh"))
	after := there(t, "msh exec shop/client -- stat -c %s /film")
	t.Logf("of %s bytes there were %s when it was hibernated, %s when it was awake", strings.TrimSpace(whole), strings.TrimSpace(before), strings.TrimSpace(after))
	if bytesIn(t, before) == 0 || bytesIn(t, after) >= bytesIn(t, whole) {
		t.Fatal("it was not in the middle of the transfer")
	}
	there(t, "msh exec shop/client -- touch /hurry")
	visits := there(t, "msh exec shop/db -- redis-cli get visits")
	var sums string
	for end := time.Now().Add(patient); time.Now().Before(end) && !strings.Contains(sums, "-"); time.Sleep(time.Second) {
		sums = there(t, "msh exec shop/client -- cat /sum 2>/dev/null; true")
	}
	if want := there(t, "msh exec shop/app -- cat /shop/sum"); sums != want {
		t.Errorf("the transfer: %q, want %q", sums, want)
	}
	want(t, "bytes that have come", whole, there(t, "msh exec shop/client -- stat -c %s /film"))
	if now := there(t, "msh exec shop/db -- redis-cli get visits"); now == visits {
		t.Errorf("the database stands at %s", now)
	}
	there(t, "msh down shop")
}

// bytesIn reads what stat has said.
func bytesIn(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
