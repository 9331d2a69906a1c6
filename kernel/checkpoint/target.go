package checkpoint

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// target is a file that gets its name when it is whole.
type target struct {
	path string
	dir  *os.File // the directory it will be in
	name string
	file *os.File
	temp string // its name for now; "" where it has none

	size, begun int64 // of the file; and of it what the kernel was told to write
}

// newTarget opens a file without a name, which vanishes with its last
// descriptor, however that comes about. Where the file system has none (NFS,
// overlayfs before Linux 6.2, FAT), or where it is not to be nameless, it has a
// temporary name beside path.
func newTarget(path string, nameless bool) (*target, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	t := &target{path: path, name: filepath.Base(abs)}
	if t.dir, err = os.Open(filepath.Dir(abs)); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstatat(t.fd(), t.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if kind := st.Mode & unix.S_IFMT; err == nil && kind != unix.S_IFREG && kind != unix.S_IFLNK {
		t.dir.Close()
		return nil, errors.New("want the name of a file, new or to be replaced")
	}
	fd, err := -1, error(unix.EOPNOTSUPP)
	if nameless {
		fd, err = unix.Openat(t.fd(), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	}
	if err == unix.EOPNOTSUPP || err == unix.EISDIR || err == unix.EINVAL {
		t.temp = t.tempName()
		fd, err = unix.Openat(t.fd(), t.temp, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	}
	if err != nil {
		t.dir.Close()
		return nil, err
	}
	t.file = os.NewFile(uintptr(fd), path)
	return t, nil
}

func (t *target) fd() int { return int(t.dir.Fd()) }

func (t *target) tempName() string {
	name := t.name
	if len(name) > 200 { // NAME_MAX is 255
		name = name[:200]
	}
	return "." + name + "." + rand.Text()
}

// Write has the kernel begin to bring to the disk what has come together, so that
// commit has little left to wait for.
func (t *target) Write(b []byte) (int, error) {
	n, err := t.file.Write(b)
	t.size += int64(n)
	if ahead := t.size - t.begun; ahead >= writeBehind {
		// Only a matter of speed: an error that counts Sync gives as well.
		unix.SyncFileRange(int(t.file.Fd()), t.begun, ahead, unix.SYNC_FILE_RANGE_WRITE)
		t.begun = t.size
	}
	return n, err
}

// writeBehind is how many bytes are brought to the disk at a time.
const writeBehind = 8 << 20

// commit brings the file to the disk and puts it in its place.
func (t *target) commit() error {
	if err := t.file.Sync(); err != nil {
		return errors.Join(err, t.abort())
	}
	if err := t.link(); err != nil {
		return errors.Join(err, t.abort())
	}
	// The name is there; that it is on the disk as well is what Sync adds.
	err := t.dir.Sync()
	if errors.Is(err, unix.EINVAL) { // the file system has nothing to sync there
		err = nil
	}
	return errors.Join(err, t.file.Close(), t.dir.Close())
}

// link gives the file its name. link(2) does not replace one, rename(2) does.
func (t *target) link() error {
	if t.temp == "" {
		proc := fmt.Sprintf("/proc/self/fd/%d", t.file.Fd())
		err := unix.Linkat(unix.AT_FDCWD, proc, t.fd(), t.name, unix.AT_SYMLINK_FOLLOW)
		if err != unix.EEXIST {
			return err
		}
		temp := t.tempName()
		if err := unix.Linkat(unix.AT_FDCWD, proc, t.fd(), temp, unix.AT_SYMLINK_FOLLOW); err != nil {
			return err
		}
		t.temp = temp
	}
	if err := unix.Renameat(t.fd(), t.temp, t.fd(), t.name); err != nil {
		return err
	}
	t.temp = ""
	return nil
}

// abort leaves nothing of the file.
func (t *target) abort() error {
	var err error
	if t.temp != "" {
		err = unix.Unlinkat(t.fd(), t.temp, 0)
	}
	return errors.Join(err, t.file.Close(), t.dir.Close())
}
