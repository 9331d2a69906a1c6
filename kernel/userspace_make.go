package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/stage0"
)

// make starts the holder; save is called once it is there and before it goes on,
// so that it is written down before it can outlive this msh.
func (u *userSpace) make(save func() error) error {
	line, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(line[0])
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(line[1])
		return err
	}
	defer unix.Close(null)
	s, unshare := holder()
	b := &birth{program: s.Program, stdio: [3]int{null, null, null}, files: map[stage0.FD]int{syncFD: line[1]}, cgroup: -1, pidns: -1, fault: u.fault}
	p, err := b.start()
	unix.Close(line[1])
	if err != nil {
		return err
	}
	defer p.close()
	// Whatever came of it here, what failed there is the reason.
	fail := func(err error) error {
		p.kill()
		if f := p.failure(); f != nil {
			err = f
		}
		var e *stepError
		if errors.As(err, &e) && (e.at == int(unshare) || e.errno == unix.EPERM || e.step.Nr == unix.SYS_MOUNT && e.errno == unix.EACCES) {
			err = explainUserns("/proc/sys", e.errno)
		}
		return fmt.Errorf("make a space for user %d: %w", os.Geteuid(), err)
	}
	var said [1]byte
	if n, _ := unix.Read(line[0], said[:]); n == 0 {
		return fail(errors.New("its holder was killed"))
	}
	if err := u.mapIDs(p.pid); err != nil {
		return fail(err)
	}
	u.Pid, u.Start, u.Boot = p.pid, startTime(p.pid), bootID()
	if err := save(); err != nil {
		return fail(err)
	}
	if _, err := unix.Write(line[0], []byte("g")); err != nil {
		return fail(err)
	}
	if n, _ := unix.Read(line[0], said[:]); n == 0 && p.failure() != nil { // closed: it has executed, or failed
		return fail(nil)
	}
	return nil
}

// holder writes the program of the process that the space is held together by.
func holder() (s *Steps, unshare stage0.Ref) {
	s = &Steps{Program: stage0.New(), Plan: &Plan{}}
	s.Hold(syncFD)
	unshare = s.Call("unshare the user space and the mount table", 0, unix.SYS_UNSHARE, unix.CLONE_NEWUSER|unix.CLONE_NEWNS)
	s.Call("tell msh", 0, unix.SYS_WRITE, syncFD, "u", 1)
	s.Call("wait for its ids", stage0.Positive, unix.SYS_READ, syncFD, stage0.Buffer(8), 1)
	s.shareKeyring()
	// What the host mounts later is to be seen; what is mounted here is not the host's.
	s.Call("keep mounts from the host's table", 0, unix.SYS_MOUNT, 0, "/", 0, unix.MS_REC|unix.MS_SLAVE, 0)
	s.Call("become a session leader", stage0.MayFail, unix.SYS_SETSID)
	s.Call("go to /", 0, unix.SYS_CHDIR, "/")
	s.clean()
	s.blockSignals()
	s.ignoreChildren()
	s.Call("wait for good", 0, unix.SYS_EXECVEAT, imageFD, "", []string{cgroup.SpaceName}, []string{}, atEmptyPath)
	return s, unshare
}

