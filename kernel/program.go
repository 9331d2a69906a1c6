package kernel

import (
	"encoding/binary"
	"fmt"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// The descriptors that a child is started with, beside those of stage0.
const (
	syncFD   stage0.FD = "sync"   // to msh: a byte from it lets the child go on, its end tells msh that it has executed
	relayFD  stage0.FD = "relay"  // the intermediate's own line to msh
	parentFD stage0.FD = "parent" // pidfd of the parent machine's init
	procFD   stage0.FD = "proc"   // the host's /proc, for who writes id maps
	netFD    stage0.FD = "net"    // the machine's network, where msh has made it: handed over by sync
	devFD    stage0.FD = "dev"    // the file system of the machine's /dev, where msh has made it
	emptyFD  stage0.FD = "empty"  // the file system with the empty file, where msh has made it
	imageFD  stage0.FD = "stage0" // stage0's own ELF, to go on as the minimal init
)

const (
	atEmptyPath    = unix.AT_EMPTY_PATH
	treeClone      = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	closeOnExec    = 1 << 2 // CLOSE_RANGE_CLOEXEC
	joinSession    = 1      // KEYCTL_JOIN_SESSION_KEYRING
	everySignal    = ^uint64(0)
	uncatchable    = 1<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1)
	sigsetSize     = 8
	lastSignal     = 64
	moveFromHandle = unix.MOVE_MOUNT_F_EMPTY_PATH
)

