package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
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
// the snapshot has been read to its end and found whole.
func (l *Lab) Wake(ctx context.Context, r *checkpoint.Reader, o WakeOptions) ([]*Machine, error) {
	wk := &wake{ctx: ctx, lab: l, o: o, manifest: r.Manifest()}
	defer wk.close()
	if err := wk.read(); err != nil {
		return nil, err
	}
	if err := wk.check(); err != nil {
		return nil, err
	}
	if err := wk.unpack(r); err != nil {
		return nil, err
	}
	if err := wk.makeNets(); err != nil {
		return nil, errors.Join(err, wk.undoNets())
	}
	all, err := wk.run()
	if err != nil {
		return nil, errors.Join(err, wk.undoNets())
	}
	return all, nil
}

// PlanWake plans what waking would make, from the manifest alone: networks that the
// lab lacks, and machines. Both stand in the plan from then on.
func (l *Lab) PlanWake(m *checkpoint.Manifest, o WakeOptions) (nets []*VNet, machines []*Machine, plans []*Plan, err error) {
	wk := &wake{lab: l, o: o, manifest: m}
	if err := wk.read(); err != nil {
		return nil, nil, nil, err
	}
	err = wk.eachMissingNet(func(s *VNetSpec) error {
		v, err := l.PlanVNet(l.Host(), s)
		nets = append(nets, v)
		return err
	})
	for _, w := range wk.all {
		if err != nil {
			return nil, nil, nil, err
		}
		var p *Plan
		if p, err = l.Plan(l.Host(), w.spec); err == nil {
			plans, machines = append(plans, p), append(machines, l.Planned(l.Host(), p))
		}
	}
	return nets, machines, plans, err
}

// PlannedSnapshot is the manifest of a snapshot that stands in a plan only.
func PlannedSnapshot(machines []*Machine) (*checkpoint.Manifest, error) {
	s := &snapshot{o: SnapshotOptions{FilesOnly: true}}
	for _, m := range machines {
		s.all = append(s.all, &saving{snapshot: s, m: m})
	}
	return s.manifest()
}

// CanWake tells what is known of a snapshot's manifest alone to be in the way.
func (l *Lab) CanWake(ctx context.Context, m *checkpoint.Manifest, o WakeOptions) error {
	wk := &wake{ctx: ctx, lab: l, o: o, manifest: m}
	defer wk.close()
	if err := wk.read(); err != nil {
		return err
	}
	return wk.check()
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
}

// waking is a machine of it.
type waking struct {
	*wake
	saved  *checkpoint.Machine
	spec   *Spec // as it is to be
	state  savedState
	logs   map[string][]byte
	layers int // memory for the upper layer, -1 for none
	work   int // memory for the images
	images *os.File
	aside  string // where what belongs under root(upper=) is for now

	child *Child // its init, once criu has made it

	reached chan struct{}
	release chan error
	machine *Machine
	err     error
}

func (wk *wake) close() {
	for _, w := range wk.all {
		for _, fd := range []int{w.layers, w.work} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		if w.images != nil {
			w.images.Close()
		}
		if w.aside != "" {
			os.RemoveAll(w.aside)
		}
	}
}

// read makes specs of the manifest.
func (wk *wake) read() error {
	m := wk.manifest
	if len(m.Machines) > 1 && (wk.o.Name != "" || wk.o.Addresses != nil) {
		return bad("wake", "name", wk.o.Name, fmt.Sprintf("a snapshot of one machine; this one has %d", len(m.Machines)))
	}
	for i := range m.Machines {
		s := &m.Machines[i]
		w := &waking{wake: wk, saved: s, layers: -1, work: -1, spec: &Spec{}}
		wk.all = append(wk.all, w)
		if err := json.Unmarshal(s.Spec, w.spec); err != nil {
			return fmt.Errorf("machine %s: %v: %w", s.Name, err, checkpoint.ErrHostile)
		}
		if err := w.change(); err != nil {
			return fmt.Errorf("machine %s: %w", s.Name, err)
		}
	}
	return nil
}

// check finds out from the manifest alone what stands in the way.
func (wk *wake) check() error {
	if err := checkHost(&wk.manifest.Host); err != nil {
		return err
	}
	memory := false
	for _, w := range wk.all {
		memory = memory || w.saved.Mode == checkpoint.MemoryAndFiles
		for _, b := range w.saved.Needs.Bases {
			if here, ok := wk.o.Bases[b.Path]; ok {
				b.Path = here
			}
			if err := checkBase(b); err != nil {
				return fmt.Errorf("machine %s: %w", w.saved.Name, err)
			}
		}
	}
	if !memory {
		return nil
	}
	var err error
	if wk.criu, err = criu.Find(wk.ctx); err != nil {
		return err
	}
	wk.criu.Keep = filepath.Join(wk.lab.host.State, ".criu")
	if len(wk.all) > 1 {
		// Its first look at the kernel makes things that two of them would make at once.
		_, err = wk.criu.Features(wk.ctx)
	}
	return err
}

