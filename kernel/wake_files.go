package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/criu"
)

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

// inherit opens what stands in for files of the host's that processes had open.
func (t *Txn) inherit(r *criu.Restore) error {
	logs, err := makeLogsDir(t.dir)
	if err != nil {
		return err
	}
	for name, text := range t.wake.logs {
		if name == "" || strings.ContainsAny(name, "/\x00") {
			continue
		}
		if err := os.WriteFile(filepath.Join(logs, name+".log"), text, 0o644); err != nil {
			return err
		}
	}
	for _, f := range t.wake.state.Files {
		path := "/dev/null"
		if f.Log != "" {
			if strings.Contains(f.Log, "/") || !strings.HasSuffix(f.Log, ".log") {
				return fmt.Errorf("its log %q: not a name", f.Log)
			}
			path = filepath.Join(logs, f.Log)
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
