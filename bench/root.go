package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// makeRoot makes the directory that everybody's root is an overlay of: a static
// busybox, and the directories that get something mounted on them.
func makeRoot(dir string) error {
	busybox, err := lookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w: scripts/deps installs it", err)
	}
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	in, err := os.Open(busybox)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, "bin/busybox"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return errors.Join(out.Close(),
		os.Symlink("busybox", filepath.Join(dir, "bin/true")),
		os.Symlink("busybox", filepath.Join(dir, "bin/sleep")))
}

// overlay is what a machine of msh's has for a root, made by hand for the peers
// that want their root ready: changes go to a fresh tmpfs.
type overlay struct{ lower, changes, root string }

// newOverlay makes the mount points under dir and mounts nothing yet.
func (b *bench) newOverlay(dir string) (*overlay, error) {
	o := &overlay{b.lower, filepath.Join(dir, "changes"), filepath.Join(dir, "rootfs")}
	for _, d := range []string{o.changes, o.root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	b.onCleanUp(func() error {
		// EINVAL: not mounted, as it should be.
		for _, d := range []string{o.root, o.changes} {
			if err := syscall.Unmount(d, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
				return fmt.Errorf("unmount %s: %w", d, err)
			}
		}
		return nil
	})
	return o, nil
}

func (o *overlay) mount() error {
	if err := syscall.Mount("tmpfs", o.changes, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", o.changes, err)
	}
	upper, work := o.changes+"/upper", o.changes+"/work"
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := syscall.Mount("overlay", o.root, "overlay", 0, "lowerdir="+o.lower+",upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount %s: %w", o.root, err)
	}
	return nil
}

func (o *overlay) unmount() error {
	for _, d := range []string{o.root, o.changes} {
		if err := syscall.Unmount(d, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", d, err)
		}
	}
	return nil
}

// around measures c with the overlay mounted before and unmounted after it, all
// on the clock.
func (o *overlay) around(c *command) func() (float64, error) {
	return func() (float64, error) {
		return timed(func() error {
			if err := o.mount(); err != nil {
				return err
			}
			return errors.Join(c.once(), o.unmount())
		})
	}
}