// write writes the whole program: the intermediate's part where one is needed,
// then the child's, kind by kind.
func (p *Plan) write(state string) error {
	s := p.Steps
	s.Hold(syncFD) // closed by exec, it tells msh that the machine is up
	if p.netAhead() {
		s.Hold(netFD) // right behind it: see takeNetwork
	}
	s.leaveCaller()
	s.hide(p.Confined)
	s.leaveKeyring()
	s.joinGroups()
	if p.relayed() {
		s.relay()
	}
	switch {
	case p.netAhead():
		s.boundCaps(p.Confined) // the network may not be there yet
		s.takeNetwork()
	case p.Flags&unix.CLONE_NEWNET != 0:
		s.newNetwork()
	}
	if p.Parks || p.relayed() {
		s.Call("wait for msh", stage0.Positive, unix.SYS_READ, syncFD, stage0.Buffer(8), 1)
	}
	if p.relayed() && p.IDs != nil {
		s.becomeRoot()
	}
	s.Call("umask 0", 0, unix.SYS_UMASK, 0)
	if p.Unmade&unix.CLONE_NEWCGROUP != 0 {
		// Only now: the root of a cgroup namespace is where its maker stands.
		s.Call("unshare the cgroup space", 0, unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	if p.Table {
		s.Call("keep mounts from the parent's table", 0, unix.SYS_MOUNT, 0, "/", 0, unix.MS_REC|unix.MS_PRIVATE, 0)
	}
	if !p.Spec.Has("root") { // which goes to its own
		s.Call("leave the caller's directory", 0, unix.SYS_CHDIR, "/")
	}
	err := p.each(func(r Resource) error {
		if r, ok := r.(Enterer); ok {
			return r.Enter(s)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p.masks() {
		var empty any
		if p.emptyAhead() {
			empty = emptyFD
		}
		s.mask(empty)
	}
	if p.knowsNames() {
		s.mountHosts()
	}
	if p.showsUname() {
		s.showUname()
	}
	if p.Uname != nil {
		if err := s.askUname(); err != nil {
			return err
		}
	}
	s.Call("become a session leader", stage0.MayFail, unix.SYS_SETSID)
	if p.Spec.Init != nil {
		s.null(0)
	} else {
		s.null(0, 1, 2)
	}
	s.clean()
	if p.Spec.Init != nil {
		s.Call("unblock signals", 0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, stage0.Buffer(sigsetSize), 0, sigsetSize)
		if err := s.confine(""); err != nil {
			return err
		}
		s.exec(p.Spec.Init, DefaultEnv(nil))
		return nil
	}
	return s.minimalInit(state)
}

// confine sets the limits of the machine's init, and confines it. program is the path
// of msh's own, where that is the init.
func (s *Steps) confine(program string) error {
	c := s.Plan.Confined
	s.enclose(c, program)
	s.rlimits()
	if !s.Plan.netAhead() { // else that has been done
		s.boundCaps(c)
	}
	return s.shed(c, true, s.Plan.Space())
}

// joinGroups has the process put itself into its v1 control groups: the machine's,
// and where only those around it have a limit, into theirs.
func (s *Steps) joinGroups() {
	for _, p := range s.Plan.Group.Places(s.Plan.Under.Places) {
		s.Call("join the "+p.Controller+" group", 0, unix.SYS_WRITE, joinFD(p.Controller), "0", 1)
	}
}

func joinFD(controller string) stage0.FD { return stage0.FD("join:" + controller) }

// relay writes the intermediate's part: it enters the parent machine, opens the
// trees there, makes the time namespace, and clones the child as its own sister,
// so that msh is the parent of both.
func (s *Steps) relay() {
	p := s.Plan
	if c := p.Clocks; c != nil {
		// Before the parent's user namespace: after the change of user the
		// process's own files in /proc are the host's root's.
		s.Call("unshare the time space", 0, unix.SYS_UNSHARE, unix.CLONE_NEWTIME)
		fd := s.Call("open its offsets", 0, unix.SYS_OPENAT, stage0.AtCwd, "/proc/self/timens_offsets", unix.O_WRONLY, 0)
		text := c.offsets()
		s.Call("move its clocks: "+strings.ReplaceAll(strings.TrimSpace(text), "\n", ", "), 0, unix.SYS_WRITE, fd, text, len(text))
		s.Call("close it", 0, unix.SYS_CLOSE, fd)
	}
	if p.Under.Space != 0 {
		// The PID namespace is entered by being born there.
		space := p.Under.Space
		if p.Clocks != nil {
			space &^= unix.CLONE_NEWTIME
		}
		s.enter("enter "+p.Under.Name, parentFD, space)
	}
	for _, t := range p.Trees {
		if t.Plain {
			at := s.Call("find "+t.Source+", without links", 0, unix.SYS_OPENAT2, stage0.AtCwd, t.Source, howToOpen(unix.O_PATH|unix.O_CLOEXEC, unix.RESOLVE_NO_SYMLINKS), howSize)
			t.ref = s.Call("open "+t.words(), 0, unix.SYS_OPEN_TREE, at, "", openTreeFlags(t.Below)|atEmptyPath)
			s.Call("close it", 0, unix.SYS_CLOSE, at)
		} else {
			t.ref = s.Call("open "+t.words(), 0, unix.SYS_OPEN_TREE, stage0.AtCwd, t.Source, openTreeFlags(t.Below))
		}
		s.Call("keep it from the parent's table", 0, unix.SYS_MOUNT_SETATTR, t.ref, "", atEmptyPath|unix.AT_RECURSIVE, mountAttr(0, unix.MS_PRIVATE, 0), mountAttrSize)
	}
	flags := uint64(p.Flags) | unix.CLONE_PARENT | unix.CLONE_PIDFD | uint64(unix.SIGCHLD)
	words := "clone the machine's init"
	if p.Flags != 0 {
		words += " with its spaces: " + spaceWords(p.Flags)
	}
	s.Fork(words, flags, stage0.Buffer(8), func(in *stage0.Program, child stage0.Ref) {
		in.Call("intermediate: tell msh", 0, unix.SYS_WRITE, relayFD, "f", 1)
		in.Call("intermediate: wait for msh", stage0.Positive, unix.SYS_READ, relayFD, stage0.Buffer(8), 1)
		in.Exit(0)
	})
}

// becomeRoot makes the process the root user of the user namespace it is in.
func (s *Steps) becomeRoot() { s.becomeUser(0, 0, nil) }

// becomeUser sets the ids, groups first, as they take the right that setuid gives away.
func (s *Steps) becomeUser(uid, gid int, groups []int) {
	list := make([]byte, 0, 4*len(groups))
	for _, g := range groups {
		list = binary.NativeEndian.AppendUint32(list, uint32(g))
	}
	flags := stage0.Flags(0)
	if s.Plan.Under.OneID && len(groups) == 0 {
		flags = stage0.MayFail // setgroups(2) is closed to who has no groups to set
	}
	s.Call(fmt.Sprintf("set groups %v", groups), flags, unix.SYS_SETGROUPS, len(groups), list)
	s.Call(fmt.Sprintf("become group %d", gid), 0, unix.SYS_SETRESGID, gid, gid, gid)
	s.Call(fmt.Sprintf("become user %d", uid), 0, unix.SYS_SETRESUID, uid, uid, uid)
}

// enter joins namespaces of the process behind a pidfd, all in one call but the
// PID namespace, which only children get.
//
// Between setns(2) and setresuid(2) the process is the host's root by its number
// and the machine's by its rights: whoever has CAP_SYS_PTRACE there could take it
// over and write what belongs to the host's root, all of /proc/sys first
// (CVE-2016-9962 was such a window). A process that is not dumpable only those
// can trace who have that right where its program was executed: on the host.
func (s *Steps) enter(words string, pidfd stage0.FD, space uintptr) {
	if space&unix.CLONE_NEWUSER != 0 {
		s.Call("be nobody's to trace", 0, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	}
	if f := space &^ unix.CLONE_NEWPID; f != 0 {
		s.Call(words, 0, unix.SYS_SETNS, pidfd, uint64(f))
	}
	if space&unix.CLONE_NEWUSER != 0 {
		s.becomeRoot()
	}
}

// leaveKeyring leaves the caller's session keyring for an empty one. It comes before
// the process becomes a user of the machine's: that one's quota of keys the machine
// can use up (keyrings(7)), and with the old keyring it would get the caller's keys.
//
// An ordinary user's quota is 200 keys: where that is used up, by as many machines, the
// process has the keyring of the user's space, to which nobody can add a key.
func (s *Steps) leaveKeyring() {
	var flags stage0.Flags
	if !keyrings() {
		flags = stage0.MayFail
	}
	if s.Plan.Under.User {
		s.Call("take the keyring of the user's space", flags, unix.SYS_KEYCTL, joinSession, spaceKeyring)
		flags = stage0.MayFail
	}
	s.Call("leave the caller's keyring", flags, unix.SYS_KEYCTL, joinSession, 0)
}

// spaceKeyring is the name of the keyring that the holder of a user's space has.
const spaceKeyring = "msh-space"

// shareKeyring makes it: its possessor, and processes of its user, may find it, and change
// nothing of it.
func (s *Steps) shareKeyring() {
	const view, read, search = 1, 2, 8
	const may = view | read | search
	ring := s.Call("make a keyring to share", stage0.SkipNext, unix.SYS_KEYCTL, joinSession, spaceKeyring)
	s.Call("let it be found, not changed", stage0.MayFail, unix.SYS_KEYCTL, unix.KEYCTL_SETPERM, ring, may<<24|may<<16)
}

// keyrings tells whether this kernel, and whoever filters its calls, knows keys.
var keyrings = sync.OnceValue(func() bool {
	_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	return err != unix.ENOSYS && err != unix.EPERM
})

// clean drops what the process may have from msh's own surroundings: a umask,
// ignored signals, open descriptors.
//
// These are closed, not just marked: a path that the machine has a say in is gone
// to and executed after this, and may be a link to /proc/self/fd/N
// (CVE-2024-21626). The three that stay are the program's memory file, stage0's,
// and the line to msh, which exec is to close.
func (s *Steps) clean() {
	s.Call("umask 022", 0, unix.SYS_UMASK, 0o022)
	// What is ignored stays so across execve(2), and a shell makes what it starts in the
	// background ignore some.
	spare := []stage0.Step{{Words: "default action for every signal", Nr: unix.SYS_RT_SIGACTION, Args: []any{stage0.Signals(everySignal &^ uncatchable), stage0.Zeros, 0, sigsetSize}}}
	if g := s.Plan.Group; g != nil && g.Path != "" && s.Plan.Space()&unix.CLONE_NEWUSER == 0 { // else that has been done
		spare = append(spare, leaveGroups()...)
	}
	s.Spare(spare...)
	s.Call("close the line to msh on exec", 0, unix.SYS_CLOSE_RANGE, stage0.BlobFD, syncNumber, closeOnExec)
	s.Call("close all else", 0, unix.SYS_CLOSE_RANGE, syncNumber+1, uint64(^uint32(0)), 0)
}

// catchable are the signals that have an action to set.
var catchable = func() (sigs [lastSignal - 2]unix.Signal) {
	i := 0
	for sig := unix.Signal(1); sig <= lastSignal; sig++ {
		if sig != unix.SIGKILL && sig != unix.SIGSTOP {
			sigs[i] = sig
			i++
		}
	}
	return sigs
}()

// ignoring tells whether a child of this process would ignore a signal. What is
// caught is not inherited, so that this is seldom so.
func ignoring() bool {
	return ignoredEarly() || slices.ContainsFunc(catchable[:], func(sig unix.Signal) bool { return signal.Ignored(sig) })
}

// ignoredEarly looks for signals that this process was started to ignore. Package
// signal does not know all of them.
var ignoredEarly = sync.OnceValue(func() bool {
	const ignore = 1 // SIG_IGN
	for _, sig := range catchable {
		var action [4]uint64 // struct sigaction, the handler in front
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&action)), sigsetSize, 0, 0)
		if errno != 0 || action[0] == ignore {
			return true
		}
	}
	return false
})

// coverDir is a directory in the /dev of a machine that may have machines, for
// those of them that have no root of their own to mount on.
const coverDir = "/dev/.msh"

// minimalInit goes on as msh's own init. It runs from a copy in the machine's
// own mount table: a shared file could be written from inside, and a process
// whose program is a memory file cannot be restored from a checkpoint.
func (s *Steps) minimalInit(state string) error {
	p := s.Plan
	if p.Flags&unix.CLONE_NEWPID != 0 {
		s.blockSignals()
	} else {
		// Orphans come to this init all the same.
		s.Call("take in orphans", 0, unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1)
	}
	s.ignoreChildren()
	if p.devAhead() {
		return s.become()
	}
	argv, env := []string{"init"}, []string{}
	if !p.Table || !p.Spec.Has("root") && p.ownIDs() {
		// No mount table of its own, or no directory it surely may enter: the
		// sealed memory file has to do.
		if err := s.confine(""); err != nil {
			return err
		}
		s.Call("exec msh's minimal init", 0, unix.SYS_EXECVEAT, imageFD, "", argv, env, atEmptyPath)
		return nil
	}
	dir := "/dev"
	if !p.Spec.Has("root") {
		// The root is the parent's: what msh keeps for the machine is the one
		// directory that can be covered without hiding anything.
		dir = state
		if p.Under.Root {
			// Of the parent's root msh only knows /dev.
			dir = coverDir
			s.Call("make "+dir, stage0.MayFail, unix.SYS_MKDIRAT, stage0.AtCwd, dir, 0o755)
		}
		s.Call("mount tmpfs on "+dir, 0, unix.SYS_MOUNT, "msh", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=16k,mode=755")
	}
	path := dir + "/" + initName
	fd := s.Call("create "+path, 0, unix.SYS_OPENAT, stage0.AtCwd, path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o555)
	s.Call("write msh's minimal init to it", 0, unix.SYS_WRITE, fd, stage0.Image(), len(stage0.Image()))
	s.Call("close it", 0, unix.SYS_CLOSE, fd)
	if err := s.confine(path); err != nil {
		return err
	}
	s.Call("exec it", 0, unix.SYS_EXECVE, path, argv, env)
	return nil
}

// become has the process be the minimal init as it is, with what else execve(2) would do:
// a name, memory that may be traced (nobody is in the machine yet who could).
func (s *Steps) become() error {
	if s.Plan.Confined != nil {
		s.Call("be traceable again", 0, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	}
	if err := s.confine(""); err != nil {
		return err
	}
	s.Become("be msh's minimal init", unix.SYS_PRCTL, unix.PR_SET_NAME, initName)
	return nil
}

func (s *Steps) blockSignals() {
	all := binary.NativeEndian.AppendUint64(nil, everySignal)
	s.Call("block signals", 0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, all, 0, sigsetSize)
}

func (s *Steps) ignoreChildren() {
	ignore := binary.NativeEndian.AppendUint64(nil, 1) // SIG_IGN
	s.Call("let the kernel reap", 0, unix.SYS_RT_SIGACTION, int(unix.SIGCHLD), append(ignore, make([]byte, 24)...), 0, sigsetSize)
}

// exec ends the program with argv. A name without a slash is looked for as
// execvp(3) does, in the PATH of env, by trying: no look-up before it can be wrong.
func (s *Steps) exec(argv, env []string) {
	if strings.Contains(argv[0], "/") {
		s.Call("exec "+strings.Join(argv, " "), 0, unix.SYS_EXECVE, argv[0], argv, env)
		return
	}
	dirs := strings.Split(pathOf(env), ":")
	for i, d := range dirs {
		flags := stage0.MayFail
		if i == len(dirs)-1 {
			flags = 0
		}
		if d == "" {
			d = "."
		}
		path := d + "/" + argv[0]
		s.Call("exec "+strings.Join(append([]string{path}, argv[1:]...), " "), flags, unix.SYS_EXECVE, path, argv, env)
	}
}

func openTreeFlags(below bool) uint64 {
	if below {
		return treeClone | unix.AT_RECURSIVE
	}
	return treeClone
}
