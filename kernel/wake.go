package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
	"msh/kernel/criu"
)

// WakeOptions say how a snapshot is woken. The zero value wakes it as it was.
type WakeOptions struct {
	Name string            // another name, of the only machine
	Nets map[string]string // other networks of the lab, by the names of those it had
	Keep bool              // outlives the script
	Pos  string
	// Addresses are others for its interfaces, in their order: one set, or for each
	// interface one. With Fresh the networks hand them out, and MACs are new as well:
	// so it is a second one beside the first.
	Addresses [][]Address
	Fresh     bool
	TCP       criu.TCP // what becomes of connections
	// Bases are the lower layers that are elsewhere here, by where they were.
	Bases map[string]string
	// Net, if not nil, changes what a network is to be that is made for the machines.
	Net func(*VNetSpec) error
	// Ready, if not nil, is called when all of it is made and nothing runs yet; its
	// error leaves nothing.
	Ready func(context.Context) error

	// pass, if not nil, is what the memory of the only machine comes by: see
	// SnapshotOptions.
	pass *passing
}

// WakeFile wakes the machines of a file. They are as any other that the lab has made.
// When it fails, nothing is left.
func (l *Lab) WakeFile(ctx context.Context, path string, o WakeOptions) ([]*Machine, error) {
	r, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	all, err := l.Wake(ctx, r, o)
	if err != nil {
		return nil, fmt.Errorf("wake %s: %w", filepath.Base(path), err)
	}
	return all, nil
}

// Wake wakes the machines of a snapshot: all at one instant. Nothing is made before
// the snapshot has been read to its end and found whole, but for a clone.
func (l *Lab) Wake(ctx context.Context, r *checkpoint.Reader, o WakeOptions) ([]*Machine, error) {
	wk := &wake{ctx: ctx, lab: l, o: o, manifest: r.Manifest()}
	defer wk.close()
	if err := wk.read(); err != nil {
		return nil, err
	}
	if err := wk.check(); err != nil {
		return nil, err
	}
	n, err := wk.note()
	if err != nil {
		return nil, err
	}
	var all []*Machine
	if err = wk.unpack(r); err == nil {
		err = wk.makeNets()
	}
	if err == nil {
		all, err = wk.run()
	}
	if err == nil {
		err = each(n.Asides, keepUpper)
	}
	if err != nil {
		err = errors.Join(err, wk.undo(all), wk.undoNets(), each(n.Asides, putUpperBack))
	}
	if e := n.drop(); e != nil && err == nil {
		return nil, errors.Join(e, wk.undo(all), wk.undoNets())
	}
	return all, err
}

// note has all end whom a crash finds half awake, where each alone would stay, and their
// upper layers be as they were. One that is not kept goes with its script anyway.
func (wk *wake) note() (*standstill, error) {
	n := &standstill{Waking: true}
	for _, w := range wk.all {
		n.Machines = append(n.Machines, w.spec.Name)
		if root, _ := w.spec.find("root").(*Root); root != nil && root.Upper != "" {
			w.aside = newAside(root.Upper)
			n.Asides = append(n.Asides, w.aside)
		}
	}
	if !wk.o.Keep && len(n.Asides) == 0 {
		return n, nil
	}
	err := wk.eachMissingNet(func(s *VNetSpec) error {
		n.Nets = append(n.Nets, s.Name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	wk.lab.mu.Lock()
	err = wk.lab.claim(wk.ctx)
	wk.lab.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return n, wk.lab.host.newStandstill(wk.lab.Name(), n)
}

// wake is one under way.
type wake struct {
	ctx      context.Context
	lab      *Lab
	o        WakeOptions
	manifest *checkpoint.Manifest
	criu     *criu.Criu
	all      []*waking
	nets     []*VNet // those it has made
	cables   []savedCable
	links    []*Link // those of the cables that have a machine at an end
}

// waking is a machine of it.
type waking struct {
	*wake
	saved  *checkpoint.Machine
	spec   *Spec // as it is to be
	plan   *Plan // once it is being made
	state  savedState
	logs   map[string][]byte
	layers int            // memory for the upper layer, -1 for none
	tmpfs  map[string]int // file systems in memory, by label
	work   int            // memory for the images
	images *os.File
	pages  []string // files of pages, not yet among the images
	aside  string   // where what belongs under root(upper=) is unpacked: see newAside

	child *Child // its init, once criu has made it

	reached chan struct{}
	release chan error
	machine *Machine
	err     error
}

func (wk *wake) close() {
	for _, w := range wk.all {
		for _, fd := range append(values(w.tmpfs), w.layers, w.work) {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		if w.images != nil {
			w.images.Close()
		}
	}
}

// run makes the machines, side by side, up to where nothing but to run is left, and
// lets them run together.
func (wk *wake) run() ([]*Machine, error) {
	var wg sync.WaitGroup
	for _, w := range wk.all {
		w.reached, w.release = make(chan struct{}), make(chan error, 1)
		wg.Go(func() {
			w.machine, w.err = wk.lab.fork(wk.ctx, wk.lab.Host(), w.spec, w)
			select {
			case <-w.reached:
			default:
				close(w.reached)
			}
		})
	}
	var errs []error
	for _, w := range wk.all {
		<-w.reached
		errs = append(errs, w.err)
	}
	err := errors.Join(errs...)
	if err == nil {
		err = wk.connect()
	}
	if err == nil && wk.o.Ready != nil {
		err = wk.o.Ready(wk.ctx)
	}
	for _, w := range wk.all {
		w.release <- err
	}
	wg.Wait()
	var all []*Machine
	errs = []error{err}
	for _, w := range wk.all {
		all = append(all, w.machine)
		if err == nil { // else it was passed to each
			errs = append(errs, w.err)
		}
	}
	for _, w := range wk.all {
		if w.machine != nil && w.state.Frozen {
			errs = append(errs, w.machine.Freeze(wk.ctx))
		}
	}
	if err = errors.Join(errs...); err == nil {
		err = wk.handOut(func(w *waking) *Machine { return w.machine })
	}
	if err == nil {
		return all, nil
	}
	return nil, errors.Join(err, wk.undo(all))
}

func (wk *wake) undo(all []*Machine) error {
	var errs []error
	for _, m := range slices.Backward(all) {
		if m != nil {
			errs = append(errs, m.destroy(context.WithoutCancel(wk.ctx)))
		}
	}
	return errors.Join(errs...)
}
