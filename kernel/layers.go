package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// The memory that an overlay's upper layer is in. The child mounts it where it can
// reach it for a moment only; what saves a machine has to reach it later, so msh
// makes it, and keeps a descriptor. Of a machine that is kept it is also mounted in
// the machine's directory, for the next msh.

const (
	layersFD  stage0.FD = "layers"
	layersDir           = "layers" // in the machine's directory
	layersOp            = "layers" // in its ledger
)

// layered tells whether msh makes the memory for the machine's overlay: where the
// machine could be saved, which takes a PID space. All others make their own.
func (p *Plan) layered() bool {
	r, _ := p.Spec.find("root").(*Root)
	return r != nil && r.Write == "overlay" && r.Upper == "" && r.Layers == nil && p.Under.Space == 0 && p.Flags&unix.CLONE_NEWPID != 0
}

// makeLayers makes the memory, and returns a descriptor of its mount, which is in
// no table yet. It is the txn's until the machine is up.
func (t *Txn) makeLayers() (int, error) {
	root := t.plan.Spec.find("root").(*Root)
	if t.wake != nil {
		return t.layersWoken()
	}
	if err := t.step("make the memory of its overlay"); err != nil {
		return -1, err
	}
	uid := strconv.FormatUint(uint64(t.plan.rootID()), 10) // the child makes the directories in it
	fd, err := newTmpfs(0, append(room(root.Size), "mode", "755", "uid", uid, "gid", uid)...)
	if err != nil {
		return -1, err
	}
	t.layers = fd
	if !t.plan.Spec.Keep {
		return fd, nil
	}
	return fd, t.pinLayers(fd)
}

// rootID is who the machine's root is for the host.
func (p *Plan) rootID() (uid uint32) {
	if p.IDs != nil {
		uid, _ = outward(p.IDs.Maps, 0, 1)
	}
	return uid
}

// pinLayers mounts them in the machine's directory.
func (t *Txn) pinLayers(fd int) error {
	path := filepath.Join(t.dir, layersDir)
	if err := t.step("pin the memory of its overlay"); err != nil {
		return err
	}
	if err := t.ledger.Write(layersOp, path); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("pin the memory of the overlay at %s: %w", path, err)
	}
	return nil
}

// unpinLayers takes a pin back. One that is not there, or not whole, is no error.
func unpinLayers(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT { // EINVAL: no mount
		return fmt.Errorf("unpin the memory of the overlay at %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// layersMount is the memory as a mount for a child: a second one where the first
// is pinned, as a mount can be in one table only.
func (t *Txn) layersMount() (int, error) {
	if !t.plan.Spec.Keep {
		return t.layers, nil
	}
	fd, err := t.own(unix.OpenTree(t.layers, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH))
	if err != nil {
		return -1, fmt.Errorf("open the memory of the overlay as a mount: %w", err)
	}
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return -1, fmt.Errorf("make the memory of the overlay private: %w", err)
	}
	return fd, nil
}

// newTmpfs makes a tmpfs with those options, names and values, where "0" and "" set
// none, and returns its mount, which has the flags attr and is in no table.
func newTmpfs(attr int, options ...string) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open a new tmpfs: %w", err)
	}
	defer unix.Close(fs)
	for i := 0; i < len(options); i += 2 {
		if options[i+1] == "0" || options[i+1] == "" {
			continue
		}
		if err := unix.FsconfigSetString(fs, options[i], options[i+1]); err != nil {
			return -1, fmt.Errorf("set a tmpfs' %s to %s: %w", options[i], options[i+1], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create a tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("mount a tmpfs: %w", err)
	}
	return fd, nil
}

// openUpper opens the upper layer of the machine's overlay; -1 where its root is no
// overlay. The caller closes it.
func (m *Machine) openUpper() (int, error) {
	r, _ := m.Spec().find("root").(*Root)
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	switch {
	case r == nil || r.Write != "overlay":
		return -1, nil
	case r.Upper != "":
		fd, err := unix.Open(filepath.Join(r.Upper, "upper"), flags, 0)
		if err != nil {
			return -1, fmt.Errorf("open the upper layer under %s: %w", r.Upper, err)
		}
		return fd, nil
	}
	m.mu.Lock()
	at := m.layers
	m.mu.Unlock()
	if at <= 0 {
		path := filepath.Join(m.Dir(), layersDir)
		fd, err := unix.Open(path+"/upper", flags, 0)
		if err != nil {
			return -1, withHint(fmt.Errorf("the changes to its root are held by the msh that runs its script"), "call snapshot() or hibernate() in that script; or keep the machine (keep=True, `msh up`)")
		}
		return fd, nil
	}
	fd, err := unix.Openat(at, "upper", flags, 0)
	if err != nil {
		return -1, fmt.Errorf("open the upper layer: %w", err)
	}
	return fd, nil
}
