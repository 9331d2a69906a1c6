package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/ledger"
	"msh/kernel/stage0"
)

// Txn makes a machine of a plan. Each effect that the kernel would not undo by
// itself is written to the ledger before it is made; when a step fails, the
// ledger undoes the steps before it.
type Txn struct {
	ctx    context.Context
	host   *Host
	lab    *Lab
	parent *Machine
	plan   *Plan
	ledger *ledger.Ledger
	dir    string
	steps  int // taken so far

	fds   []int             // to be closed at the end
	trees map[stage0.FD]int // those opened by msh itself
}

// Child is a process between clone and exec, parked in its new namespaces.
type Child struct {
	*process
	sync int // msh's end of the line to it
}

func newTxn(ctx context.Context, lab *Lab, parent *Machine, plan *Plan) *Txn {
	return &Txn{ctx: ctx, host: lab.host, lab: lab, parent: parent, plan: plan, trees: map[stage0.FD]int{}, dir: filepath.Join(lab.dir(), plan.Spec.Name)}
}

func (t *Txn) owner() string { return t.lab.name + "/" + t.plan.Spec.Name }

// step stands before each effect of msh's own. It is where faults strike and
// cancellation is seen.
func (t *Txn) step(words string) error {
	t.steps++
	if f := t.host.Fault; f.Parent == t.steps {
		if f.Kill {
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return fmt.Errorf("%s: %w", words, errFault)
	}
	return t.ctx.Err()
}

var errFault = errors.New("injected fault")

// run takes the transaction through, or back.
func (t *Txn) run() (*Machine, error) {
	defer func() {
		for _, fd := range t.fds {
			unix.Close(fd)
		}
	}()
	m, err := t.forward()
	if err == nil {
		return m, nil
	}
	if t.ledger != nil {
		t.ledger.Close()
		if e := t.host.undoMachine(t.ctx, t.dir); e != nil {
			err = errors.Join(err, fmt.Errorf("and undoing what was made: %w", e))
		}
	}
	return nil, fmt.Errorf("machine %s: %w", t.plan.Spec.Name, err)
}

func (t *Txn) forward() (*Machine, error) {
	if err := t.step("make the machine's directory"); err != nil {
		return nil, err
	}
	if err := os.Mkdir(t.dir, 0o755); err != nil {
		return nil, explainState(err)
	}
	var err error
	if t.ledger, err = ledger.Create(filepath.Join(t.dir, "ledger")); err != nil {
		os.Remove(t.dir)
		return nil, err
	}
	if err := t.prepare(); err != nil {
		return nil, err
	}
	if err := t.makeGroup(); err != nil {
		return nil, err
	}
	c, err := t.clone()
	if err != nil {
		return nil, err
	}
	m, err := t.bringUp(c)
	if err != nil {
		c.kill()
		c.close()
		return nil, err
	}
	return m, nil
}

// prepare lets the kinds look and claim. Where something exclusive is asked for,
// the book stays locked meanwhile.
func (t *Txn) prepare() error {
	if err := t.host.checkLimits(t.plan.Limits); err != nil {
		return err
	}
	if t.plan.booked() {
		unlock, err := t.host.book.Lock()
		if err != nil {
			return err
		}
		defer unlock()
	}
	err := t.plan.each(func(r Resource) error {
		if r, ok := r.(Preparer); ok {
			if err := t.step("prepare"); err != nil {
				return err
			}
			return r.Prepare(t)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range t.plan.Claims {
		if err := t.claim(c); err != nil {
			return err
		}
	}
	if t.plan.Limits.Exclusive {
		if err := t.step("keep others off the CPUs"); err != nil {
			return err
		}
		return t.host.confine()
	}
	return nil
}

// booked tells whether the plan takes something that only one may have.
func (p *Plan) booked() bool {
	return len(p.Claims) > 0 || p.IDs != nil || p.Limits.CPUs != ""
}

// claim writes an exclusive thing into the ledger and then into the book.
func (t *Txn) claim(c ledger.Claim) error {
	c.Owner = t.owner()
	if c.Kind == "memory" {
		c.From = purse(t.parent).claimant()
	}
	if err := t.step("claim " + claimWords(c)); err != nil {
		return err
	}
	if err := t.ledger.Write("claim", c); err != nil {
		return err
	}
	holder, err := t.host.book.Take(c)
	if errors.Is(err, ledger.ErrTaken) {
		return fmt.Errorf("%s: machine %s has it exclusively: %w", claimWords(c), holder.Owner, err)
	}
	return err
}

func (t *Txn) makeGroup() error {
	g := t.plan.Group
	if err := t.parent.shelter(g.V1); err != nil {
		return err
	}
	if err := t.step("write the control group ahead"); err != nil {
		return err
	}
	if err := t.ledger.Write("cgroup", g); err != nil {
		return err
	}
	if err := t.step("make the control group"); err != nil {
		return err
	}
	return explainState(g.Make())
}

// own has a descriptor closed at the end of the transaction.
func (t *Txn) own(fd int, err error) (int, error) {
	if err == nil {
		t.fds = append(t.fds, fd)
	}
	return fd, err
}

// clone starts the child, by way of an intermediate where the plan has one. It
// returns with the child parked, or running where nothing waits for it.
func (t *Txn) clone() (*Child, error) {
	p := t.plan
	b := &birth{program: p.Steps.Program, files: map[stage0.FD]int{}, cgroup: -1, pidns: -1, fault: t.host.Fault.Child}
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
		b.flags, b.ids = p.Flags, p.IDs
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
	null, err := t.own(unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0))
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	b.stdio = [3]int{null, null, null}
	if p.Spec.Init != nil {
		log, err := t.own(openLog(filepath.Join(t.dir, "init.log")))
		if err != nil {
			return err
		}
		b.stdio[1], b.stdio[2] = log, log
	}
	if err := joinFiles(p.Group.Joins(), p.Group.V1, b.files, t.own); err != nil {
		return err
	}
	if p.Group.V2() {
		if b.cgroup, err = t.own(unix.Open(p.Group.Processes(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)); err != nil {
			return fmt.Errorf("open %s: %w", p.Group.Processes(), err)
		}
	}
	if b.files[imageFD], err = stage0.Executable(); err != nil {
		return err
	}
	if p.Under.Space != 0 {
		b.files[parentFD] = t.parent.pidfd
		if p.Under.Space&unix.CLONE_NEWPID != 0 {
			b.pidns = t.parent.pidfd
		}
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

// open clones the tree out of msh's own mount table.
func (t *Tree) open() (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(t.Source, &st); err != nil {
		return -1, t.bad("a path that is there: " + err.Error())
	}
	if t.Dir && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return -1, t.bad("a directory")
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, t.Source, uint(openTreeFlags(t.Below)))
	if err == nil {
		// A clone of a shared mount is one more peer of it: what is mounted in the
		// machine would show up outside, and pivot_root refuses it.
		attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("%s: make the clone of %s private: %w", t.Param, t.Source, err)
		}
		return fd, nil
	}
	if errors.Is(err, unix.ENOSYS) {
		return -1, unsupported("Linux 5.2 or newer has it", "open_tree(2)")
	}
	return -1, fmt.Errorf("%s: open_tree %s: %w", t.Param, t.Source, err)
}

func (t *Tree) bad(want string) error {
	kind, param, _ := strings.Cut(t.Param, ": ")
	return bad(kind, param, t.Source, want)
}

func joinFiles(paths, controllers []string, into map[stage0.FD]int, own func(int, error) (int, error)) error {
	for i, file := range paths {
		fd, err := own(unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0))
		if err != nil {
			return fmt.Errorf("open %s: %w", file, err)
		}
		into[joinFD(controllers[i])] = fd
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
		mid.close()
		t.reapStray()
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
// is msh's own: the undoing of the group would kill it, but not reap it.
func (t *Txn) reapStray() {
	pids, err := t.plan.Group.Pids()
	if err != nil {
		return // the undoing meets it again
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		reap(fd)
		unix.Close(fd)
	}
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
	null, err := t.own(unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0))
	if err != nil {
		return err
	}
	b := &birth{program: s, stdio: [3]int{null, null, null}, files: map[stage0.FD]int{procFD: proc, parentFD: t.parent.pidfd}, cgroup: -1, pidns: -1}
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

// bringUp attaches what needs the child's namespaces, lets it go on, and waits
// until it has executed its init.
func (t *Txn) bringUp(c *Child) (*Machine, error) {
	p := t.plan
	if p.Parks || p.relayed() {
		if err := t.shiftOwners(c); err != nil {
			return nil, err
		}
		err := p.each(func(r Resource) error {
			if r, ok := r.(Attacher); ok {
				if err := t.step("attach"); err != nil {
					return err
				}
				return r.Attach(t, c)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if err := t.step("let the child go on"); err != nil {
			return nil, err
		}
		if _, err := unix.Write(c.sync, []byte("g")); err != nil && err != unix.EPIPE {
			return nil, fmt.Errorf("release the child: %w", err)
		}
	}
	cancel, err := newCanceller(t.ctx)
	if err != nil {
		return nil, err
	}
	defer cancel.close()
	if _, err := cancel.await(t.ctx, time.Time{}, c.sync); err != nil {
		return nil, err
	}
	if err := c.failure(); err != nil {
		return nil, t.explain(err)
	}
	if ended(c.pidfd) && p.Spec.Init == nil {
		st, err := reap(c.pidfd)
		return nil, errors.Join(err, fmt.Errorf("its init was killed on the way: code %d%s", st.Code(), t.oom()))
	}
	if err := t.step("write the machine down"); err != nil {
		return nil, err
	}
	m := newMachine(t.lab, t.parent, p)
	m.pid, m.pidfd, m.start, m.mine, m.ledger = c.pid, c.pidfd, startTime(c.pid), true, t.ledger
	if err := m.save(); err != nil {
		return nil, err
	}
	if err := t.host.confineNew(m); err != nil {
		return nil, err
	}
	unix.Close(c.blob)
	return m, nil
}

// oom says so where the control group has run out of memory.
func (t *Txn) oom() string {
	if t.plan.Limits.MemoryMax != nil && *t.plan.Limits.MemoryMax < 4<<20 {
		return fmt.Sprintf(" (memory: max: %d bytes may be too little to start in)", *t.plan.Limits.MemoryMax)
	}
	return ""
}

// shiftOwners gives the trees the owners of the machine's id space. The child
// has them open already, but has not mounted them.
func (t *Txn) shiftOwners(c *Child) error {
	var userns = -1
	for _, tree := range t.plan.Trees {
		if !tree.IDs {
			continue
		}
		if err := t.step("shift the owners of " + tree.Source); err != nil {
			return err
		}
		if userns < 0 {
			var err error
			if userns, err = t.own(unix.Open(fmt.Sprintf("/proc/%d/ns/user", c.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)); err != nil {
				return fmt.Errorf("open the child's user namespace: %w", err)
			}
		}
		fd, err := t.treeOf(c, tree)
		if err != nil {
			return err
		}
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
			if errors.Is(err, unix.EINVAL) {
				return unsupported("ext4, xfs, btrfs and, since Linux 6.3, tmpfs can, an overlay cannot: take a directory on one of these, or the parent's own ids by uidspace(map=[(0, 0, 65536)])", "%s: %s: owners shifted into a uidspace (idmapped mount) on this file system", tree.Param, tree.Source)
			}
			return fmt.Errorf("%s: shift the owners of %s: %w", tree.Param, tree.Source, err)
		}
	}
	return nil
}

// treeOf is the descriptor of a tree: msh's own, or the one the intermediate
// opened and the child has inherited.
func (t *Txn) treeOf(c *Child, tree *Tree) (int, error) {
	if !t.plan.relayed() {
		return t.trees[tree.FD], nil
	}
	n, err := c.result(tree.ref)
	if err != nil {
		return -1, err
	}
	return t.own(unix.PidfdGetfd(c.pidfd, int(n), 0))
}

// explain says where in the making of the machine the child failed, in the
// user's words where the step comes of a parameter.
func (t *Txn) explain(err error) error {
	var e *stepError
	if !errors.As(err, &e) {
		return err
	}
	for _, tree := range t.plan.Trees {
		if t.plan.relayed() && e.at == int(tree.ref) {
			return tree.bad("a path that is there, in " + t.parent.Name() + ": " + e.errno.Error())
		}
	}
	if e.step.Nr == unix.SYS_EXECVE && t.plan.Spec.Init != nil {
		return fmt.Errorf("init: %w", err)
	}
	return err
}
