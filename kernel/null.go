package kernel

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// A stream that is to be /dev/null is that of the machine, where it has a /dev of its
// own: with the host's in its hand, a root of the same ids could change its mode and
// owner (fchmod(2)), and no checkpoint could hold a file of a foreign mount. So msh
// hands over a file with nothing in it, and the process changes it for the real one
// once it is inside. Where the machine has put something else there, or nothing, the
// empty file stays.

// ownRoot tells whether the machine's root, and with it /dev, is not the host's.
func (p *Plan) ownRoot() bool { return p.Under.Root || p.Spec.Has("root") }

// null appends the steps that change streams for the machine's /dev/null.
func (s *Steps) null(fds ...int) {
	if len(fds) == 0 || !s.Plan.ownRoot() {
		return
	}
	fd := s.Call("open its /dev/null", stage0.MayFail, unix.SYS_OPENAT, stage0.AtCwd, "/dev/null", unix.O_RDWR|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	for _, n := range fds {
		s.Call(fmt.Sprintf("make it stream %d", n), stage0.MayFail, unix.SYS_DUP3, fd, n, 0)
	}
}

// openNull opens what such a stream is at first, for a machine with a root of its own
// or without.
func openNull(ownRoot bool) (int, error) {
	if ownRoot {
		fd, err := nothing()
		if err != nil {
			return -1, err
		}
		return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/null: %w", err)
	}
	return fd, nil
}

// nothing is a file that is empty, and stays so.
var nothing = sync.OnceValues(func() (int, error) { return stage0.SealedFile("null", nil) })

// isNull tells the host's /dev/null.
func isNull(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}
