package kernel

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/stage0"
)

// clone starts the child, by way of an intermediate where the plan has one. It
// returns with the child parked, or running where nothing waits for it.
func (t *Txn) clone() (*Child, error) {
	p := t.plan
	b := &birth{program: p.Steps.Program, files: map[stage0.FD]int{}, cgroup: -1, pidns: -1, fault: t.host.Fault.Child, in: t.parent}
	if err := t.open(b); err != nil {
		return nil, err
	}
	line, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	t.fds = append(t.fds, line[0])
	b.files[syncFD] = line[1]
	if !p.relayed() {
		b.flags, b.ids, b.oneID = p.Flags, p.IDs, p.Under.OneID
		if p.netAhead() {
			b.flags &^= unix.CLONE_NEWNET
		}
	}
	if err := t.step("clone"); err != nil {
		unix.Close(line[1])
		return nil, err
	}
	if p.relayed() {
		c, err := t.cloneRelayed(b, line)
		unix.Close(line[1])
		return c, err
	}
	proc, err := b.start()
	unix.Close(line[1])
	if err != nil {
		return nil, err
	}
	return &Child{proc, line[0]}, nil
}

// open opens what the child is handed: its stdio, its groups, the trees.
func (t *Txn) open(b *birth) error {
	p := t.plan
	null, err := t.own(openNull(p.ownRoot()))
	if err != nil {
		return err
	}
	b.stdio = [3]int{null, null, null}
	if p.Spec.Init != nil {
		dir, err := makeLogsDir(t.dir)
		if err != nil {
			return err
		}
		log, err := t.own(openLog(filepath.Join(dir, "init.log")))
		if err != nil {
			return err
		}
		b.stdio[1], b.stdio[2] = log, log
	}
	if err := joinFiles(p.Group.Places(p.Under.Places), b.files, t.own); err != nil {
		return err
	}
	if p.Group.Tracker != "" {
		if b.cgroup, err = t.own(unix.Open(p.Group.Processes(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)); err != nil {
			return fmt.Errorf("open %s: %w", p.Group.Processes(), err)
		}
	}
	if p.Under.Space != 0 {
		if b.files[parentFD], err = t.own(t.parent.handle()); err != nil {
			return err
		}
		if p.Under.Space&unix.CLONE_NEWPID != 0 {
			b.pidns = b.files[parentFD]
		}
	}
	if p.Uname != nil {
		b.files[unameFD] = t.uname
		maps.Copy(b.files, t.shown)
	}
	if p.knowsNames() {
		if b.files[hostsFD], err = t.own(t.lab.hostsMount(namesNets(p.Nets))); err != nil {
			return err
		}
	}
	if p.layered() {
		if _, err := t.makeLayers(); err != nil {
			return err
		}
		if b.files[layersFD], err = t.layersMount(); err != nil {
			return err
		}
	}
	if p.Spec.Has("view") {
		if err := t.openView(b); err != nil {
			return err
		}
	}
	if p.emptyAhead() {
		if b.files[emptyFD], err = t.own(t.empty()); err != nil {
			return err
		}
	}
	if p.devAhead() {
		if b.files[devFD], b.image, err = t.makeDev(); err != nil {
			return err
		}
	}
	if p.netAhead() {
		b.files[netFD] = null // in its place
	}
	if p.relayed() {
		return nil // the intermediate opens the trees
	}
	for _, tree := range p.Trees {
		if err := t.step("open " + tree.Source); err != nil {
			return err
		}
		fd, err := t.own(tree.open())
		if err != nil {
			return err
		}
		b.files[tree.FD], t.trees[tree.FD] = fd, fd
	}
	return nil
}

func joinFiles(places []cgroup.Place, into map[stage0.FD]int, own func(int, error) (int, error)) error {
	for _, p := range places {
		fd, err := own(unix.Open(p.Join(), unix.O_WRONLY|unix.O_CLOEXEC, 0))
		if err != nil {
			return fmt.Errorf("open %s: %w", p.Join(), err)
		}
		into[joinFD(p.Controller)] = fd
	}
	return nil
}

// cloneRelayed starts the intermediate, and fetches the child that it has cloned.
func (t *Txn) cloneRelayed(b *birth, line [2]int) (*Child, error) {
	relay, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(relay[0])
	b.files[relayFD] = relay[1]
	mid, err := b.start()
	unix.Close(relay[1])
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Child, error) {
		mid.kill()
		if f := mid.failure(); f != nil {
			err = t.explain(f)
		}
		t.reapStray(mid)
		mid.close()
		return nil, err
	}
	c, err := newCanceller(t.ctx)
	if err != nil {
		return fail(err)
	}
	defer c.close()
	// Its end is not the line's: the child, where it has cloned one, has that too.
	ready, err := c.await(t.ctx, time.Time{}, relay[0], mid.pidfd)
	if err != nil {
		return fail(err)
	}
	var ping [1]byte
	if ready&1 == 0 {
		return fail(errors.New("the intermediate died"))
	}
	if n, err := unix.Read(relay[0], ping[:]); err != nil || n == 0 {
		return fail(errors.New("the intermediate died"))
	}
	child, err := t.fetchChild(mid)
	if err != nil {
		return fail(err)
	}
	abandon := func(err error) (*Child, error) {
		child.kill()
		unix.Close(child.pidfd)
		return fail(err)
	}
	if err := t.writeMaps(child.pid); err != nil {
		return abandon(err)
	}
	if err := t.step("let the intermediate go on"); err != nil {
		return abandon(err)
	}
	if _, err := unix.Write(relay[0], []byte("g")); err != nil {
		return abandon(fmt.Errorf("release the intermediate: %w", err))
	}
	st, err := reap(mid.pidfd)
	if err != nil || st != (status{true, 0}) {
		return abandon(errors.Join(err, fmt.Errorf("the intermediate ended with %d", st.Code())))
	}
	unix.Close(mid.pidfd)
	return &Child{child, line[0]}, nil
}

