package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/rawfile"
)

// A user who is not root has a space: a user namespace, in which the user is root,
// and a mount table. Every msh of the user goes in before it does anything, so that
// all of them see the same pins of networks and may end each other's machines.
//
//	msh, the user                     holder: stage0
//	─────────────                     ──────────────
//	lock STATE/.space, shared
//	no holder alive: exclusive
//	start it ───────────────────────> unshare the user namespace, the mount table
//	write its id maps                 read line
//	write STATE/.space
//	write line ─────────────────────> exec msh's minimal init: it only waits
//	lock shared, look again
//	exec stage0: setns the holder's
//	exec msh: the same process, root in the space, the lock still held
//	…
//	at its end: lock exclusive?  Then no other msh is at work,
//	and where no lab is left: kill ─> .
//
// The process stays the one that was called: its number, terminal, streams and exit
// code are msh's own. The network stays the host's, so that what a list does not
// name is shared with the host here as it is for root.
type userSpace struct {
	State string
	spaceRecord
	lock  int   // the descriptor that holds the lock; -1 in one that only stays awake
	given []int // descriptors that whoever started msh left open to it
	fault int   // the step of the holder's that is to fail
}

// spaceRecord is what STATE/.space says.
type spaceRecord struct {
	Pid   int    // of the holder
	Start uint64 // with Pid it names the process for ever
	Boot  string
	UIDs  []IDMap // to the host's
	GIDs  []IDMap
	Lack  string `json:",omitempty"` // why there is one id only
}

const (
	spaceFile = ".space"
	// spaceEnv tells msh, executed anew, that it is in the space: the number of the
	// user namespace, the descriptor of the lock, the state directory. A number that
	// is not that of the namespace it finds itself in is a stray variable.
	spaceEnv = "MSH_SPACE"
)

// ErrNoSpace says that the user has no space, and so no machines.
var ErrNoSpace = errors.New("no machines of this user")

// theSpace is the space that this process is in, nil for none.
var theSpace = sync.OnceValues(func() (*userSpace, error) {
	text, ok := os.LookupEnv(spaceEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(spaceEnv)
	u := &userSpace{}
	var ino uint64
	if n, err := fmt.Sscanf(text, "%d %d ", &ino, &u.lock); n != 2 || err != nil {
		return nil, nil
	}
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/user", &st) != nil || st.Ino != ino {
		if os.Geteuid() != 0 {
			return nil, errors.New("the user's space could not be entered: its holder has ended in this moment")
		}
		return nil, nil
	}
	u.State = strings.SplitN(text, " ", 3)[2]
	if u.lock >= 0 {
		unix.CloseOnExec(u.lock)
	}
	b, err := os.ReadFile(filepath.Join(u.State, spaceFile))
	if err == nil {
		err = json.Unmarshal(b, &u.spaceRecord)
	}
	if err != nil {
		return nil, fmt.Errorf("read the user's space: %w", err)
	}
	return u, nil
})

// env is the variable for a process of this space; lock is a descriptor of its.
func (u *userSpace) env(ino uint64, lock int) string {
	return fmt.Sprintf("%s=%d %d %s", spaceEnv, ino, lock, u.State)
}

// single tells whether the space has the user's own id and no other.
func (u *userSpace) single() bool { return u != nil && len(u.UIDs) == 1 && u.UIDs[0].Size == 1 }

// ids is how many there are in the space, from 0 on.
func (u *userSpace) ids() uint32 {
	var n uint32
	for _, m := range u.UIDs {
		n = max(n, m.Inside+m.Size)
	}
	return n
}

// detectGroups looks for control groups: root's are anywhere, a user's where they
// are delegated.
func detectGroups(u *userSpace) (*cgroup.Host, error) {
	if u == nil && os.Geteuid() == 0 {
		return cgroup.Detect()
	}
	return cgroup.DetectUser()
}

// stateDir is where the state is: root's for all, a user's where nobody else can
// write. It makes nothing.
func stateDir(asked string) (string, error) {
	u, err := theSpace()
	switch {
	case err != nil:
		return "", err
	case u != nil:
		return u.State, nil
	case asked != "":
		return filepath.Abs(asked)
	case os.Geteuid() == 0:
		return DefaultState, nil
	}
	uid := os.Geteuid()
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) && mineAlone(dir, uid) == nil {
		return filepath.Join(dir, "msh"), nil
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("msh-%d", uid)), nil
}

// mineAlone tells whether a directory is the user's, and nobody else may write to it.
func mineAlone(dir string, uid int) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is no directory", dir)
	case int(st.Uid) != uid:
		return fmt.Errorf("%s belongs to user %d, not to user %d", dir, st.Uid, uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s may be written by others (mode %#o)", dir, st.Mode&0o777)
	}
	return nil
}

// makeState makes the user's state directory, or sees that it is nobody else's: in
// /tmp anybody can make one of that name first.
func makeState(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		err = mineAlone(dir, os.Geteuid())
	}
	if err != nil {
		return withHint(fmt.Errorf("keep msh's state in %s: %w", dir, err), "set XDG_RUNTIME_DIR, or MSH_STATE, to a directory of your own")
	}
	return nil
}

// NeedsSpace tells whether this msh is an ordinary user's that is not in the user's
// space yet.
func NeedsSpace() bool { return os.Geteuid() != 0 }

