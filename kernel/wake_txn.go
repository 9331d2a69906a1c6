package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/criu"
	"msh/kernel/netx"
	"msh/kernel/stage0"
)

// restore stands in the place of clone and bringUp where the machine is made anew of
// what was saved: criu makes its processes, and stops where they are in their new
// namespaces, so that the kinds can attach what they have.
func (t *Txn) restore() (*Machine, error) {
	w := t.wake
	if w.images == nil {
		return nil, errors.New("no memory")
	}
	if err := t.takeLayers(); err != nil {
		return nil, err
	}
	r := &criu.Restore{Images: w.images, Root: filepath.Join(t.dir, "root"), NewNet: t.plan.Spec.ownsNetwork(), TCP: w.o.TCP, Sibling: true,
		Inherit: map[string]*os.File{}, Place: criu.Place{Mounts: true}}
	defer func() {
		for _, f := range r.Inherit {
			f.Close()
		}
		r.Place.Group.Close() // nil is an error, and none of ours
	}()
	if err := t.inherit(r); err != nil {
		return nil, err
	}
	stage, err := t.stage()
	if err != nil {
		return nil, err
	}
	r.Mounts, r.Place.Setup = stage.mounts, stage.setup
	if err := t.placeGroup(r); err != nil {
		return nil, err
	}
	r.Hook = t.restoring
	if err := t.step("restore the processes"); err != nil {
		return nil, err
	}
	pid, err := w.criu.Restore(t.ctx, r)
	if err != nil {
		t.reapRestored()
		return nil, err
	}
	c := w.child
	fail := func(err error) (*Machine, error) {
		c.kill()
		unix.Close(c.pidfd)
		return nil, err
	}
	if c == nil || c.pid != pid {
		return nil, fmt.Errorf("criu restored process %d and told of none", pid)
	}
	m := newMachine(t.lab, t.parent, t.plan)
	m.pid, m.pidfd, m.start, m.ledger = c.pid, c.pidfd, startTime(c.pid), t.ledger
	m.self.Space = spacesOf(c.pid)
	record, err := m.recordEntry()
	if err == nil {
		err = t.settleDown(m, record)
	}
	if err != nil {
		return fail(err)
	}
	m.ledger = nil
	return m, t.ledger.Close()
}

// restores tells whether criu makes the processes.
func (t *Txn) restores() bool { return t.wake != nil && t.wake.images != nil }

// restoring is criu's hook.
func (t *Txn) restoring(e criu.Event) error {
	w := t.wake
	switch e.Name {
	case criu.SetupNamespaces:
		pidfd, err := unix.PidfdOpen(e.Pid, 0)
		if err != nil {
			return fmt.Errorf("open the restored init: %w", err)
		}
		w.child = &Child{process: &process{pid: e.Pid, pidfd: pidfd, blob: -1}, sync: -1}
		if !t.plan.Spec.ownsNetwork() {
			return nil
		}
		ns, err := t.childNet(w.child)
		if err != nil {
			return err
		}
		if err := t.prepareNet(ns); err != nil {
			return err
		}
		if err := t.attach(w.child); err != nil {
			return err
		}
		return w.restoreNet(ns)
	case criu.NetworkUnlock: // all sockets are there
		close(w.reached)
		if err := <-w.release; err != nil {
			return err
		}
		return t.join()
	}
	return nil
}

// restoreNet gives the network what programs inside had made of it, unless its
// addresses are others now.
func (w *waking) restoreNet(ns *netx.NS) error {
	if w.o.Fresh || w.o.Addresses != nil {
		return nil
	}
	for _, nic := range w.state.Nets {
		if err := nic.Restore(ns); err != nil {
			return fmt.Errorf("restore the interface %s: %w", nic.Name, err)
		}
	}
	return ns.Do(func() error {
		for _, key := range routerSysctls {
			if value, ok := w.state.Sysctls[key]; ok {
				if err := netx.WriteSysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
			}
		}
		return nil
	})
}

// reapRestored reaps what criu has killed: it is this process's child.
func (t *Txn) reapRestored() {
	if c := t.wake.child; c != nil {
		c.kill()
		unix.Close(c.pidfd)
		t.wake.child = nil
	}
}

// prepareNet does what the steps of a new machine do to its network.
func (t *Txn) prepareNet(ns *netx.NS) error {
	return ns.Do(func() error {
		set := func(key, value string) error {
			if err := netx.WriteSysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		}
		errs := []error{set("net/mptcp/enabled", "0")}
		if t.plan.IPv6 {
			errs = append(errs, set("net/ipv6/conf/default/accept_dad", "0"))
		} else {
			errs = append(errs, set("net/ipv6/conf/all/disable_ipv6", "1"))
		}
		errs = append(errs, ns.SetUp(1, true))
		for _, r := range t.plan.Spec.Resources {
			if s, ok := r.(*Sysctl); ok && s.space() == "netspace" {
				errs = append(errs, netx.WriteSysctl(s.path(), s.Value))
			}
		}
		return errors.Join(errs...)
	})
}

// join puts the machine's ports onto their switches.
func (t *Txn) join() error {
	for _, n := range t.plan.Nets {
		v := t.lab.findVNet(n.VNet)
		if v == nil {
			return fmt.Errorf("vnet %s: %w", n.VNet, errNoNet)
		}
		if err := v.join(n); err != nil {
			return err
		}
	}
	return nil
}