// reapStray ends a child that the intermediate has cloned but not handed over. It
// is msh's own: the undoing of the group would kill it, but not reap it, and as a
// zombie it would keep the PID space it is in from ending.
func (t *Txn) reapStray(mid *process) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil || !t.strayed(pid, mid) {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			reap(fd)
			unix.Close(fd)
		}
	}
}

// strayed tells whether a child of msh's is one that the intermediate has cloned: by
// the group it was born in, or where there is none by the list it performs.
func (t *Txn) strayed(pid int, mid *process) bool {
	if t.plan.Group.Tracker != "" {
		return t.plan.Group.Has(pid)
	}
	var mine, its unix.Stat_t
	return unix.Fstat(mid.blob, &mine) == nil && unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, stage0.BlobFD), &its) == nil &&
		mine.Ino == its.Ino && mine.Dev == its.Dev
}

// fork is the step of the program that clones the child.
func (p *Plan) fork() stage0.Ref {
	for i, s := range p.Steps.Steps() {
		if s.Nr == unix.SYS_CLONE {
			return stage0.Ref(i)
		}
	}
	panic("kernel: no clone in a relayed plan")
}

// fetchChild takes over the pidfd that clone gave the intermediate: numbers of
// processes are different where that stands.
func (t *Txn) fetchChild(mid *process) (*process, error) {
	var word [4]byte
	at, err := mid.argument(t.plan.fork(), 2)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Pread(mid.blob, word[:], at); err != nil {
		return nil, err
	}
	fd, err := unix.PidfdGetfd(mid.pidfd, int(stage0.Int32(word[:])), 0)
	if err != nil {
		return nil, fmt.Errorf("take the child's pidfd over: %w", err)
	}
	unix.CloseOnExec(fd)
	pid, err := pidOf(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &process{pid: pid, pidfd: fd, blob: mid.blob, steps: mid.steps}, nil
}

// argument is where in the memory file a pointer argument points to.
func (p *process) argument(step stage0.Ref, arg int) (int64, error) {
	var b [8]byte
	_, err := unix.Pread(p.blob, b[:], stage0.ArgOffset(step, arg))
	return stage0.Int64(b[:]) - stage0.Base, err
}

// pidOf reads the number of a process from its pidfd.
func pidOf(pidfd int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, errors.New("pidfd without a process")
}

// writeMaps writes the id maps of a child whose parent is a machine with ids of
// its own: only from inside that machine's user namespace can they be written.
// The writer stays the host's root there, as the files in /proc of the child,
// which has changed its user, are the host's root's (proc_pid(5), dumpable).
func (t *Txn) writeMaps(pid int) error {
	ids := t.plan.IDs
	if ids == nil {
		return nil
	}
	if err := t.step("write the id maps"); err != nil {
		return err
	}
	s := stage0.New()
	if t.plan.Under.Space&unix.CLONE_NEWUSER != 0 {
		s.Call("enter the parent's user namespace", 0, unix.SYS_SETNS, parentFD, unix.CLONE_NEWUSER)
	}
	for _, file := range []string{"uid_map", "gid_map"} {
		fd := s.Call("open the child's "+file, 0, unix.SYS_OPENAT, procFD, fmt.Sprintf("%d/%s", pid, file), unix.O_WRONLY, 0)
		s.Call("write the child's "+file, 0, unix.SYS_WRITE, fd, ids.text(), len(ids.text()))
	}
	s.Exit(0)
	proc, err := t.own(unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))
	if err != nil {
		return fmt.Errorf("open /proc: %w", err)
	}
	null, err := t.own(openNull(false))
	if err != nil {
		return err
	}
	b := &birth{program: s, stdio: [3]int{null, null, null}, files: map[stage0.FD]int{procFD: proc}, cgroup: -1, pidns: -1}
	if t.plan.Under.Space&unix.CLONE_NEWUSER != 0 {
		if b.files[parentFD], err = t.own(t.parent.handle()); err != nil {
			return err
		}
	}
	p, err := b.start()
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := reap(p.pidfd); err != nil {
		return err
	}
	return p.failure()
}
