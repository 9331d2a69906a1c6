package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/criu"
	"msh/kernel/stage0"
)

// staging is what is mounted in criu's own table before it starts.
type staging struct {
	setup  func() error
	mounts []criu.Mount
}

// stage opens what the machine's mounts are made of, and lays out how they are put
// where criu finds them.
func (t *Txn) stage() (*staging, error) {
	p := t.plan
	trees := map[stage0.FD]int{}
	for _, tree := range p.Trees {
		if err := t.step("open " + tree.Source); err != nil {
			return nil, err
		}
		fd, err := t.own(tree.open())
		if err != nil {
			return nil, err
		}
		trees[tree.FD] = fd
	}
	if err := t.shiftWoken(trees); err != nil {
		return nil, err
	}
	s := &staging{}
	outside := map[string]int{} // mounts by label
	for _, m := range t.wake.state.Mounts {
		fd, err := t.outside(m, trees)
		if err != nil {
			return nil, err
		}
		outside[m.Label] = fd
		s.mounts = append(s.mounts, criu.Mount{Label: m.Label, Path: filepath.Join(t.dir, "mounts", m.Label)})
	}
	var layers = -1
	if t.layers >= 0 {
		var err error
		if layers, err = t.layersMount(); err != nil {
			return nil, err
		}
	}
	s.setup = func() error {
		if err := t.mountAll(trees, outside, layers); err != nil || t.plan.Uname == nil {
			return err
		}
		return askUnameHere(t.uname)
	}
	return s, nil
}

// outside opens a mount that is somebody else's.
func (t *Txn) outside(m savedMount, trees map[stage0.FD]int) (int, error) {
	kind, name, _ := strings.Cut(m.Label, ".")
	switch {
	case m.Label == "hosts":
		return t.own(t.lab.hostsMount(namesNets(t.plan.Nets)))
	case kind == "dev" && slices.ContainsFunc(deviceNodes, func(d deviceNode) bool { return d.name == name }):
		return t.own((&Tree{Source: "/dev/" + name, Param: "root: /dev"}).open())
	case kind == "view":
		if i := slices.IndexFunc(viewFiles, func(f viewFile) bool { return f.name() == m.Label }); i >= 0 {
			l, err := t.lxcfs()
			if err != nil {
				return -1, err
			}
			return t.viewTree(viewFiles[i], l)
		}
	case kind == "tree":
		if fd, ok := t.wake.tmpfs[m.Label]; ok {
			return fd, nil
		}
	case kind == "uname":
		for _, i := range unameFilesHere() {
			if fd, ok := t.shown[unameTree(i)]; ok && unameFileName(i) == m.Label {
				return fd, nil
			}
		}
	case kind == "mount" || kind == "device":
		i, err := strconv.Atoi(name)
		if err != nil || i < 0 || i >= len(t.plan.Spec.Resources) {
			break
		}
		switch r := t.plan.Spec.Resources[i].(type) {
		case *Mount:
			if fd, ok := trees[r.fd()]; ok {
				return fd, r.restrict(fd)
			}
		case *Device:
			if fd, ok := trees[r.fd()]; ok {
				return fd, nil
			}
		}
	}
	return -1, fmt.Errorf("the mount on %s: what it is of is not told", m.Path)
}

// mountAll is called on the thread that stands in criu's mount table.
func (t *Txn) mountAll(trees map[stage0.FD]int, outside map[string]int, layers int) error {
	root := t.plan.Spec.find("root").(*Root)
	// criu has an empty /run of its own where the host's is on a disk.
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("msh", t.dir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", t.dir, err)
	}
	if err := unix.Chdir(t.dir); err != nil {
		return err
	}
	for _, d := range []string{"root", "lower", "changes", "mounts"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	attach := func(fd int, path string) error {
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
		return nil
	}
	for label, fd := range outside {
		if err := makeLike(fd, "mounts/"+label); err != nil {
			return err
		}
		if err := attach(fd, "mounts/"+label); err != nil {
			return err
		}
	}
	if root.Write != "overlay" {
		if err := attach(trees[rootTree], "root"); err != nil {
			return err
		}
		if root.Write == "none" {
			return unix.MountSetattr(trees[rootTree], "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
		return nil
	}
	if layers < 0 {
		layers = trees[upperTree]
	}
	if err := attach(trees[rootTree], "lower"); err != nil {
		return err
	}
	if err := attach(layers, "changes"); err != nil {
		return err
	}
	options := "lowerdir=lower,upperdir=changes/upper,workdir=changes/work"
	if t.plan.inUserSpace() {
		options += ",userxattr"
	}
	if err := unix.Mount("msh", "root", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount the overlay over %s: %w", root.Source, err)
	}
	return nil
}

// makeLike makes a directory or file to mount something on.
func makeLike(fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.Mkdir(path, 0o755)
	}
	return os.WriteFile(path, nil, 0o644)
}

// shiftWoken gives trees the owners of the machine's ids. Its own user namespace is
// criu's to make; another with the same map says the same.
func (t *Txn) shiftWoken(trees map[stage0.FD]int) error {
	userns := -1
	for _, tree := range t.plan.Trees {
		if !tree.IDs {
			continue
		}
		if userns < 0 {
			var err error
			if userns, err = t.own(makeUserNS(t.plan.IDs)); err != nil {
				return err
			}
		}
		if err := tree.shift(trees[tree.FD], userns); err != nil {
			return err
		}
	}
	return nil
}

// makeUserNS makes a user namespace with that map. Nobody is in it.
func makeUserNS(ids *IDs) (int, error) {
	var line [2]int
	if err := unix.Pipe2(line[:], unix.O_CLOEXEC); err != nil {
		return -1, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(line[1])
	s := stage0.New()
	s.Call("wait for msh", 0, unix.SYS_READ, syncFD, stage0.Buffer(8), 1)
	s.Exit(0)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(line[0])
		return -1, err
	}
	defer unix.Close(null)
	b := &birth{program: s, stdio: [3]int{null, null, null}, files: map[stage0.FD]int{syncFD: line[0]}, flags: unix.CLONE_NEWUSER, ids: ids, cgroup: -1, pidns: -1}
	p, err := b.start()
	unix.Close(line[0])
	if err != nil {
		return -1, err
	}
	defer p.close()
	defer p.kill()
	return unix.Open(fmt.Sprintf("/proc/%d/ns/user", p.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
}
