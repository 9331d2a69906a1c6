package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
	"msh/kernel/criu"
)

// # Snapshots
//
// A snapshot is what checkpoint writes: a manifest, and for each machine sections
// of its own. It goes to a checkpoint.Writer and comes from a checkpoint.Reader,
// either of which may be a file or a pipe, and it may hold one machine or many.
//
//	Snapshot                                  Wake
//	────────                                  ────
//	look through the processes (preflight)    read the manifest: can it be woken here?
//	manifest                                  unpack into memory, check every digest
//	(rounds of pre-copy: memory.1, …)         networks that are missing are made
//	criu is started; ports off their switches a Txn for each machine, as for any other,
//	──── one instant for all ────               but that criu makes the processes
//	criu dumps into memory, and meanwhile:    ──── all wait for each other ────
//	state, files                              ports onto their switches
//	(hibernate: memory as it comes, commit)   they run
//	ports on again, they run; or are gone
//	memory, commit
//
// The sections of a machine: "state" (savedState, JSON), "upper", "tree.NAME"
// (what was in a tmpfs), "logs", "pages-N" and "memory", with "memory.1" and so on before it where there was pre-copy.

// SnapshotOptions say what becomes of the machines.
type SnapshotOptions struct {
	// FilesOnly leaves memory and processes out: what wakes is a machine with the
	// files, whose init starts anew.
	FilesOnly bool
	// Hibernate ends the machines once all is written and committed. Until then
	// they are frozen, and go on where anything fails.
	Hibernate bool
	// Commit, if not nil, is called once the writer has been committed; with
	// Hibernate the machines stand still yet, and its error lets them go on.
	Commit func(context.Context) error
	// Hold has the machines stand still by their control groups, so that they do so
	// even when this process has ended. A Commit's handover.ErrStays leaves them so,
	// off their networks, and their standstill as it is then.
	Hold bool
	// PreCopy, if not nil, is asked after each round of memory that is written
	// ahead while the machines run, whether there shall be another, and before the
	// first (round 0, with no figures). It needs a kernel that tells which pages
	// have changed; where it does not, there is no round.
	PreCopy func(round int, s []*criu.Stats) (again bool)

	// Whole: these are all machines of their lab, all of whose networks are saved too.
	Whole bool

	still *standstill // to be filled in; nil where nobody but this needs to know of it
	// pass, if not nil, is what the memory of the only machine is handed on by, in the
	// place of the writer.
	pass *passing
}

// Version tells which msh this package is part of, for what it writes.
var Version = func() string { return "unknown" }

// SnapshotReport tells how it went.
type SnapshotReport struct {
	Info   *checkpoint.Info
	Frozen time.Duration // from before the first was stopped until the last went on
	Rounds int           // of pre-copy
	// Left are those things that a snapshot does not hold, in words.
	Left []string
}

// Snapshot saves the running machine in a file: its processes, memory, files,
// sockets, addresses and limits. It runs on, or with Hibernate is gone. When it
// fails there is no file, or the one that was there before, and the machine runs as
// before.
func (m *Machine) Snapshot(ctx context.Context, path string, o SnapshotOptions) (*SnapshotReport, error) {
	return SnapshotFile(ctx, path, []*Machine{m}, o)
}

// SnapshotFile saves machines of one lab, at one instant, in a file.
func SnapshotFile(ctx context.Context, path string, machines []*Machine, o SnapshotOptions) (*SnapshotReport, error) {
	w, err := checkpoint.Create(path, checkpoint.Options{})
	if err != nil {
		return nil, err
	}
	r, err := Snapshot(ctx, w, machines, o)
	if err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return r, nil
}

