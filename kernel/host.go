package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/handover"
	"msh/kernel/ledger"
	"msh/kernel/netx"
	"msh/kernel/rawfile"
)

// DefaultState is where msh keeps what it must remember of machines.
const DefaultState = "/run/msh"

// teardown bounds how long the end of a machine may take: what cannot be ended
// by then (a process in uninterruptible sleep) is reported.
const teardown = 10 * time.Second

// Host is the computer, as the root of the tree of machines: its state directory,
// its control groups, the book of what machines have exclusively.
//
//	/run/msh/.book/         one file per claim
//	/run/msh/LAB/.owner     locked by the msh that runs the lab
//	/run/msh/LAB/MACHINE/   ledger, logs
//	/run/msh/LAB/.nets/NET/ ledger, ns: the network namespace of a vnet, pinned
//	/run/msh/LAB/.guard/    ledger: a control group that is kept from devices
type Host struct {
	State  string
	Cgroup *cgroup.Host
	Fault  Fault
	book   *ledger.Book
	space  *userSpace // of the user who runs msh; nil for root
	apart  bool       // for tests: it is as another computer, on which paths lead elsewhere
}

// Fault makes a step fail, to prove that nothing is left behind. Steps count
// from 1; 0 is no fault.
type Fault struct {
	Parent int  // the step of the transaction that fails
	Child  int  // the step of the child's program that fails
	Kill   bool // instead of failing, msh is killed at that step
	// Whole, if not nil, counts the steps of all transactions together, where else
	// each counts its own.
	Whole *atomic.Int64
	Do    func() // what is done instead of failing
}

// NewHost looks at the host; it makes nothing. state "" is DefaultState for root, a
// directory of the user's own for others.
func NewHost(state string) (*Host, error) {
	u, err := theSpace()
	if err != nil {
		return nil, err
	}
	netx.OneWay = u != nil
	if state, err = stateDir(state); err != nil {
		return nil, err
	}
	cg, err := detectGroups(u)
	if err != nil {
		return nil, err
	}
	return &Host{State: state, Cgroup: cg, book: &ledger.Book{Dir: filepath.Join(state, ".book")}, space: u}, nil
}

// Labs lists the names of the labs that have a directory, whoever owns them.
func (h *Host) Labs() ([]string, error) {
	return h.dirs(h.State)
}