// takeLayers takes over the memory with the upper layer in it, which gets the
// directory that an overlay works in.
func (t *Txn) takeLayers() error {
	w, root := t.wake, t.plan.Spec.find("root").(*Root)
	if root.Write != "overlay" {
		return nil
	}
	if root.Upper != "" {
		return t.replaceUpper(root)
	}
	if w.layers < 0 {
		return errors.New("no upper layer in the snapshot")
	}
	t.layers, w.layers = w.layers, -1
	if err := unix.Mkdirat(t.layers, "work", 0o755); err != nil {
		return fmt.Errorf("mkdir work: %w", err)
	}
	uid := int(t.plan.rootID())
	err := unix.Fchownat(t.layers, "work", uid, uid, 0)
	if err == nil {
		err = unix.Fchownat(t.layers, "", uid, uid, unix.AT_EMPTY_PATH)
	}
	if err != nil {
		return fmt.Errorf("hand over the memory of the overlay: %w", err)
	}
	if !t.plan.Spec.Keep {
		return nil
	}
	return t.pinLayers(t.layers)
}

// layersWoken is makeLayers for a machine that is born, but with files that were saved.
func (t *Txn) layersWoken() (int, error) {
	if err := t.step("take over the memory of its overlay"); err != nil {
		return -1, err
	}
	err := t.takeLayers()
	return t.layers, err
}

// replaceUpper puts what was unpacked in the place of what is under root(upper=),
// which is moved aside: it may have been changed since.
func (t *Txn) replaceUpper(root *Root) error {
	if err := t.step("put the upper layer under " + root.Upper); err != nil {
		return err
	}
	upper, old := filepath.Join(root.Upper, "upper"), filepath.Join(root.Upper, "upper.before")
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(upper, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(t.wake.aside, upper); err != nil {
		return err
	}
	t.wake.aside = ""
	// What an overlay has left in there is of the other upper layer.
	work := filepath.Join(root.Upper, "work")
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	return os.Mkdir(work, 0o755)
}

// inherit opens what stands in for files of the host's that processes had open.
func (t *Txn) inherit(r *criu.Restore) error {
	for name, text := range t.wake.logs {
		if name == "" || strings.ContainsAny(name, "/\x00") {
			continue
		}
		if err := os.WriteFile(filepath.Join(t.dir, name+".log"), text, 0o644); err != nil {
			return err
		}
	}
	for _, f := range t.wake.state.Files {
		path := "/dev/null"
		if f.Log != "" {
			if strings.Contains(f.Log, "/") || !strings.HasSuffix(f.Log, ".log") {
				return fmt.Errorf("its log %q: not a name", f.Log)
			}
			path = filepath.Join(t.dir, f.Log)
		}
		flags := f.Flags & (unix.O_ACCMODE | unix.O_APPEND)
		if f.Log != "" {
			flags |= unix.O_CREAT
		}
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		r.Inherit[f.Key] = os.NewFile(uintptr(fd), path)
		if f.Log == "" {
			continue
		}
		// criu compares the mode, and opens it once more as the machine's root.
		err = unix.Fchmod(fd, f.Mode&0o777)
		if root, ok := outward(t.wake.state.IDs, 0, 1); ok && err == nil {
			err = unix.Fchown(fd, int(root), int(root))
		}
		if err != nil {
			return fmt.Errorf("hand over %s: %w", path, err)
		}
	}
	return nil
}

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
	s.setup = func() error { return t.mountAll(trees, outside, layers) }
	return s, nil
}

// outside opens a mount that is somebody else's.
func (t *Txn) outside(m savedMount, trees map[stage0.FD]int) (int, error) {
	var i int
	switch name, isDev := strings.CutPrefix(m.Label, "dev."); {
	case m.Label == "hosts":
		return t.own(t.lab.hostsMount(namesNets(t.plan.Nets)))
	case isDev && slices.ContainsFunc(deviceNodes, func(d deviceNode) bool { return d.name == name }):
		return t.own((&Tree{Source: "/dev/" + name, Param: "root: /dev"}).open())
	default:
		if n, err := fmt.Sscanf(m.Label, "mount.%d", &i); n == 1 && err == nil && i >= 0 && i < len(t.plan.Spec.Resources) {
			if r, ok := t.plan.Spec.Resources[i].(*Mount); ok {
				if fd, ok := trees[r.fd()]; ok {
					return fd, r.restrict(fd)
				}
			}
		}
	}
	return -1, fmt.Errorf("the mount on %s: what it is of is not told", m.Path)
}

// mountAll is called on the thread that stands in criu's mount table.
func (t *Txn) mountAll(trees map[stage0.FD]int, outside map[string]int, layers int) error {
	root := t.plan.Spec.find("root").(*Root)
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

// placeGroup has criu, and so what it restores, born in the machine's control group.
func (t *Txn) placeGroup(r *criu.Restore) error {
	g := t.plan.Group
	for _, p := range g.Places(t.plan.Under.Places) {
		r.Place.Joins = append(r.Place.Joins, p.Join())
	}
	fd, err := unix.Open(g.Processes(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", g.Processes(), err)
	}
	r.Place.Group = os.NewFile(uintptr(fd), g.Processes())
	return nil
}

// spacesOf are the namespaces that a process does not share with msh: criu gives each
// tree a time namespace, so that its clocks go on.
func spacesOf(pid int) (flags uintptr) {
	for _, n := range namespaces {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, n.name))
		own, err2 := os.Readlink("/proc/self/ns/" + n.name)
		if err == nil && err2 == nil && its != own {
			flags |= n.flag
		}
	}
	return flags
}