// explainUserns tells why a user may have no user namespace: the kernel says EPERM,
// EACCES or ENOSPC to all of it. sysctl is /proc/sys.
func explainUserns(sysctl string, errno unix.Errno) error {
	for _, knob := range []struct{ what, file, bad, mend string }{
		{"user", "kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"},
		{"user", "user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"},
		{"mount", "user/max_mnt_namespaces", "0", "sudo sysctl user.max_mnt_namespaces=10000"},
		{"user", "kernel/apparmor_restrict_unprivileged_userns", "1", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for msh with the rule userns"},
	} {
		b, err := os.ReadFile(filepath.Join(sysctl, knob.file))
		if err == nil && strings.TrimSpace(string(b)) == knob.bad {
			return unsupported(knob.mend, "%s namespaces of ordinary users (%s is %s)", knob.what, strings.ReplaceAll(knob.file, "/", "."), knob.bad)
		}
	}
	switch errno {
	case unix.ENOSPC:
		return unsupported("end some machines and containers, or raise user.max_user_namespaces and user.max_mnt_namespaces", "one more user namespace (this user has as many as there may be)")
	case unix.EINVAL:
		return unsupported("a kernel with CONFIG_USER_NS", "user namespaces (%v)", errno)
	}
	return unsupported("a seccomp filter or a container engine around msh may refuse it; or run msh as root", "user namespaces of ordinary users (%v)", errno)
}

// mapIDs gives the user namespace of a process its ids: the user's own as 0, and
// behind it those that /etc/subuid and /etc/subgid give. Where they give none, or
// there is no newuidmap(1) to write them, the user's own alone.
func (u *userSpace) mapIDs(pid int) error {
	uid, gid := os.Geteuid(), os.Getegid()
	u.UIDs, u.GIDs, u.Lack = []IDMap{{0, uint32(uid), 1}}, []IDMap{{0, uint32(gid), 1}}, ""
	subs, err := findSubordinate(uid)
	if err == nil {
		err = subs.write(pid, u)
		if err == nil {
			return nil
		}
	}
	u.Lack = err.Error()
	u.UIDs, u.GIDs = u.UIDs[:1], u.GIDs[:1]
	// setgroups(2) could drop a group by which a file is closed to the user: it has
	// to be given up before a group can be mapped (user_namespaces(7)).
	for _, f := range []struct{ file, text string }{
		{"setgroups", "deny"}, {"uid_map", fmt.Sprintf("0 %d 1", uid)}, {"gid_map", fmt.Sprintf("0 %d 1", gid)},
	} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, f.file), []byte(f.text), 0); err != nil {
			if errors.Is(err, unix.EPERM) && f.file == "uid_map" && u.Lack != "" {
				return fmt.Errorf("map user %d to root: %w (and before, more ids: %s)", uid, err, u.Lack)
			}
			return fmt.Errorf("map user %d to root: %w", uid, err)
		}
	}
	return nil
}

// subordinates are the ids that a user may use besides the own one, and the
// programs that may give them.
type subordinates struct {
	uids, gids     []IDMap
	uidmap, gidmap string
}

const subMend = "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"

// findSubordinate reads them; the error says why there are none.
func findSubordinate(uid int) (*subordinates, error) {
	s := &subordinates{}
	var err error
	for _, f := range []struct {
		program string
		path    *string
	}{{"newuidmap", &s.uidmap}, {"newgidmap", &s.gidmap}} {
		if *f.path, err = exec.LookPath(f.program); err != nil {
			return nil, withHint(fmt.Errorf("no %s here", f.program), "install it: Debian's package is uidmap")
		}
	}
	name := userName(uid)
	for _, f := range []struct {
		file string
		to   *[]IDMap
	}{{"/etc/subuid", &s.uids}, {"/etc/subgid", &s.gids}} {
		if *f.to, err = subordinateOf(f.file, name, uid); err != nil {
			return nil, err
		}
		if len(*f.to) == 0 {
			return nil, withHint(fmt.Errorf("%s has no ids for user %s", f.file, name), strings.ReplaceAll(subMend, "USER", name))
		}
	}
	return s, nil
}

// write has the set-user-id programs write the maps.
func (s *subordinates) write(pid int, u *userSpace) error {
	uids, gids := append(u.UIDs[:1:1], s.uids...), append(u.GIDs[:1:1], s.gids...)
	for _, m := range []struct {
		program string
		maps    []IDMap
	}{{s.uidmap, uids}, {s.gidmap, gids}} {
		args := []string{strconv.Itoa(pid)}
		for _, r := range m.maps {
			args = append(args, fmt.Sprint(r.Inside), fmt.Sprint(r.Outside), fmt.Sprint(r.Size))
		}
		if out, err := exec.Command(m.program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %s", filepath.Base(m.program), strings.TrimSpace(string(out)+" ("+err.Error()+")"))
		}
	}
	u.UIDs, u.GIDs = uids, gids
	return nil
}

// subordinateOf reads a user's ranges, laid out one behind the other from id 1 on.
func subordinateOf(file, name string, uid int) ([]IDMap, error) {
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var maps []IDMap
	next := uint32(1)
	for line := range strings.Lines(string(b)) { // NAME-OR-UID:FIRST:COUNT
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] != name && f[0] != strconv.Itoa(uid) {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		n, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || n == 0 || first+n > noID || uint64(next)+n > noID || len(maps) > 300 {
			continue
		}
		maps = append(maps, IDMap{next, uint32(first), uint32(n)})
		next += uint32(n)
	}
	return maps, nil
}