// dirs lists subdirectories whose names do not begin with a dot.
func (h *Host) dirs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Owned tells whether an msh runs that a lab belongs to; kept machines need none.
func (h *Host) Owned(lab string) bool {
	f, err := os.Open(filepath.Join(h.State, lab, ownerFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Sweep undoes what labs without an owner have left: machines that were not
// meant to outlive their script, and half-made ones. With dead it also removes
// kept machines that have ended. It returns what it removed, as LAB/MACHINE.
func (h *Host) Sweep(ctx context.Context, dead bool) (removed []string, err error) {
	labs, err := h.Labs()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, lab := range labs {
		errs = append(errs, h.mend(ctx, lab))
		got, err := h.sweepLab(ctx, lab, dead)
		removed = append(removed, got...)
		errs = append(errs, err)
	}
	if dead {
		errs = append(errs, h.moves().Sweep(func(at handover.Running) error { return h.clearMove(ctx, at) }), h.sweepLayers())
	}
	h.tidy()
	return removed, errors.Join(errs...)
}

// tidyLab removes what is left of a lab whose last machine has ended by another hand
// than its script's.
func (h *Host) tidyLab(ctx context.Context, lab string) error {
	_, err := h.sweepLab(context.WithoutCancel(ctx), lab, false)
	h.tidy()
	return err
}

// tidy removes the state directory and the book where nobody uses them any more.
func (h *Host) tidy() {
	h.book.Tidy()
	os.Remove(h.State)
}

func (h *Host) sweepLab(ctx context.Context, lab string, dead bool) (removed []string, err error) {
	removed, err = h.clearLab(ctx, lab, func(name string) (bool, error) {
		m, err := h.load(lab, name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // half made
		}
		if err != nil {
			return true, err // a newer msh made it: it may be a kept machine
		}
		defer m.close()
		return m.Spec().Keep && (!dead || m.State() != "dead"), nil
	})
	if errors.Is(err, errOwned) {
		return nil, nil
	}
	return removed, err
}

// clearLab undoes the machines of a lab whose owner has ended, but for those that
// stay: those inside others first, as these may have given them something of
// theirs. A lab that has an owner is errOwned.
func (h *Host) clearLab(ctx context.Context, lab string, stays func(name string) (bool, error)) (removed []string, err error) {
	dir := filepath.Join(h.State, lab)
	lock, err := lockOwner(dir, false)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	names, err := h.dirs(dir)
	if err != nil {
		return nil, err
	}
	innerFirst(dir, names)
	var errs []error
	for _, name := range names {
		stay, err := stays(name)
		if err == nil && !stay {
			err = h.undoNetsIn(ctx, lab, lab+"/"+name)
		}
		if err == nil && !stay {
			err = h.undoMachine(ctx, filepath.Join(dir, name))
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s/%s: %w", lab, name, err))
		case !stay:
			removed = append(removed, lab+"/"+name)
		}
	}
	left, err := h.dirs(dir)
	if err == nil {
		err = h.clearNets(ctx, lab, len(left) == 0)
	}
	errs = append(errs, err, h.dropGuard(ctx, lab))
	releaseLab(dir)
	return removed, errors.Join(errs...)
}

// innerFirst sorts the machines of a lab's directory: those inside others first.
func innerFirst(dir string, names []string) {
	slices.SortStableFunc(names, func(a, b string) int { return depth(filepath.Join(dir, b)) - depth(filepath.Join(dir, a)) })
}

// depth is how deep inside others a machine lies, by the group in its ledger.
func depth(dir string) int {
	entries, err := ledger.Read(filepath.Join(dir, "ledger"))
	if err != nil {
		return 0
	}
	for _, e := range entries {
		var g cgroup.Group
		if e.Op == "cgroup" && json.Unmarshal(e.Arg, &g) == nil {
			return strings.Count(g.Path, "/")
		}
	}
	return 0
}

// releaseLab removes a lab's directory if no machine is in it. The caller holds
// the lock.
func releaseLab(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() != ownerFile && e.Name() != stillDir }) {
		return
	}
	os.RemoveAll(filepath.Join(dir, stillDir)) // of machines that have ended meanwhile
	os.Remove(filepath.Join(dir, ownerFile))
	os.Remove(dir)
}

const ownerFile = ".owner"

var errOwned = errors.New("another msh runs it")

// lockOwner locks a lab's owner file. The lock ends with its holder, however it
// dies: that is how an abandoned lab is told from one at work.
func lockOwner(dir string, create bool) (*os.File, error) {
	flags := unix.O_RDWR
	if create {
		flags |= unix.O_CREAT
	}
	path := filepath.Join(dir, ownerFile)
	deadline := time.Now().Add(time.Second)
	for {
		if create {
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				return nil, err
			}
			err := os.Mkdir(dir, 0o755)
			if errors.Is(err, fs.ErrNotExist) {
				continue // the last lab's end removed the one above in between
			}
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
		}
		f, err := os.OpenFile(path, flags, 0o600)
		if errors.Is(err, fs.ErrNotExist) && create {
			continue // a sweep removed the directory in between
		}
		if errors.Is(err, fs.ErrNotExist) {
			// Made by an msh that died, or is about to lock: an empty one may go.
			os.Remove(dir)
			return nil, errOwned
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			alive := ownerAlive(f)
			var st unix.Stat_t
			if e := unix.Fstat(int(f.Fd()), &st); e != nil {
				err = e
			}
			f.Close()
			switch {
			case !errors.Is(err, unix.EWOULDBLOCK):
				return nil, fmt.Errorf("lock %s: %w", path, err)
			case alive:
				return nil, errOwned
			case time.Now().After(deadline):
				if err := breakLock(dir, path, st); err != nil {
					return nil, err
				}
				flags |= unix.O_CREAT
				continue
			}
			// A child that the owner had not yet seen execute holds it a moment more.
			time.Sleep(time.Millisecond)
			continue
		}
		// The file may have been removed between open and lock.
		var a, b unix.Stat_t
		if unix.Fstat(int(f.Fd()), &a) == nil && unix.Stat(path, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev {
			return f, nil
		}
		f.Close()
		if !create {
			return nil, errOwned
		}
	}
}

// breakLock gives a lab whose owner is dead a new owner file, where the old one
// is still locked: by a child that was frozen before it could execute anything.
// The directory is locked meanwhile, so that only one of several does.
func breakLock(dir, path string, old unix.Stat_t) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	var now unix.Stat_t
	if err := unix.Stat(path, &now); err != nil || now.Ino != old.Ino || now.Dev != old.Dev {
		return nil // another one has
	}
	return os.Remove(path)
}

// ownerAlive tells whether the msh that an owner file names is running. It has
// written its name there once it had the lock.
func ownerAlive(f *os.File) bool {
	var pid int
	var start uint64
	var boot string
	if n, _ := fmt.Fscan(f, &pid, &start, &boot); n < 3 {
		return true
	}
	return boot == bootID() && startTime(pid) == start
}

// undoMachine undoes everything in the ledger of a machine's directory and
// removes the directory. It is the only teardown there is.
func (h *Host) undoMachine(ctx context.Context, dir string) error {
	return h.undoLedger(ctx, dir, func() {})
}

// undoLedger is undoMachine for one whose processes are ending: it reads the ledger
// and then calls wait before it undoes anything.
func (h *Host) undoLedger(ctx context.Context, dir string, wait func()) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardown)
	defer cancel()
	file := filepath.Join(dir, "ledger")
	for {
		l, err := ledger.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			wait()
			return os.RemoveAll(dir) // nothing was made yet
		}
		if err != nil {
			return err
		}
		wait()
		err = l.Undo(func(e ledger.Entry) error { return h.undo(ctx, e) })
		grown, e := l.Grown()
		l.Close()
		if err := errors.Join(err, e); err != nil {
			return err
		}
		if !grown {
			// In most there is nothing else.
			if os.Remove(file) == nil && unix.Rmdir(dir) == nil {
				return nil
			}
			return os.RemoveAll(dir)
		}
		// Once more: another msh may have written an entry since, to keep the
		// machine off a CPU.
	}
}

var bootID = sync.OnceValue(func() string {
	b, err := rawfile.Read("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})
