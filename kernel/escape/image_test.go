package escape

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"msh/kernel"
)

// hostile makes a root for a machine, with links where msh mounts and looks.
func hostile(t *testing.T, links map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // both are this test's own
		os.Chmod(d, 0o755)
	}
	for _, d := range []string{"proc", "sys", "dev", "etc", "data"} {
		if links["/"+d] == "" {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for at, to := range links {
		if err := os.Symlink(to, filepath.Join(dir, at)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// untouched checks that what is outside is as it was.
func untouched(t *testing.T, mounts string) {
	t.Helper()
	if err := readMarker(outside, outside.Marker); err != nil {
		t.Errorf("outside: %v", err)
	}
	if now := mountsOf(t); now != mounts {
		t.Errorf("mounts outside have changed:\n%s", now)
	}
}

func mountsOf(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// An image with links in the place of what msh mounts over leads none of its mounts
// astray: /dev/null and /dev/console (CVE-2025-31133, -52565), /proc, by which writes
// would end elsewhere (CVE-2025-52881).
func TestImageLinks(t *testing.T) {
	l := newLab(t)
	before := mountsOf(t)
	out := filepath.Dir(outside.Marker)
	// The control: a mount by its path does go astray.
	naive := hostile(t, map[string]string{"/dev/shm": out}) + "/dev/shm"
	if err := unix.Mount("astray", naive, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if readMarker(outside, outside.Marker) == nil {
		t.Error("a link leads no mount astray: this test cannot fail")
	}
	if err := unix.Unmount(naive, 0); err != nil {
		t.Fatal(err)
	}
	made := 0
	for _, links := range []map[string]string{
		{"/dev/null": outside.Marker}, {"/dev/null": "/proc/sys/kernel/core_pattern"}, {"/dev/console": "/proc/sys/kernel/core_pattern"},
		{"/dev/pts": "../proc"}, {"/dev/shm": out}, {"/dev": out}, {"/dev": "proc/self/fd"}, {"/proc": "sys"}, {"/proc": out}, {"/sys": "proc/self"}, {"/etc/hosts": outside.Marker},
	} {
		for _, level := range levels {
			rs := []kernel.Resource{&kernel.Root{Source: hostile(t, links), Write: "overlay"}, &kernel.Space{Name: "pidspace"}, &kernel.Space{Name: "netspace"}}
			m, err := l.Fork(t.Context(), l.Host(), &kernel.Spec{Resources: append(rs, atLevel(level)...)})
			if err == nil {
				made++
				root := fmt.Sprintf("/proc/%d/root", m.Pid())
				var st unix.Stat_t
				if err := unix.Lstat(root+"/dev/null", &st); err != nil || st.Rdev != unix.Mkdev(1, 3) {
					t.Errorf("%v: its /dev/null is none: %v", links, err)
				}
				if level >= 2 {
					if err := unix.Access(fmt.Sprintf("/proc/%d/root/proc/kcore", m.Pid()), unix.F_OK); err == nil {
						if b, err := os.ReadFile(root + "/proc/kcore"); err != nil || len(b) > 0 {
							t.Errorf("%v: /proc/kcore is not covered: %d bytes, %v", links, len(b), err)
						}
					}
				}
				if err := m.Destroy(t.Context()); err != nil {
					t.Error(err)
				}
			}
			untouched(t, before)
		}
	}
	if made == 0 {
		t.Error("not one machine was made")
	}
}

// A mount's target that somebody changes for a link meanwhile stays inside (CVE-2021-30465).
func TestMountRace(t *testing.T) {
	l := newLab(t)
	before := mountsOf(t)
	dir := hostile(t, map[string]string{"/link": filepath.Dir(outside.Marker)})
	stop := make(chan struct{})
	flipped := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				flipped <- n
				return
			default:
				if unix.Renameat2(unix.AT_FDCWD, dir+"/data", unix.AT_FDCWD, dir+"/link", unix.RENAME_EXCHANGE) == nil {
					n++
				}
			}
		}
	}()
	made := 0
	for range 40 {
		m, err := l.Fork(t.Context(), l.Host(), &kernel.Spec{Resources: []kernel.Resource{
			&kernel.Root{Source: dir, Write: "direct"}, &kernel.Space{Name: "pidspace"}, &kernel.Mount{Source: "tmpfs", Target: "/data", Type: "tmpfs"},
		}})
		if err == nil {
			made++
			if err := m.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		}
		untouched(t, before)
	}
	close(stop)
	if n := <-flipped; n < 40 {
		t.Errorf("only %d changes: no race", n)
	}
	t.Logf("%d of 40 were made", made)
}

// Links to descriptors of whoever is on its way in lead nowhere: not as the directory
// to go to, nor as the program (CVE-2024-21626, CVE-2019-5736).
func TestDescriptorLinks(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, l.Host(), &kernel.Spec{Resources: alone(0, 0)})
	for n := 3; n < 40; n++ {
		for _, path := range []string{fmt.Sprintf("/proc/self/fd/%d", n), fmt.Sprintf("/proc/self/fd/%d/..", n)} {
			r, err := m.Run(t.Context(), &kernel.Command{Argv: []string{"/bin/cat", "marker"}, Cwd: path}, nil, long)
			if err == nil && strings.Contains(string(r.Stdout), outside.Text) {
				t.Errorf("cwd %s is outside", path)
			}
		}
		for _, path := range []string{fmt.Sprintf("/proc/self/fd/%d", n), fmt.Sprintf("/proc/self/fd/%d/bin/true", n)} {
			if r, err := m.Run(t.Context(), &kernel.Command{Argv: []string{path}}, nil, long); err == nil && r.Code == 0 {
				t.Errorf("%s was executed", path)
			}
		}
		// Below the tree that the root is made of there is the file, which is no program.
		root := hostile(t, map[string]string{"/init": fmt.Sprintf("/proc/self/fd/%d/garbage", n)})
		if err := os.WriteFile(root+"/garbage", []byte("no program"), 0o755); err != nil {
			t.Fatal(err)
		}
		bad, err := l.Fork(t.Context(), l.Host(), &kernel.Spec{Resources: []kernel.Resource{&kernel.Root{Source: root, Write: "overlay"}, &kernel.Space{Name: "pidspace"}}, Init: []string{"/init"}})
		if err == nil {
			bad.Destroy(t.Context())
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.EACCES) {
			t.Errorf("descriptor %d: init by a link to it: %v", n, err)
		}
	}
}

// Files are found in the machine, whatever links lie on the way.
func TestFileLinks(t *testing.T) {
	l := newLab(t)
	before := mountsOf(t)
	for ids := range idsOf {
		m := fork(t, l, l.Host(), &kernel.Spec{Resources: alone(ids, 0)})
		up := strings.Repeat("../", 30)
		for i, to := range []string{outside.Marker, up + outside.Marker, "/proc/self/root" + outside.Marker, "/proc/1/root/" + up + outside.Marker, "/proc/self/cwd/marker", fmt.Sprintf("/proc/%d/root%s", os.Getpid(), outside.Marker)} {
			link := fmt.Sprintf("/tmp/link%d", i)
			if r, err := m.Run(t.Context(), &kernel.Command{Argv: []string{"ln", "-s", to, link}}, nil, long); err != nil || r.Code != 0 {
				t.Fatal(r, err)
			}
			if b, err := m.ReadFile(t.Context(), link); err == nil && string(b) == outside.Text {
				t.Errorf("read through %s", to)
			}
			m.WriteFile(t.Context(), link+"/x", []byte("changed"), 0o644)
			m.WriteFile(t.Context(), link, []byte("changed"), 0o644)
			untouched(t, before)
		}
	}
}
