package criu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"msh/kernel"
	"msh/kernel/criu"
	"msh/kernel/netx"
)

const (
	insideEnv = "MSH_TEST_INSIDE" // this is the process that runs the tests
	holdEnv   = "MSH_TEST_HOLD"   // this is a program in a machine: see hold
)

// TestMain runs the tests in a mount table and a network of their own.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(holdEnv) != "":
		holder()
	case os.Getuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(insideEnv) != "":
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
			fmt.Fprintln(os.Stderr, "share the mounts:", err)
			os.Exit(2)
		}
		// criu tries how it can repair a TCP socket, on the loopback.
		if err := loopback(); err != nil {
			fmt.Fprintln(os.Stderr, "take lo up:", err)
			os.Exit(2)
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // whose end Pdeathsig means
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// need finds the criu that is installed, or that scripts/criu has fetched. Nothing
// of msh uses the package yet, so the tests do not fetch it by themselves.
func need(t *testing.T) *criu.Criu {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("criu needs root")
	}
	if os.Getenv("MSH_VM") != "" && os.Getenv("MSH_CRIU") == "" {
		t.Skip("the VM was given no criu: MSH_CRIU")
	}
	c, err := criu.Find(t.Context())
	if missing := (*criu.ErrMissing)(nil); errors.As(err, &missing) {
		t.Skip(err, "(scripts/criu fetches it)")
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// long bounds what must end by itself.
const long = 30 * time.Second

// newLab makes a lab that ends with the test.
func newLab(t *testing.T) *kernel.Lab {
	t.Helper()
	h, err := kernel.NewHost(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	l, err := h.NewLab(fmt.Sprintf("t%d-%s", os.Getpid(), name[:min(len(name), 40)]), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// spaces are all those a machine that can be saved has of its own.
func spaces(more ...kernel.Resource) *kernel.Spec {
	return &kernel.Spec{Resources: append([]kernel.Resource{
		&kernel.Root{Source: "/", Write: "overlay"},
		&kernel.Space{Name: "pidspace"}, &kernel.Space{Name: "ipcspace"}, &kernel.Space{Name: "netspace"},
		&kernel.Uname{Nodename: "saved"},
	}, more...)}
}

func fork(t *testing.T, l *kernel.Lab, s *kernel.Spec) *kernel.Machine {
	t.Helper()
	m, err := l.Fork(t.Context(), l.Host(), s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// start has a machine run a shell command in the background, with nothing of the
// outside. What it has open is on a tmpfs, which is saved with the machine.
func start(t *testing.T, m *kernel.Machine, script string) {
	t.Helper()
	write(t, m, "/dev/shm/start", script)
	r, err := m.Run(t.Context(), &kernel.Command{Argv: []string{"/bin/sh", "-c", "setsid sh /dev/shm/start </dev/null >/dev/shm/log 2>&1 &"}}, nil, long)
	if err != nil || r.Code != 0 {
		t.Fatal(err, r)
	}
}

func write(t *testing.T, m *kernel.Machine, path, text string) {
	t.Helper()
	if err := m.WriteFile(t.Context(), path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a file of the tree whose root process is pid has a text.
func eventually(t *testing.T, pid int, path, want string) {
	t.Helper()
	var b []byte
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/root%s", pid, path))
		if strings.Contains(string(b), want) {
			return
		}
	}
	log, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root/dev/shm/log", pid))
	t.Fatalf("%s never had %q: %q; log: %s", path, want, b, log)
}

// pids are the processes of a machine, its init first.
func pids(t *testing.T, m *kernel.Machine) []int {
	t.Helper()
	all := []int{m.Pid()}
	b, err := os.ReadFile(filepath.Join(m.Groups()[0], "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, _ := strconv.Atoi(f); pid != m.Pid() {
			all = append(all, pid)
		}
	}
	return all
}

// dumpOf is a dump of a machine: its network left alone, and the /dev/null that
// its processes have from the outside.
func dumpOf(t *testing.T, m *kernel.Machine) *criu.Dump {
	t.Helper()
	d := &criu.Dump{Pid: m.Pid(), Images: images(t), Nets: []criu.Net{{Label: "net", NS: netOf(t, m.Pid())}}, Leave: criu.LeaveDead, Place: criu.Place{Mounts: true}}
	for _, f := range criu.FilesOutside(pids(t, m)) {
		if f.Path != "/dev/null" {
			t.Fatalf("outside: %+v", f)
		}
		d.Files = append(d.Files, f.Key)
	}
	return d
}

func dump(t *testing.T, c *criu.Criu, d *criu.Dump) *criu.Stats {
	t.Helper()
	s, err := c.Dump(t.Context(), d)
	if err != nil {
		explain(t, err)
		t.Fatal(err)
	}
	return s
}

func explain(t *testing.T, err error) {
	var e *criu.Error
	if errors.As(err, &e) {
		t.Log(strings.Join(e.Log, "\n"))
	}
}

// restoreOf wakes what a dump has saved, over an overlay of / in whose upper layer
// are files, by name.
func restoreOf(t *testing.T, d *criu.Dump, files map[string]string) *criu.Restore {
	t.Helper()
	path, setup := root(t, files)
	r := &criu.Restore{Images: d.Images, Root: path, Nets: []criu.Net{{Label: "net", NS: newNet(t)}}, Sibling: true,
		Inherit: map[string]*os.File{}, Place: criu.Place{Mounts: true, Setup: setup}}
	for _, key := range d.Files {
		null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { null.Close() })
		r.Inherit[key] = null
	}
	return r
}

func restore(t *testing.T, c *criu.Criu, r *criu.Restore) (pid int) {
	t.Helper()
	pid, err := c.Restore(t.Context(), r)
	if err != nil {
		explain(t, err)
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, pid) })
	return pid
}

// end ends a restored tree with its PID 1, which is this process's child.
func end(t *testing.T, pid int) {
	unix.Kill(pid, unix.SIGKILL)
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Errorf("reap the restored process %d: %v", pid, err)
	}
}

// inside runs a program in the namespaces of a restored tree.
func inside(t *testing.T, pid int, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "nsenter", append([]string{"-t", fmt.Sprint(pid), "-m", "-u", "-i", "-n", "-p", "--"}, argv...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

// netOf opens a process's network.
func netOf(t *testing.T, pid int) *os.File { return open(t, fmt.Sprintf("/proc/%d/ns/net", pid)) }

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// images makes a directory for images, on a tmpfs.
func images(t *testing.T) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("images", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return open(t, dir)
}

// newNet makes a network for a restored tree.
func newNet(t *testing.T) *os.File {
	t.Helper()
	ns, err := netx.Make(func() error {
		if err := netx.WriteSysctl("net.mptcp.enabled", "0"); err != nil && !os.IsNotExist(err) {
			return err
		}
		return loopback()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return open(t, fmt.Sprintf("/proc/self/fd/%d", ns.FD()))
}

// root is a place with an overlay over / in criu's own mount table, for the files
// of the tree that is restored.
func root(t *testing.T, files map[string]string) (path string, setup func() error) {
	t.Helper()
	path = t.TempDir()
	return path, func() error {
		if err := unix.Mount("scratch", path, "tmpfs", 0, ""); err != nil {
			return err
		}
		for _, d := range []string{"lower", "upper", "work", "root"} {
			if err := os.Mkdir(path+"/"+d, 0o755); err != nil {
				return err
			}
		}
		for name, text := range files {
			if err := os.MkdirAll(filepath.Dir(path+"/upper"+name), 0o1777); err != nil {
				return err
			}
			mode := os.FileMode(0o644) // criu looks whether it is what it was
			if name == "/holder" {
				mode = 0o755
			}
			if err := os.WriteFile(path+"/upper"+name, []byte(text), mode); err != nil {
				return err
			}
		}
		if err := unix.Mount("/", path+"/lower", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", path)
		if err := unix.Mount("msh", path+"/root", "overlay", 0, options); err != nil {
			return fmt.Errorf("overlay %s: %w", options, err)
		}
		// Over the rest, so that the overlay is a mount at the path itself.
		return unix.Mount(path+"/root", path, "", unix.MS_BIND, "")
	}
}
