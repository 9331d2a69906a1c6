package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
)

const userEnv = "MSH_TEST_USER" // this is an ordinary user, with the state directory that it says

// callersKey is a key in the session of that user.
const callersKey = "msh-test-caller"

// asUser runs the tests in the user's space, entered as msh enters it.
func asUser(m *testing.M) int {
	if NeedsSpace() {
		runtime.LockOSThread()
		if _, err := unix.KeyctlJoinSessionKeyring("msh-test"); err == nil {
			_, err = unix.AddKey("user", callersKey, []byte("x"), unix.KEY_SPEC_SESSION_KEYRING)
			if err != nil {
				fmt.Fprintln(os.Stderr, "add a key:", err)
				return 2
			}
		}
		fmt.Fprintln(os.Stderr, EnterSpace(os.Getenv(userEnv), true)) // it does not return, if all is well
		return 2
	}
	code := m.Run()
	h, err := NewHost("")
	if err == nil {
		err = h.LeaveSpace()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "leave the space:", err)
		return 2
	}
	return code
}

// inSpace runs the test at hand once more as an ordinary user, and tells whether this
// is that time.
func inSpace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(userEnv) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	const daemon = 1
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chown(dir, daemon, daemon), os.Chmod(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/dev/net/tun"); err == nil { // on most hosts it is everybody's
		node := filepath.Join(t.TempDir(), "tun")
		if err := errors.Join(unix.Mknod(node, unix.S_IFCHR, int(unix.Mkdev(10, 200))), os.Chmod(node, 0o666), unix.Mount(node, "/dev/net/tun", "", unix.MS_BIND, "")); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount("/dev/net/tun", unix.MNT_DETACH)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), userEnv+"="+dir, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: daemon, Gid: daemon}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("as user %d: %v\n%s", daemon, err, out)
	}
	if left := processesNamed(cgroup.SpaceName, daemon); left != "" {
		t.Errorf("left: %s", left)
	}
	return false
}

// processesNamed lists those of a user.
func processesNamed(name string, uid uint32) string {
	var found []string
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		var st unix.Stat_t
		b, err := os.ReadFile(dir + "/cmdline")
		if err == nil && strings.HasPrefix(string(b), name) && unix.Stat(dir, &st) == nil && st.Uid == uid {
			found = append(found, filepath.Base(dir))
		}
	}
	return strings.Join(found, " ")
}

// With a fault at each step of its making, there is no holder of a user's space, and no
// word of one.
func TestFaultsSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("reads what processes are left of root's")
	}
	dir := t.TempDir()
	s, _ := holder()
	before := processesNamed(cgroup.SpaceName, 0)
	for k := 1; k <= s.Len(); k++ {
		u := &userSpace{State: dir, lock: -1, fault: k}
		err := u.open(true)
		if err == nil {
			t.Fatalf("a fault at step %d, %q, did not show", k, s.Steps()[k-1].Words)
		}
		contains(t, err.Error(), "make a space for user 0: ")
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("fault at step %d (%v): left %v", k, err, left)
		}
		want(t, fmt.Sprintf("fault at step %d: processes", k), before, processesNamed(cgroup.SpaceName, 0))
	}
	u := &userSpace{State: dir, lock: -1}
	failed := errors.New("cannot be written down")
	if err := u.make(func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	want(t, "not written down: processes", before, processesNamed(cgroup.SpaceName, 0))
}

// A machine of an ordinary user's, with a fault at each step: the init that is written
// down since no control group holds its processes is one.
func TestFaultsUser(t *testing.T) {
	if !inSpace(t) {
		return
	}
	h := newHost(t)
	l := labOn(t, h, "")
	faults(t, h, l, l.Host(), []Resource{space("pidspace"), space("netspace"), &Root{Source: "/", Write: "overlay"}, &Uname{Nodename: "box"}, &Security{Level: 2}})
}

// The way out of a user's vnet, with a fault at each step.
func TestFaultsUserNAT(t *testing.T) {
	if os.Getenv(userEnv) == "" && os.Getuid() == 0 { // what is there for it to go out by
		const up = "ip link add out0 type veth peer name out1 && ip addr add 192.0.2.1/24 dev out0 && ip link set out0 up && ip link set out1 up && ip route add default via 192.0.2.2"
		if out, err := exec.Command("sh", "-ec", up).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		defer exec.Command("ip", "link", "del", "out0").Run()
	}
	if !inSpace(t) {
		return
	}
	l := labOn(t, newHost(t), "")
	m := fork(t, l, space("pidspace"), space("netspace"))
	netFaults(t, l, m, 4, func() (func() error, error) {
		v, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", NAT: true, Subnets: prefixes("10.0.0.0/24", "fd00::/64")})
		if err != nil {
			return nil, err
		}
		return func() error { return v.Destroy(t.Context()) }, nil
	})
}

// More machines than a user may have keys: those above have the keyring of the space,
// and none the caller's.
func TestUserKeyrings(t *testing.T) {
	if !inSpace(t) {
		return
	}
	const machines = 215 // kernel.keys.maxkeys is 200
	l := labOn(t, newHost(t), "")
	search := fmt.Sprintf(`perl -e '$t = "user"; $k = "%s"; print syscall(%d, 10, -3, $t, $k, 0) < 0 ? "none" : "found"'`, callersKey, unix.SYS_KEYCTL)
	var last *Machine
	for range machines {
		last = fork(t, l, space("pidspace"))
	}
	want(t, "the caller's key", "none", sh(t, last, search))
	if r, err := exec.Command("sh", "-c", search).Output(); err != nil || string(r) != "found" {
		t.Errorf("outside it is not found either: %s, %v", r, err)
	}
}

// In a directory where anybody makes names, msh takes for its state none that somebody
// else has made, or can change.
func TestStateTaken(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("makes directories of others")
	}
	at := filepath.Join(t.TempDir(), "msh-0")
	for what, c := range map[string]struct{ make, want string }{
		"another's":      {"mkdir $0; chown 1 $0", "belongs to user 1, not to user 0"},
		"open to others": {"mkdir $0; chmod 777 $0", "may be written by others (mode 0777)"},
		"a group's":      {"mkdir $0; chmod 770 $0", "may be written by others (mode 0770)"},
		"a link":         {"mkdir $0.else; ln -sf $0.else $0", "is no directory"},
		"a file":         {"touch $0", "is no directory"},
	} {
		if out, err := exec.Command("sh", "-ec", c.make, at).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", what, err, out)
		}
		err := makeState(at)
		if err == nil {
			t.Fatalf("%s: taken", what)
		}
		contains(t, err.Error(), c.want)
		contains(t, hintOf(err), "XDG_RUNTIME_DIR")
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
	}
	if err := makeState(at); err != nil {
		t.Error(err)
	}
	if err := makeState(at); err != nil { // its own, from before
		t.Error(err)
	}
}
