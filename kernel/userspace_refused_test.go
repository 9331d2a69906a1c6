package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
)

// Each of the knobs by which a distribution keeps user namespaces from ordinary users
// is named, with the value that it has and what to do.
func TestUsernsKnobs(t *testing.T) {
	for _, k := range []struct {
		file, text string
		errno      unix.Errno
		want, mend string
	}{
		{"kernel/unprivileged_userns_clone", "0\n", unix.EPERM, "user namespaces of ordinary users (kernel.unprivileged_userns_clone is 0): not supported here", "sudo sysctl kernel.unprivileged_userns_clone=1"},
		{"user/max_user_namespaces", "0\n", unix.ENOSPC, "user namespaces of ordinary users (user.max_user_namespaces is 0): not supported here", "sudo sysctl user.max_user_namespaces=10000"},
		{"user/max_mnt_namespaces", "0\n", unix.ENOSPC, "mount namespaces of ordinary users (user.max_mnt_namespaces is 0): not supported here", "sudo sysctl user.max_mnt_namespaces=10000"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1\n", unix.EACCES, "user namespaces of ordinary users (kernel.apparmor_restrict_unprivileged_userns is 1): not supported here", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for msh with the rule userns"},
		{"kernel/apparmor_restrict_unprivileged_userns", "0\n", unix.EPERM, "user namespaces of ordinary users (operation not permitted): not supported here", "a seccomp filter or a container engine around msh may refuse it; or run msh as root"},
		{"user/max_user_namespaces", "7\n", unix.ENOSPC, "one more user namespace (this user has as many as there may be): not supported here", "end some machines and containers, or raise user.max_user_namespaces and user.max_mnt_namespaces"},
		{"kernel/other", "", unix.EINVAL, "user namespaces (invalid argument): not supported here", "a kernel with CONFIG_USER_NS"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, k.file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(k.text), 0o644)); err != nil {
			t.Fatal(err)
		}
		err := explainUserns(dir, k.errno)
		want(t, k.file, k.want, err.Error())
		want(t, "its mend", "\nhint: "+k.mend, hintOf(err))
		want(t, "is ErrNotSupported", true, errors.Is(err, ErrNotSupported))
	}
}

// forbidEnv has the tests' program, which is root of a user namespace of its own, write
// 0 to that knob and try to enter a space as an ordinary user.
const forbidEnv = "MSH_TEST_FORBID"

func forbid(knob string) int {
	if err := os.WriteFile(knob, []byte("0"), 0); err != nil {
		fmt.Println(err)
		return 2
	}
	os.Unsetenv(forbidEnv)
	cmd := refusedUser(os.Getenv(userEnv))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Run()
	return cmd.ProcessState.ExitCode()
}

// An ordinary user to whom namespaces are forbidden is told so, and nothing is left.
func TestSpaceForbidden(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65535}}
	for _, knob := range []string{"user.max_user_namespaces", "user.max_mnt_namespaces"} {
		forbidden(t, knob, func(dir string) *exec.Cmd {
			cmd := exec.Command("/proc/self/exe")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
			cmd.Env = append(os.Environ(), userEnv+"="+dir, forbidEnv+"="+sysctlPath(knob))
			return cmd
		})
	}
}

// Debian's own knob, and the others for all of the system: where that is only the test's.
func TestSpaceForbiddenV2(t *testing.T) {
	if os.Getenv("MSH_VM") != "1" {
		t.Skip("changes the whole system: `make vmtest` runs this test")
	}
	for _, knob := range []string{"kernel.unprivileged_userns_clone", "user.max_user_namespaces"} {
		path := sysctlPath(knob)
		was, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
		forbidden(t, knob, refusedUser)
		if err := os.WriteFile(path, was, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func sysctlPath(name string) string { return "/proc/sys/" + strings.ReplaceAll(name, ".", "/") }

// refusedUser is an ordinary user who enters a space with that state directory.
func refusedUser(dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), userEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: refusedUID, Gid: refusedUID}}
	return cmd
}

const refusedUID = 1 // daemon

// forbidden runs what is to be told of that knob, and looks for what it leaves.
func forbidden(t *testing.T, knob string, command func(state string) *exec.Cmd) {
	t.Helper()
	top := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(top), 0o755), os.Chown(top, refusedUID, refusedUID), os.Chmod(top, 0o700)); err != nil {
		t.Fatal(err)
	}
	out, _ := command(filepath.Join(top, "state")).CombinedOutput()
	what := "user"
	if strings.Contains(knob, "mnt") {
		what = "mount"
	}
	want(t, knob, fmt.Sprintf("make a space for user %d: %s namespaces of ordinary users (%s is 0): not supported here\n", refusedUID, what, knob), string(out))
	if left, _ := os.ReadDir(top); len(left) > 0 {
		t.Errorf("%s: left %v", knob, left)
	}
	if left := processesNamed(cgroup.SpaceName, refusedUID); left != "" {
		t.Errorf("%s: left processes %s", knob, left)
	}
}