// userName is the user's name in /etc/passwd; where it has none, the number.
func userName(uid int) string {
	b, _ := os.ReadFile("/etc/passwd")
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == strconv.Itoa(uid) {
			return f[0]
		}
	}
	return strconv.Itoa(uid)
}

// enter executes stage0, which enters the space and executes msh again there.
func (u *userSpace) enter() error {
	pidfd, err := openProcess(u.Pid, u.Start)
	if err != nil {
		return fmt.Errorf("open the holder of the user's space: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/user", u.Pid), &st); err != nil {
		return fmt.Errorf("look at the user's space: %w", err)
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	cwd, err := os.Getwd()
	if err != nil {
		cwd = "/"
	}
	// Numbers that are nobody's yet, and stay across execve(2).
	number := map[stage0.FD]int{}
	for name, fd := range map[stage0.FD]int{holderFD: pidfd, selfFD: int(self.Fd()), lockFD: u.lock} {
		if number[name], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 100); err != nil {
			return fmt.Errorf("duplicate a descriptor: %w", err)
		}
	}
	s := stage0.New()
	// Whatever fails here, the msh behind it says: nobody reads this list back.
	s.Call("enter the user's space", stage0.MayFail, unix.SYS_SETNS, holderFD, unix.CLONE_NEWUSER|unix.CLONE_NEWNS)
	s.Call("go back to the working directory", stage0.MayFail, unix.SYS_CHDIR, cwd)
	// What the caller gave msh besides its streams stays what it is, the number that
	// stage0 has its list at included.
	for _, fd := range u.given {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	if slices.Contains(u.given, stage0.BlobFD) {
		if number[givenFD], err = unix.FcntlInt(stage0.BlobFD, unix.F_DUPFD, 100); err != nil {
			return fmt.Errorf("duplicate a descriptor: %w", err)
		}
		s.Call("put descriptor 3 back", 0, unix.SYS_DUP3, givenFD, stage0.BlobFD, 0)
		s.Call("close its copy", 0, unix.SYS_CLOSE, givenFD)
	} else {
		s.Call("close the list", 0, unix.SYS_CLOSE, stage0.BlobFD)
	}
	s.Call("close the holder's pidfd", 0, unix.SYS_CLOSE, holderFD)
	s.Call("close msh when it is executed", 0, unix.SYS_FCNTL, selfFD, unix.F_SETFD, unix.FD_CLOEXEC)
	env := append(os.Environ(), u.env(st.Ino, number[lockFD]))
	s.Call("exec msh", 0, unix.SYS_EXECVEAT, selfFD, "", os.Args, env, atEmptyPath)
	return become(s, number)
}

const (
	holderFD stage0.FD = "holder" // pidfd of the process that holds the space
	selfFD   stage0.FD = "self"   // msh's own program
	lockFD   stage0.FD = "lock"
	givenFD  stage0.FD = "given"
)

// inherited lists the descriptors besides the streams that stay across execve(2):
// none of msh's own do.
func inherited() []int {
	var all []int
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			all = append(all, fd)
		}
	}
	return all
}

// become executes stage0 in the place of this process.
func become(s *stage0.Program, number map[stage0.FD]int) error {
	image, err := stage0.Executable()
	if err != nil {
		return err
	}
	code, err := s.Assemble(number)
	if err != nil {
		return err
	}
	blob, err := unix.MemfdCreate("msh-program", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	if _, err := unix.Pwrite(blob, code, 0); err != nil {
		return err
	}
	// From here on there is no way back: the runtime's poller may be on that number.
	if err := unix.Dup3(blob, stage0.BlobFD, 0); err != nil {
		return err
	}
	return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", image), []string{"0"}, nil)
}

// endStale ends machines whose space has ended: with its holder go the mount table
// and the pins in it, and no msh could enter them. The user is not in a space here,
// and so may signal whatever is in those of the user's (user_namespaces(7)).
func (u *userSpace) endStale() error {
	h, err := NewHost(u.State)
	if err != nil {
		return err
	}
	labs, err := h.Labs()
	if err != nil || len(labs) == 0 {
		return err
	}
	ctx := context.Background()
	var errs []error
	for _, lab := range labs {
		_, err := h.clearLab(ctx, lab, func(string) (bool, error) { return false, nil })
		if err != nil && !errors.Is(err, errOwned) {
			errs = append(errs, err)
		}
	}
	h.book.Tidy()
	return errors.Join(errs...)
}