// Snapshot saves machines of one lab, at one instant, and commits the writer. After
// an error the writer is the caller's to abort.
func Snapshot(ctx context.Context, w *checkpoint.Writer, machines []*Machine, o SnapshotOptions) (*SnapshotReport, error) {
	if len(machines) == 0 {
		return nil, bad("snapshot", "", nil, "a machine at least")
	}
	for _, m := range machines {
		if m.isHost() {
			return nil, NotHost("snapshot")
		}
	}
	s := newSnapshot(ctx, w, machines, o)
	r, err := s.run()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", s.verb(), s.names(), err)
	}
	return r, nil
}

// Preview looks through the machines, as Snapshot does first, and returns what it
// would say of them.
func Preview(ctx context.Context, machines []*Machine, o SnapshotOptions) (*checkpoint.Manifest, error) {
	s := newSnapshot(ctx, nil, machines, o)
	defer s.lock()()
	defer func() {
		for _, v := range s.all {
			v.close()
		}
	}()
	if err := s.preflight(); err != nil {
		return nil, err
	}
	return s.manifest()
}

// snapshot is one under way.
type snapshot struct {
	stepper
	w      *checkpoint.Writer
	o      SnapshotOptions
	criu   *criu.Criu
	all    []*saving
	frozen time.Time     // since when they stand still
	stood  time.Duration // for how long they have
	rounds int
}

func newSnapshot(ctx context.Context, w *checkpoint.Writer, machines []*Machine, o SnapshotOptions) *snapshot {
	s := &snapshot{stepper: stepper{ctx: ctx, fault: machines[0].host.Fault}, w: w, o: o}
	if o.still == nil {
		s.o.still = &standstill{}
	}
	for _, m := range machines {
		s.all = append(s.all, &saving{snapshot: s, m: m, upper: -1, work: -1})
	}
	return s
}

func (s *snapshot) verb() string {
	if s.o.Hibernate {
		return "hibernate"
	}
	return "snapshot"
}

func (s *snapshot) names() string {
	var names []string
	for _, v := range s.all {
		names = append(names, v.m.Name())
	}
	return strings.Join(names, ", ")
}

func (s *snapshot) run() (*SnapshotReport, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	defer s.lock()()
	defer func() {
		for _, v := range s.all {
			v.close()
		}
	}()
	if err := s.preflight(); err != nil {
		return nil, err
	}
	if err := s.startCriu(); err != nil {
		return nil, err
	}
	m, err := s.manifest()
	if err != nil {
		return nil, err
	}
	if err := s.step("write the manifest"); err != nil {
		return nil, err
	}
	if err := s.w.Manifest(m); err != nil {
		return nil, err
	}
	if err := s.preCopy(); err != nil {
		return nil, err
	}
	r := &SnapshotReport{}
	if err := s.standStill(r); err != nil {
		return nil, err
	}
	if !s.o.Hibernate {
		if err := s.finish(r); err != nil {
			return nil, err
		}
	}
	for _, v := range s.all {
		r.Left = append(r.Left, v.left...)
	}
	return r, nil
}

// write writes what has to be of the instant at which all stand still, while criu is
// at their memory, and where they hibernate what of that there is already. Those that
// run on shall do so soon: packing would take the time of the cores from criu.
func (s *snapshot) write() error {
	if err := s.writeFiles(); err != nil {
		return err
	}
	if s.o.pass != nil { // who reads need not wait for what else there is
		if err := s.all[0].writeSection(sectionPassed, nil); err != nil {
			return err
		}
	}
	for _, v := range s.all {
		if s.o.Hibernate && !s.o.FilesOnly {
			if err := v.writePages(); err != nil {
				return err
			}
		}
		<-v.reached
	}
	if err := s.failed(); err != nil || s.o.pass == nil {
		return err
	}
	if err := s.step("hand on its memory"); err != nil {
		return err
	}
	return s.o.pass.give(s.all[0].work, s.all[0].images)
}

