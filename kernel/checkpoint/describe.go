package checkpoint

import (
	"golang.org/x/sys/unix"
)

// describe sets owner, attributes, mode and, where the descriptor can be written
// through, times. In this order: chown(2) takes away set-user-ID bits and
// capabilities; a mode is also an ACL's mask, and both say the same.
func (u *unpacking) describe(fd int, readable bool, e *entry) error {
	if err := unix.Fchownat(fd, "", int(e.uid), int(e.gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failAt("chown", short(e.path), err)
	}
	for _, x := range e.xattrs {
		name := x.name
		if u.options.Xattr != nil {
			name = u.options.Xattr(name)
		}
		if name == "" {
			continue
		}
		var err error
		if readable {
			err = unix.Fsetxattr(fd, name, []byte(x.value), 0)
		} else {
			err = unix.Setxattr(procName(fd), name, []byte(x.value), 0)
		}
		if err != nil {
			return failAt("set "+name+" of", short(e.path), err)
		}
	}
	if e.kind == kindLink {
		return nil // has no mode
	}
	if !readable {
		if err := unix.Chmod(procName(fd), e.mode); err != nil {
			return failAt("chmod", short(e.path), err)
		}
		return nil
	}
	if err := unix.Fchmod(fd, e.mode); err != nil {
		return failAt("chmod", short(e.path), err)
	}
	return u.times(fd, "", e)
}

// times sets those of a name, or of a descriptor itself.
func (u *unpacking) times(dir int, name string, e *entry) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if err := unix.UtimesNanoAt(dir, name, []unix.Timespec{e.atime, e.mtime}, flags); err != nil {
		return failAt("set the times of", short(e.path), err)
	}
	return nil
}

// empty removes all that is in a directory.
func empty(dir int) error {
	names, err := readNames(dir)
	if err != nil {
		return failAt("clear", "the directory", err)
	}
	for _, name := range names {
		err := unix.Unlinkat(dir, name, 0)
		if err == unix.EISDIR || err == unix.EPERM {
			var fd int
			if fd, err = openBelow(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0); err == nil {
				unix.Fchmod(fd, 0o700) // the caller may not be root
				err = empty(fd)
				unix.Close(fd)
			}
			if err == nil {
				err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
			}
		}
		if err != nil {
			return failAt("clear", short(name), err)
		}
	}
	return nil
}
