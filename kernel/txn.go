package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
	"msh/kernel/netx"
	"msh/kernel/stage0"
)

// Txn makes a machine of a plan. Each effect that the kernel would not undo by
// itself is written to the ledger before it is made; when a step fails, the
// ledger undoes the steps before it.
type Txn struct {
	stepper
	host   *Host
	lab    *Lab
	parent *Machine
	plan   *Plan
	ledger *ledger.Ledger
	dir    string
	net    *netx.NS // the child's, where msh has made it or a kind attaches something to it
	pinned bool     // whether that is pinned

	layers int     // the memory of its overlay, -1 for none; the machine's once that is up
	wake   *waking // set where it is not born, but made anew of what was saved

	fds   []int             // to be closed at the end
	trees map[stage0.FD]int // those opened by msh itself

	network *startedNet // where it is made ahead

	answers *answerer         // of uname
	uname   int               // a line to who answers
	shown   map[stage0.FD]int // what /proc is to tell of it, as mounts
}

// Child is a process between clone and exec, parked in its new namespaces.
type Child struct {
	*process
	sync int // msh's end of the line to it
}

func newTxn(ctx context.Context, lab *Lab, parent *Machine, plan *Plan) *Txn {
	return &Txn{stepper: stepper{ctx: ctx, fault: lab.host.Fault}, host: lab.host, lab: lab, parent: parent, plan: plan, layers: -1, trees: map[stage0.FD]int{}, dir: filepath.Join(lab.dir(), plan.Spec.Name)}
}

func (t *Txn) owner() string { return t.lab.name + "/" + t.plan.Spec.Name }

// run takes the transaction through, or back.
func (t *Txn) run() (*Machine, error) {
	defer func() {
		for _, fd := range t.fds {
			unix.Close(fd)
		}
		if t.layers >= 0 {
			unix.Close(t.layers)
		}
		if t.net != nil {
			t.net.Close()
		}
	}()
	m, err := t.forward()
	if err == nil {
		return m, nil
	}
	defer t.answers.close()
	if t.ledger != nil {
		t.ledger.Close()
		if e := t.host.undoMachine(t.ctx, t.dir); e != nil {
			err = errors.Join(err, fmt.Errorf("and undoing what was made: %w", e))
		}
	}
	return nil, fmt.Errorf("machine %s: %w", t.plan.Spec.Name, err)
}

func (t *Txn) forward() (*Machine, error) {
	if t.plan.netAhead() && !t.restores() {
		t.network.plan <- t.plan
	}
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
	if err := t.answerUname(); err != nil {
		return nil, err
	}
	if err := t.makeGroup(); err != nil {
		return nil, err
	}
	if err := t.guardDevices(); err != nil {
		return nil, err
	}
	if t.restores() {
		return t.restore()
	}
	if t.wake != nil && !t.plan.layered() { // with its files alone, which lie in a directory
		if err := t.takeLayers(); err != nil {
			return nil, err
		}
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
	g.Owner = t.host.State + ":" + t.owner()
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
	limits := g.Limits
	if t.restores() {
		g.Limits, _, _ = tight(limits)
	}
	err := g.Make()
	g.Limits = limits
	if errors.Is(err, cgroup.ErrCrowded) {
		return withHint(err, delegate)
	}
	return explainState(err)
}

// own has a descriptor closed at the end of the transaction.
func (t *Txn) own(fd int, err error) (int, error) {
	if err == nil {
		t.fds = append(t.fds, fd)
	}
	return fd, err
}

// bringUp attaches what needs the child's namespaces, lets it go on, and waits
// until it has executed its init.
func (t *Txn) bringUp(c *Child) (*Machine, error) {
	p := t.plan
	if p.Group.Tracker == "" {
		if err := t.writeInit(c); err != nil {
			return nil, err
		}
	}
	if p.netAhead() {
		if err := t.giveNetwork(c); err != nil {
			return nil, err
		}
	}
	if p.Parks || p.relayed() {
		if err := t.shiftOwners(c); err != nil {
			return nil, err
		}
		err := t.attach(c)
		if f := c.failure(); err != nil && f != nil {
			err = t.explain(f) // it died meanwhile, and its namespaces with it
		}
		if err != nil {
			return nil, err
		}
		if err := t.takeLimits(c); err != nil {
			return nil, err
		}
		if err := t.step("let the child go on"); err != nil {
			return nil, err
		}
		if _, err := unix.Write(c.sync, []byte("g")); err != nil && err != unix.EPIPE {
			return nil, fmt.Errorf("release the child: %w", err)
		}
	}
	// What is to be written down of the machine is laid out while the child is busy.
	m := newMachine(t.lab, t.parent, p)
	m.pid, m.pidfd, m.start, m.ledger, m.answers = c.pid, c.pidfd, startTime(c.pid), t.ledger, t.answers
	record, err := m.recordEntry()
	if err != nil {
		return nil, err
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
	if err := t.settleDown(m, record); err != nil {
		return nil, err
	}
	unix.Close(c.blob)
	// Every descriptor kept makes each later clone dearer; it is opened when needed.
	m.ledger = nil
	return m, t.ledger.Close()
}

// settleDown writes down a machine that is up, and has its init looked after.
func (t *Txn) settleDown(m *Machine, record ledger.Entry) error {
	if err := t.step("write the machine down"); err != nil {
		return err
	}
	if err := m.saveEntry(record); err != nil {
		return err
	}
	if err := t.host.confineNew(m); err != nil {
		return err
	}
	if err := m.watchInit(); err != nil {
		return err
	}
	if !t.plan.Spec.Keep && t.layers >= 0 {
		m.layers, t.layers = t.layers, -1
	}
	return nil
}

// attach lets the kinds work on the child's namespaces.
func (t *Txn) attach(c *Child) error {
	return t.plan.each(func(r Resource) error {
		if r, ok := r.(Attacher); ok {
			if err := t.step("attach"); err != nil {
				return err
			}
			return r.Attach(t, c)
		}
		return nil
	})
}

// oom guesses at the cause where the control group has little memory.
func (t *Txn) oom() string {
	if t.plan.Limits.MemoryMax != nil && *t.plan.Limits.MemoryMax < 4<<20 {
		return fmt.Sprintf(" (memory: max: %d bytes may be too little to start in)", *t.plan.Limits.MemoryMax)
	}
	return ""
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