// writeFiles writes what is in no memory, of each machine once it stands still for good.
func (s *snapshot) writeFiles() error {
	for _, v := range s.all {
		<-v.still
		if err := s.failed(); err != nil {
			return err
		}
		if err := s.step("write its state"); err != nil {
			return err
		}
		if err := v.writeState(); err != nil {
			return err
		}
		if err := s.step("write its files"); err != nil {
			return err
		}
		if err := v.writeUpper(); err != nil {
			return err
		}
		if err := v.writeTmpfs(); err != nil {
			return err
		}
		if err := v.writeLogs(); err != nil {
			return err
		}
	}
	return nil
}

// writeUpper writes the upper layer, as it is without what criu makes in it.
func (v *saving) writeUpper() error {
	if v.upper < 0 {
		return nil
	}
	mounts, err := v.m.mounts()
	if err != nil {
		return err
	}
	if binds(mounts, v.state.Mounts) {
		<-v.reached
		if err := v.failed(); err != nil {
			return err
		}
	}
	return v.w.Upper(v.ctx, v.m.Name(), v.upper)
}

// finish writes the rest of what criu has put into memory, and commits.
func (s *snapshot) finish(r *SnapshotReport) error {
	for _, v := range s.all {
		if v.images == nil || s.o.pass != nil {
			continue
		}
		if err := s.step("write its memory"); err != nil {
			return err
		}
		if !s.o.Hibernate {
			if err := v.writePages(); err != nil {
				return err
			}
		}
		if err := s.w.Images(s.ctx, v.m.Name(), checkpoint.SectionMemory, int(v.images.Fd())); err != nil {
			return err
		}
	}
	err := s.step("commit")
	if err != nil {
		return err
	}
	if r.Info, err = s.w.Commit(); err != nil {
		return err
	}
	s.point()
	if s.o.Commit != nil {
		return s.o.Commit(s.ctx)
	}
	return nil
}

// end destroys machines that have hibernated: criu has ended their processes.
func (s *snapshot) end() error {
	var errs []error
	for _, v := range s.all {
		s.point()
		errs = append(errs, v.m.destroy(context.WithoutCancel(s.ctx)))
	}
	return errors.Join(errs...)
}

// preCopy writes memory ahead, in rounds.
func (s *snapshot) preCopy() error {
	if s.o.PreCopy == nil || s.o.FilesOnly {
		return nil
	}
	f, err := s.criu.Features(s.ctx)
	if err != nil || !f.Track {
		return err
	}
	var stats []*criu.Stats
	for s.o.PreCopy(s.rounds, stats) {
		s.rounds++
		stats = nil
		for _, v := range s.all {
			if err := s.step("send memory ahead"); err != nil {
				return err
			}
			st, err := v.preDump(s.rounds)
			if err != nil {
				return err
			}
			stats = append(stats, st)
		}
	}
	return nil
}

// saving is a machine of a snapshot.
type saving struct {
	*snapshot
	m       *Machine
	pids    []int
	state   savedState
	upper   int // descriptor of the upper layer, -1 for none
	work    int // of the memory that criu writes to
	images  *os.File
	net     *os.File // the network that criu stands in to save it, nil for the host's
	worker  *criu.Worker
	ports   []*heldPort
	stopped bool     // by msh, to be let go on
	left    []string // what the snapshot does not hold

	started chan struct{} // closed where criu is about to freeze it, or has failed
	begin   chan error    // tells whether it is to be frozen
	still   chan struct{} // closed where it stands still, or has failed
	reached chan struct{} // closed where criu has saved it, or has failed
	release chan error    // tells whether it is to go on as before
	over    chan struct{} // closed where criu has let go of it, or has failed

	network chan error // what came of looking at its network, nil where nothing stands still for criu

	err   atomic.Pointer[error] // what the dump has ended with
	stats *criu.Stats
}

func (v *saving) close() {
	for _, fd := range []int{v.upper, v.work} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	for _, f := range []*os.File{v.images, v.net} {
		if f != nil {
			f.Close()
		}
	}
	v.worker.Close()
}
