package escape

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"msh/kernel"
)

const (
	insideEnv  = "MSH_TEST_INSIDE"  // this is the process that runs the tests
	outsideEnv = "MSH_TEST_OUTSIDE" // where it finds what is outside of the machines
)

// secret is a word in the environment of the process that runs the tests, and so in
// that of the msh that these tests are.
const secret = "MSH_ESCAPE_SECRET"

// TestMain runs the tests as a caller that has much to leak: a working directory and
// an open directory outside, a key in its session, a word in its environment, a
// terminal that is its controlling one. Its mounts and network are its own.
//
// The same binary is the attacker, and the supervisor of what is restarted.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "attack-true":
			os.Exit(0)
		case "look":
			look()
			os.Exit(0)
		case "attack", "attack-one":
			os.Exit(Main(os.Args[1:], os.Stdout))
		case "supervise":
			os.Exit(supervise(os.Args[2]))
		}
	}
	switch {
	case os.Getuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(insideEnv) != "":
		out, err := settleIn()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		outside = out
		os.Exit(m.Run())
	}
	code, err := dirty()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(code)
}

func supervise(name string) int {
	h, err := kernel.NewHost(os.Getenv("MSH_STATE"))
	if err == nil {
		err = h.Supervise(context.Background(), name, os.Stdin, os.Stdout)
	}
	if err != nil {
		return 1
	}
	return 0
}

// dirty starts the process that runs the tests.
func dirty() (int, error) {
	runtime.LockOSThread() // whose keyring, and whose end, it is about
	if _, err := unix.KeyctlJoinSessionKeyring("msh-escape"); err != nil && err != unix.ENOSYS {
		return 0, fmt.Errorf("a session keyring: %w", err)
	} else if err == nil {
		if _, err := unix.AddKey("user", keyName("session"), []byte("x"), unix.KEY_SPEC_SESSION_KEYRING); err != nil {
			return 0, fmt.Errorf("a key: %w", err)
		}
		id, err := unix.AddKey("user", keyName("user"), []byte("x"), unix.KEY_SPEC_USER_KEYRING)
		if err != nil {
			return 0, fmt.Errorf("a key: %w", err)
		}
		defer unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_USER_KEYRING, 0, 0)
		unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, 600, 0, 0)
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return 0, err
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return 0, fmt.Errorf("a terminal: %w", errno)
	}
	tty := os.NewFile(slave, "tty")
	defer tty.Close()
	dir, err := os.MkdirTemp("", "msh-escape-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(dir)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"="+fmt.Sprint(os.Getpid()), outsideEnv+"="+dir, secret+"="+secret)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{tty}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL, Setsid: true, Setctty: true, Ctty: 3}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// keyName names a key of this run's.
func keyName(of string) string {
	maker := os.Getenv(insideEnv)
	if maker == "" {
		maker = fmt.Sprint(os.Getpid())
	}
	return "msh-escape-" + of + "-" + maker
}

// outside is what the machines of these tests must not reach.
var outside *Target

// settleIn makes it: a file system of its own with a file in it, which is where the
// process works, and which it has open without O_CLOEXEC.
func settleIn() (*Target, error) {
	unix.CloseOnExec(3) // the terminal is its own to hold, and is leaked by /dev/tty alone
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return nil, fmt.Errorf("share the mounts: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, err
	}
	// In this mount table alone: below it the machines find nothing.
	dir := os.Getenv(outsideEnv)
	if err := unix.Mount("outside", dir, "tmpfs", 0, "size=1m,mode=755"); err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	t := &Target{Shared: "/shared", Marker: filepath.Join(dir, "marker"), Text: "outside", Secret: secret, Key: keyName("session"), UserKey: keyName("user"),
		Socket: fmt.Sprintf("msh-escape-%d", os.Getpid()), Nofile: 256, Pids: 64}
	if err := errors.Join(os.WriteFile(t.Marker, []byte(t.Text), 0o600), os.WriteFile(filepath.Join(dir, "shared"), []byte("shared"), 0o644), os.Chdir(dir)); err != nil {
		return nil, err
	}
	if _, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, t.Marker, 0)
	if err != nil {
		return nil, fmt.Errorf("name_to_handle_at: %w", err)
	}
	t.Handle, t.Type = h.Bytes(), h.Type()
	var st unix.Stat_t
	if err := unix.Stat("/dev/null", &st); err != nil {
		return nil, err
	}
	t.Null, t.NullIno = uint64(st.Dev), st.Ino
	if err := unix.Stat("/", &st); err == nil && unix.Major(uint64(st.Dev)) != 0 {
		t.Disk = uint64(st.Dev)
	}
	t.Host, err = os.Hostname()
	return t, err
}

var details = flag.Bool("details", false, "print what every attack met")
