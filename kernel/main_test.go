package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	insideEnv = "MSH_TEST_INSIDE" // this is the process that runs the tests
	makerEnv  = "MSH_TEST_MAKER"  // this is one that makes machines and is killed: see crash_test.go
)

// TestMain runs the tests in a mount table and a network of their own, so that
// what a machine leaves in them is seen, and what others on the host do is not.
// The mounts are shared, as systemd has them: what a machine mounts in a table
// that it has not made its own private copy of comes back to this one.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(makerEnv) != "":
		maker(os.Getenv(makerEnv))
		return
	case os.Getenv(streamEnv) != "":
		pairStreamer(os.Getenv(streamEnv))
	case os.Getenv(forbidEnv) != "":
		os.Exit(forbid(os.Getenv(forbidEnv)))
	case os.Getenv(userEnv) != "":
		os.Exit(asUser(m))
	case os.Getuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(insideEnv) != "":
		if err := settleIn(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		os.Exit(m.Run())
	}
	spaces := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWNET)
	if os.Getenv("MSH_PEER") != "" {
		spaces = unix.CLONE_NEWNS // the other host is reached over this one's network
	}
	runtime.LockOSThread() // whose end Pdeathsig means
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: spaces, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

func settleIn() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the mounts: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
