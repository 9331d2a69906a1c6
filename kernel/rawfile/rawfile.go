// Package rawfile reads and writes small files with bare system calls.
//
// Package os offers every file it opens to the runtime's poller. Files of a
// control group can be polled, so each use of one costs seven system calls more
// and wakes the poller's thread, on the way of every start and end of a machine.
//
//	b, err := rawfile.Read("/sys/fs/cgroup/unified/msh.lab.m1/cgroup.freeze")
//	err = rawfile.Write("/sys/fs/cgroup/unified/msh.lab.m1/cgroup.kill", "1")
//
// Errors are *fs.PathError, as those of package os.
package rawfile

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// Open is open(2) with O_CLOEXEC, again where a signal came in between.
func Open(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// Read returns what is in a file.
func Read(path string) ([]byte, error) {
	fd, err := Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 512)
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		b = b[:len(b)+n]
		if n == 0 {
			return b, nil
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// Write writes a value to a file that is there, in one write(2), as the kernel's
// own files want it.
func Write(path, value string) error {
	fd, err := Open(path, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		_, err := unix.Write(fd, []byte(value))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "write", Path: path, Err: err}
		}
		return nil
	}
}