// checkHost tells whether processes of another computer can go on here.
func checkHost(was *checkpoint.Host) error {
	now := hostFacts()
	if was.Arch != "" && was.Arch != now.Arch {
		return fmt.Errorf("it was saved on %s, and this is %s (%s)", was.Arch, now.Arch, runtime.GOARCH)
	}
	var missing []string
	for _, f := range was.CPUFlags {
		if !slices.Contains(now.CPUFlags, f) {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		return withHint(fmt.Errorf("the processor here (%s) lacks what that there (%s) had: %s", now.CPU, was.CPU, strings.Join(missing, " ")),
			"programs may be using it: wake it on a host with the same kind of processor or a newer one")
	}
	return nil
}

// change makes of the spec that was saved the one that is to be.
func (w *waking) change() error {
	s, o := w.spec, w.o
	s.Keep, s.Pos = o.Keep, o.Pos
	s.Name = w.saved.Name
	if o.Name != "" {
		s.Name = o.Name
	}
	if err := CheckName("wake", "name", s.Name); err != nil {
		return err
	}
	if (o.Fresh || o.Addresses != nil) && o.TCP != criu.TCPClose && w.saved.Mode == checkpoint.MemoryAndFiles && len(netifsOf(s)) > 0 {
		return &ParamError{Kind: "wake", Param: "tcp", Got: `"established" under other addresses`, Want: "the addresses that its connections have", Mend: `tcp="close" closes them`}
	}
	for i, r := range s.Resources {
		if r, ok := r.(*Root); ok && o.Bases[r.Source] != "" {
			c := *r
			c.Source = o.Bases[r.Source]
			s.Resources[i] = &c
		}
	}
	i := 0
	for _, n := range netifsOf(s) {
		if n.VNet == "" || n.Link != "" {
			return fmt.Errorf("its interface %s is on no vnet: %w", n.Name, checkpoint.ErrHostile)
		}
		if other, ok := o.Nets[n.VNet]; ok {
			n.VNet = other
		}
		n.MAC, n.Gateway, n.Port = n.HardwareAddr, n.Gateways, 0
		if o.Fresh {
			n.MAC, n.Addresses, n.Gateway = "", nil, nil
		}
		if i < len(o.Addresses) {
			n.Addresses, n.Gateway = o.Addresses[i], nil
			n.MAC = ""
		}
		n.Bare = n.Bare || !o.Fresh && len(n.Addresses) == 0 // it had none
		n.Gateways = nil
		i++
	}
	if i < len(o.Addresses) {
		return bad("wake", "address", fmt.Sprint(len(o.Addresses)), fmt.Sprintf("one for each of its %d interfaces", i))
	}
	return s.Validate()
}

// unpack reads the snapshot to its end, into memory.
func (wk *wake) unpack(r *checkpoint.Reader) error {
	for {
		s, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		w := wk.all[slices.IndexFunc(wk.all, func(w *waking) bool { return w.saved.Name == s.Machine })]
		switch {
		case s.Name == sectionState:
			err = readSection(r, &w.state)
		case s.Name == sectionLogs:
			err = readSection(r, &w.logs)
		case s.Name == checkpoint.SectionUpper:
			err = w.unpackUpper(r)
		case s.Name == checkpoint.SectionMemory || strings.HasPrefix(s.Name, checkpoint.SectionMemory+"."):
			err = w.unpackImages(r, s.Name)
		}
		if err != nil {
			return fmt.Errorf("%s of %s: %w", s.Name, s.Machine, err)
		}
	}
	for _, w := range wk.all {
		if w.saved.Mode == checkpoint.MemoryAndFiles && w.images == nil {
			return fmt.Errorf("machine %s: no memory in it: %w", w.saved.Name, checkpoint.ErrHostile)
		}
		if err := errors.Join(w.pinIDs(), w.giveImages()); err != nil {
			return err
		}
		if root, _ := w.spec.find("root").(*Root); root != nil {
			if err := checkUsed(root.Source, w.state.Used); err != nil {
				return fmt.Errorf("machine %s: %w", w.saved.Name, err)
			}
		}
	}
	return nil
}

// pinIDs has the machine get the ids it had: they are in its memory and files.
func (w *waking) pinIDs() error {
	for i, r := range w.spec.Resources {
		u, ok := r.(*Uidspace)
		if !ok || u.Map != nil || len(w.state.IDs) != 1 {
			continue
		}
		base := w.state.IDs[0].Outside
		w.spec.Resources[i] = &Uidspace{Base: &base, Size: w.state.IDs[0].Size}
	}
	return w.spec.Validate()
}

// giveImages lets criu read the images as whoever it is in a user namespace that has
// no map yet. They lie in a mount that nobody else can reach.
func (w *waking) giveImages() error {
	if len(w.state.IDs) == 0 || w.work < 0 {
		return nil
	}
	return filepath.WalkDir(fmt.Sprintf("/proc/self/fd/%d/", w.work), func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Chmod(path, 0o755)
		case d.Type().IsRegular():
			return os.Chmod(path, 0o644)
		}
		return nil
	})
}

