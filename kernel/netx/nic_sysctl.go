package netx

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
)

// perInterface are the folders under /proc/sys/net that have one for every
// interface, and one that is the default for those to come.
var perInterface = []string{"ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"}

const procNet = "/proc/sys/net"

// eachSysctl calls f with the key and the value of every parameter of an interface
// that can be read, and its default, in the calling thread's namespace. There are some
// 130: each is one open, one read and one close, by a name in a folder that is open.
func eachSysctl(name string, f func(key, value, normal string)) error {
	room := make([]byte, 4096)
	for _, folder := range perInterface {
		dir, names, err := openFolder(filepath.Join(procNet, folder, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6, or none on this interface
		}
		if err != nil {
			return err
		}
		normal, err := rawfile.Open(filepath.Join(procNet, folder, "default"), unix.O_PATH|unix.O_DIRECTORY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			normal, err = -1, nil // of neighbours the host's network alone has defaults
		}
		if err != nil {
			unix.Close(dir)
			return err
		}
		for _, file := range names {
			// One that cannot be read is "": stable_secret while there is none (EIO).
			value, usual := readParameter(dir, file, room), ""
			if normal >= 0 {
				usual = readParameter(normal, file, room)
			}
			f(folder+"/"+file, value, usual)
		}
		unix.Close(dir)
		if normal >= 0 {
			unix.Close(normal)
		}
	}
	return nil
}

// openFolder opens a directory and lists it by the order of names.
func openFolder(path string) (fd int, names []string, err error) {
	if fd, err = rawfile.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return -1, nil, err
	}
	room := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, room)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			unix.Close(fd)
			return -1, nil, &fs.PathError{Op: "readdirent", Path: path, Err: err}
		}
		if n == 0 {
			slices.Sort(names)
			return fd, names, nil
		}
		_, _, names = unix.ParseDirent(room[:n], -1, names)
	}
}

// readParameter reads one, which the kernel gives whole to the first read(2).
func readParameter(dir int, name string, room []byte) string {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return ""
		}
		n, err := unix.Read(fd, room)
		unix.Close(fd)
		if err == unix.EINTR {
			continue
		}
		return string(bytes.TrimSpace(room[:max(n, 0)]))
	}
}

// saveSysctls reads those parameters of an interface that differ from the default.
func saveSysctls(name string) (map[string]string, error) {
	saved := map[string]string{}
	err := eachSysctl(name, func(key, value, normal string) {
		if value != normal {
			saved[key] = value
		}
	})
	return saved, err
}

// restoreSysctls writes those that are not as they were. Twice, as one changes
// another: net.ipv6.conf.DEV.stable_secret sets addr_gen_mode, and goes before it.
func restoreSysctls(name string, saved map[string]string) error {
	writeSysctls(name, saved)
	return writeSysctls(name, saved)
}

func writeSysctls(name string, saved map[string]string) error {
	var errs []error
	err := eachSysctl(name, func(key, value, want string) {
		if v, ok := saved[key]; ok {
			want = v
		}
		if value == want {
			return
		}
		folder, file := filepath.Split(key)
		if err := os.WriteFile(filepath.Join(procNet, folder, name, file), []byte(want), 0); err != nil {
			errs = append(errs, fmt.Errorf("set net/%s to %q: %w", key, want, err))
		}
	})
	return errors.Join(append(errs, err)...)
}
