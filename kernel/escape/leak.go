package escape

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// These look at what the entry has been given of the caller's.

// leakedFiles looks for descriptors beside the three, and for those among them that
// give more than a stream.
func leakedFiles(t *Target) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Name())
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || n < 3 && !isDir(n) {
			continue
		}
		// Those of Go's own runtime and of this look are what is left.
		if strings.HasPrefix(to, "anon_inode:[event") || strings.HasPrefix(to, "/proc/") || strings.HasPrefix(to, "pipe:") && n > 8 {
			continue
		}
		return nil // a descriptor that nobody meant to give
	}
	for _, e := range entries {
		if readMarker(t, "/proc/self/fd/"+e.Name()+"/"+filepath.Base(t.Marker)) == nil {
			return nil
		}
	}
	return errors.New("nothing open but its streams")
}

func isDir(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func leakedDirectory(t *Target) error {
	dir, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := readMarker(t, filepath.Base(t.Marker)); err == nil {
		return nil
	}
	at, err := os.Getwd()
	if err != nil || at != "/" {
		return nil // somewhere else than it was sent
	}
	return errors.New("it is in /")
}

func leakedEnvironment(t *Target) error {
	for _, file := range []string{"/proc/self/environ", "/proc/1/environ"} {
		b, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(b), t.Secret) {
			return nil
		}
	}
	return errors.New("not in the environment")
}

// leakedKeys looks for a key in the session keyring.
func leakedKeys(t *Target) error { return findKey(unix.KEY_SPEC_SESSION_KEYRING, t.Key) }

func userKeys(t *Target) error { return findKey(unix.KEY_SPEC_USER_KEYRING, t.UserKey) }

func findKey(ring int, name string) error {
	id, err := unix.KeyctlSearch(ring, "user", name, 0)
	if err == unix.ENOSYS {
		return absent("no keys")
	}
	if err != nil {
		return fmt.Errorf("keyctl_search: %w", err)
	}
	if id <= 0 {
		return errors.New("no key")
	}
	return nil
}

// leakedTerminal looks for the caller's terminal: as the controlling one, or behind
// a stream, where a character put into it (TIOCSTI) is the caller's next command.
func leakedTerminal(*Target) error {
	if fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0); err == nil {
		defer unix.Close(fd)
		if sid, err := unix.IoctlGetInt(fd, unix.TIOCGSID); err != nil || sid != os.Getpid() {
			return nil // not of a session of its own
		}
	}
	for fd := range 3 {
		sid, err := unix.IoctlGetInt(fd, unix.TIOCGSID)
		if err == unix.ENOTTY && !isTerminal(fd) {
			continue
		}
		if err == nil && sid == os.Getpid() {
			continue // the shell's own
		}
		c := byte('\x15') // Ctrl-U, which a shell takes for nothing
		if err := ioctlByte(fd, unix.TIOCSTI, &c); err == nil {
			return nil
		}
		// TIOCLINUX with a subcode that there is not: a console refuses it after it
		// has looked at who asks.
		c = 0xff
		if err := ioctlByte(fd, unix.TIOCLINUX, &c); err == unix.EINVAL {
			return nil
		}
	}
	return errors.New("no terminal of the caller's")
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

func leakedSession(*Target) error {
	sid, err := unix.Getsid(0)
	if err != nil {
		return err
	}
	if sid != os.Getpid() {
		return nil
	}
	return errors.New("a session of its own")
}

// leakedNull changes the host's /dev/null by way of a stream: its mode, to what it is.
func leakedNull(t *Target) error {
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || uint64(st.Dev) != t.Null || st.Ino != t.NullIno {
			continue
		}
		if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
			return err
		}
		return nil
	}
	return errors.New("none of its streams is the host's /dev/null")
}