// unpackImages unpacks memory, each round into a directory of its own beside the
// others, as criu's links between them have it.
func (w *waking) unpackImages(r *checkpoint.Reader, section string) error {
	if w.work < 0 {
		fd, err := newTmpfs("mode", "700")
		if err != nil {
			return err
		}
		w.work = fd
	}
	dir, err := makeDirAt(w.work, section)
	if err != nil {
		return err
	}
	if err := r.UnpackImages(w.ctx, int(dir.Fd()), checkpoint.UnpackOptions{}); err != nil {
		dir.Close()
		return err
	}
	if section != checkpoint.SectionMemory {
		return dir.Close()
	}
	w.images = dir
	return nil
}

// unpackUpper unpacks the upper layer: into the memory that the overlay will have,
// or beside what is under root(upper=), to be put in its place at the end.
func (w *waking) unpackUpper(r *checkpoint.Reader) error {
	root, _ := w.spec.find("root").(*Root)
	if root == nil || root.Write != "overlay" {
		return fmt.Errorf("its root has none: %w", checkpoint.ErrHostile)
	}
	// Device nodes can be made by a root in the machine only where it has the ids of
	// the host's, and there it could make them again.
	o := checkpoint.UnpackOptions{Devices: !w.spec.Has("uidspace"), Xattr: overlayXattr, MaxBytes: root.Size}
	if root.Upper != "" {
		var err error
		if w.aside, err = os.MkdirTemp(root.Upper, ".waking-"); err != nil {
			return withHint(err, "the directory that its changes are kept under has to be there")
		}
		dir, err := os.Open(w.aside)
		if err != nil {
			return err
		}
		defer dir.Close()
		return r.UnpackUpper(w.ctx, int(dir.Fd()), o)
	}
	fd, err := newTmpfs(append(room(root.Size), "mode", "755")...)
	if err != nil {
		return err
	}
	w.layers = fd
	dir, err := makeDirAt(fd, "upper")
	if err != nil {
		return err
	}
	defer dir.Close()
	return r.UnpackUpper(w.ctx, int(dir.Fd()), o)
}

// overlayXattr passes over what an overlay notes of the lower layer's own inodes:
// they are others on another host, and the notes are optional.
func overlayXattr(name string) string {
	switch name {
	case "trusted.overlay.origin", "user.overlay.origin", "trusted.overlay.uuid", "user.overlay.uuid", "trusted.overlay.nlink", "user.overlay.nlink":
		return ""
	}
	return name
}

// makeNets makes those networks that the lab does not have.
func (wk *wake) makeNets() error {
	err := wk.eachMissingNet(func(s *VNetSpec) error {
		v, err := wk.lab.VNet(wk.ctx, wk.lab.Host(), s)
		if err == nil {
			wk.nets = append(wk.nets, v)
		}
		return err
	})
	if err != nil {
		return err
	}
	return wk.makeTrunks()
}

// eachMissingNet calls f with what the networks were that the lab does not have; f
// makes them.
func (wk *wake) eachMissingNet(f func(*VNetSpec) error) error {
	specs, err := savedNets(wk.manifest)
	if err != nil {
		return err
	}
	var missing []*savedNet
	for _, w := range wk.all {
		for _, n := range netifsOf(w.spec) {
			if wk.lab.findVNet(n.VNet) != nil || slices.ContainsFunc(missing, func(s *savedNet) bool { return s.Name == n.VNet }) {
				continue
			}
			i := slices.IndexFunc(specs, func(s *savedNet) bool { return s.Name == n.VNet })
			if i < 0 || slices.Contains(values(wk.o.Nets), n.VNet) {
				return bad("wake", "nets", n.VNet, "a vnet of this lab")
			}
			missing = append(missing, specs[i])
		}
	}
	for _, s := range specs {
		if wk.manifest.WholeLab && wk.o.Nets[s.Name] == "" && wk.lab.findVNet(s.Name) == nil && !slices.Contains(missing, s) {
			missing = append(missing, s)
		}
	}
	for _, n := range missing {
		s := *n.VNetSpec
		s.Keep, s.Pos = wk.o.Keep, wk.o.Pos
		if wk.o.Net != nil {
			if err := wk.o.Net(&s); err != nil {
				return err
			}
		}
		if err := f(&s); err != nil {
			return err
		}
	}
	return nil
}

func values(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

func (wk *wake) undoNets() error {
	var errs []error
	for _, v := range slices.Backward(wk.nets) {
		errs = append(errs, v.Destroy(context.WithoutCancel(wk.ctx)))
	}
	return errors.Join(errs...)
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
		return all, nil
	}
	for _, m := range slices.Backward(all) {
		if m != nil {
			err = errors.Join(err, m.Destroy(context.WithoutCancel(wk.ctx)))
		}
	}
	return nil, err
}
