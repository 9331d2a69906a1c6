package kernel

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"msh/kernel/handover"
)

// standStill has the machines stand still for as long as that takes, and ends those
// that hibernate. A note tells of it, until nothing is left to be done.
func (s *snapshot) standStill(r *SnapshotReport) error {
	first, n := s.all[0].m, s.o.still
	for _, v := range s.all {
		n.Machines = append(n.Machines, v.m.Name())
		if s.together() && !v.state.Frozen {
			n.Stopped = append(n.Stopped, v.m.Name())
		}
	}
	if err := s.step("write down that they will stand still"); err != nil {
		return err
	}
	if err := first.host.newStandstill(first.labID, n); err != nil {
		return err
	}
	err := s.freeze(func() error {
		err := s.write()
		if err == nil && s.o.Hibernate {
			if err = s.finish(r); err == nil {
				// Nothing takes it back any more. Where it cannot be written they go on
				// after a crash, with the file beside them, or are in doubt.
				n.End = true
				n.save()
			}
		}
		return err
	})
	r.Frozen, r.Rounds = s.stood, s.rounds
	if errors.Is(err, handover.ErrStays) {
		return errors.Join(err, n.leave())
	}
	if n.End {
		if err != nil {
			s.all[0].left = append(s.all[0].left, fmt.Sprintf("criu has not ended all of it: %v", err))
		}
		if err := s.end(); err != nil {
			return err // the note stays: who comes next ends them
		}
	} else if err != nil {
		return errors.Join(err, n.drop())
	}
	s.point()
	if err := n.drop(); err != nil || !n.End || first.lab != nil {
		return err
	}
	return first.host.tidyLab(s.ctx, first.labID)
}

// together tells whether they are stopped one by one before the first is dumped.
func (s *snapshot) together() bool { return len(s.all) > 1 || s.o.FilesOnly || s.o.Hold }

// lock keeps the machines as they are: nothing is started in them, nothing of
// theirs is changed.
func (s *snapshot) lock() (unlock func()) {
	all := make([]*Machine, 0, len(s.all))
	for _, v := range s.all {
		all = append(all, v.m)
	}
	slices.SortFunc(all, func(a, b *Machine) int { return strings.Compare(a.ID(), b.ID()) }) // in one order, always
	for _, m := range all {
		m.setting.Lock()
		m.starting.Lock()
	}
	return sync.OnceFunc(func() {
		for _, m := range slices.Backward(all) {
			m.starting.Unlock()
			m.setting.Unlock()
		}
	})
}

// freeze brings the machines to a stand, calls write, and lets them go on, or where
// they are to hibernate ends them if write succeeded. criu is started before that, as
// it takes longer to start than to save a small machine.
func (s *snapshot) freeze(write func() error) error {
	var wg sync.WaitGroup
	for _, v := range s.all {
		v.started, v.begin = make(chan struct{}), make(chan error, 1)
		v.still, v.reached, v.release, v.over = make(chan struct{}), make(chan struct{}), make(chan error, 1), make(chan struct{})
		wg.Go(func() {
			err := v.dump()
			v.err.Store(&err)
			for _, gate := range []chan struct{}{v.started, v.still, v.reached, v.over} {
				pass(gate)
			}
		})
	}
	for _, v := range s.all {
		<-v.started
	}
	err := s.failed()
	if err == nil {
		s.frozen = time.Now()
		err = s.stop()
	}
	for _, v := range s.all {
		v.begin <- err
	}
	if err == nil {
		err = write()
	}
	for _, v := range s.all {
		s.point()
		v.release <- err
	}
	for _, v := range s.all {
		<-v.over
	}
	if !errors.Is(err, handover.ErrStays) {
		s.goOn()
	}
	s.stood = time.Since(s.frozen)
	wg.Wait() // the processes of criu, which end meanwhile
	if err == nil {
		err = s.failed()
	}
	return err
}

// goOn lets all machines go on.
func (s *snapshot) goOn() {
	s.point()
	for _, v := range s.all {
		v.goOn()
		s.point()
	}
	for _, v := range s.all {
		v.awaitGoing()
	}
}

// pass closes a gate that its one keeper may have closed already.
func pass(gate chan struct{}) {
	select {
	case <-gate:
	default:
		close(gate)
	}
}

// stop takes several machines off their networks, and freezes them, before the first
// of them is dumped. A single one criu stops itself.
func (s *snapshot) stop() error {
	if !s.together() {
		return nil
	}
	for _, v := range s.all {
		if err := v.holdPorts(); err != nil {
			return err
		}
	}
	for _, v := range s.all {
		if err := v.stop(); err != nil {
			return err
		}
	}
	for _, v := range s.all {
		if err := v.awaitStop(); err != nil {
			return err
		}
	}
	return nil
}

// failed is what the dumps that have ended say.
func (s *snapshot) failed() error {
	var errs []error
	for _, v := range s.all {
		if err := v.err.Load(); err != nil {
			errs = append(errs, *err)
		}
	}
	return errors.Join(errs...)
}