// InSpace tells whether this msh is in the space of an ordinary user.
func InSpace() bool {
	u, _ := theSpace()
	return u != nil
}

// EnterSpace takes the process into the user's space and executes msh there, with
// the same arguments: on success it does not return. Without create it is ErrNoSpace
// if there is none.
func EnterSpace(state string, create bool) error {
	if _, err := theSpace(); err != nil {
		return err // it has been tried
	}
	dir, err := stateDir(state)
	if err != nil {
		return err
	}
	if create {
		if err := makeState(dir); err != nil {
			return err
		}
	}
	u := &userSpace{State: dir, given: inherited()}
	if err := u.open(create); err != nil {
		return err
	}
	return u.enter()
}

// open finds the space, or makes it: u then has its record, and the lock, shared.
func (u *userSpace) open(create bool) error {
	deadline := time.Now().Add(3 * time.Second)
	for {
		fd, err := u.lockFile(create)
		if err != nil {
			return err
		}
		if err := flock(fd, unix.LOCK_SH); err != nil {
			unix.Close(fd)
			return err
		}
		err = u.read(fd)
		if err == nil && u.alive() {
			u.lock = fd
			return nil
		}
		// Nobody else may be at work while a space is made, or what a dead one has
		// left is ended.
		alone := flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil
		if alone && u.stands(fd) {
			err := u.renew(fd, create)
			if err != nil || !create {
				os.Remove(filepath.Join(u.State, spaceFile))
			}
			unix.Close(fd)
			if err != nil || !create {
				os.Remove(u.State) // if nothing else is in it
			}
			if err != nil {
				return err
			}
			if !create {
				return ErrNoSpace
			}
			continue // and look again: between two locks another msh may end it
		}
		unix.Close(fd)
		if time.Now().After(deadline) {
			return withHint(errors.New("the process that holds this user's machines together was killed, and an msh is still at work among them"), "end that msh; the next one cleans up")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// lockFile opens the file that is locked.
func (u *userSpace) lockFile(create bool) (int, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOFOLLOW
	if create {
		flags |= unix.O_CREAT
	}
	path := filepath.Join(u.State, spaceFile)
	fd, err := unix.Open(path, flags, 0o600)
	for err == unix.ENOENT && create { // another msh, the last one, has just removed the directory
		if err := makeState(u.State); err != nil {
			return -1, err
		}
		fd, err = unix.Open(path, flags, 0o600)
	}
	if err == unix.ENOENT {
		return -1, ErrNoSpace
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func flock(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); err != unix.EINTR {
			return err
		}
	}
}

// stands tells whether the locked file still is the one of that name.
func (u *userSpace) stands(fd int) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Stat(filepath.Join(u.State, spaceFile), &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// read reads the record of a locked file.
func (u *userSpace) read(fd int) error {
	u.spaceRecord = spaceRecord{}
	b := make([]byte, 1<<16)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	return json.Unmarshal(b[:n], &u.spaceRecord)
}

// alive tells whether the holder is. One that is ending is waited for: its space can
// be entered no more, and where nobody reaps it its number stays.
func (u *userSpace) alive() bool {
	if u.Pid <= 0 || u.Boot != bootID() {
		return false
	}
	fd, err := openProcess(u.Pid, u.Start)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if !exiting(u.Pid) {
		return !ended(fd)
	}
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 3000)
	return false
}

// exiting tells whether a process is on its way out (PF_EXITING in its flags).
func exiting(pid int) bool {
	b, err := rawfile.Read(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && statField(b, 6)&4 != 0
}

// renew ends what a dead space has left and makes a new one. The caller has the
// lock to itself.
func (u *userSpace) renew(fd int, create bool) error {
	if err := u.endStale(); err != nil {
		return fmt.Errorf("end machines whose space has ended: %w", err)
	}
	if !create {
		return nil
	}
	return u.make(func() error {
		b, err := json.Marshal(u.spaceRecord)
		if err != nil {
			return err
		}
		if err := unix.Ftruncate(fd, 0); err != nil {
			return err
		}
		_, err = unix.Pwrite(fd, b, 0)
		return err
	})
}

// LeaveSpace is the end of an msh in a user's space: the last one ends the space if
// no lab is left.
func (h *Host) LeaveSpace() error {
	u := h.space
	if u == nil || u.lock < 0 {
		return nil
	}
	if h.Cgroup.Base != "" {
		h.Cgroup.Restore()
	}
	if flock(u.lock, unix.LOCK_EX|unix.LOCK_NB) != nil || !u.stands(u.lock) {
		return nil // another msh is at work there
	}
	if labs, err := h.Labs(); err != nil || len(labs) > 0 {
		return err
	}
	return u.dismiss(h)
}

// dismiss ends the space. The file goes last: until then it tells whom to end.
func (u *userSpace) dismiss(h *Host) error {
	fd, err := openProcess(u.Pid, u.Start)
	if err == nil {
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
	}
	if err != nil && err != unix.ESRCH {
		return fmt.Errorf("end the user's space: %w", err)
	}
	if err := os.Remove(filepath.Join(u.State, spaceFile)); err != nil {
		return err
	}
	h.tidy()
	return nil
}
