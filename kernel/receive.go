package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
	"msh/kernel/handover"
)

// Receive is the other end of Migrate: it serves one line, on which a machine comes,
// or the question what has become of one.
func (h *Host) Receive(ctx context.Context, in io.ReadCloser, out io.WriteCloser) error {
	me, err := h.hello(ctx)
	if err != nil {
		return err
	}
	line := handover.Line{In: in, Out: out, Close: func() {
		in.Close()
		out.Close()
	}}
	t := &taking{stepper: stepper{ctx: ctx, fault: h.Fault}, host: h, from: client()}
	defer h.tidy()
	defer t.close()
	return handover.Take(ctx, line, me, t, h.moves())
}

// moves is where this host writes down what came to it.
func (h *Host) moves() *handover.Book {
	return &handover.Book{Dir: filepath.Join(h.State, ".moves")}
}

// client is the address of who has come by ssh; none where nobody has.
func client() netip.Addr {
	f := strings.Fields(os.Getenv("SSH_CONNECTION"))
	if len(f) == 0 {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(f[0])
	return a.Unmap()
}

// taking is the taker of machines.
type taking struct {
	stepper
	host  *Host
	from  netip.Addr
	lab   string
	offer *handover.Offer
	bases map[string]string // layers that are here elsewhere, by where they were there
	drop  []string          // layers that came, until something stands on them
	holds *os.File          // keeps them from being swept
}

func (t *taking) close() {
	if len(t.drop) > 0 {
		t.host.sweepLayersBy(t.holds) // gc does where something else is on its way
	}
	t.holds.Close() // nil is an error, and none of ours
}

// Want looks whether the machines can be woken here at all.
func (t *taking) Want(peer *handover.Hello, o *handover.Offer) (*handover.Want, error) {
	t.offer, t.bases = o, map[string]string{}
	if err := t.step("look at the offer"); err != nil {
		return nil, err
	}
	if err := CheckName("lab", "name", o.Lab); err != nil {
		return nil, err
	}
	m := &checkpoint.Manifest{}
	if err := json.Unmarshal(o.Options, m); err != nil {
		return nil, fmt.Errorf("the offer's manifest: %w", err)
	}
	var err error
	if t.holds, err = t.host.holdLayers(); err != nil {
		return nil, err
	}
	w := &handover.Want{}
	for i, l := range o.Layers {
		dir := t.host.layerAt(context.Background(), l)
		if dir == "" {
			w.Layers = append(w.Layers, i)
			dir = "/" // will be there
		}
		t.bases[l.Name] = dir
	}
	lab, err := t.host.NewLab(o.Lab, false)
	if err != nil {
		return nil, err
	}
	if err := lab.CanWake(context.Background(), m, t.options()); err != nil {
		return nil, err
	}
	return w, nil
}

// Layer takes a root that is not here.
func (t *taking) Layer(ctx context.Context, n int, r io.Reader) error {
	l := t.offer.Layers[n]
	if err := t.step("take " + l.Name); err != nil {
		return err
	}
	dir, err := t.host.takeLayer(ctx, l, r)
	if err != nil {
		return err
	}
	t.bases[l.Name] = dir
	t.drop = append(t.drop, dir)
	return t.step("keep it")
}

func (t *taking) options() WakeOptions {
	return WakeOptions{Keep: true, Bases: t.bases, Net: t.network}
}

// Wake makes the machines.
func (t *taking) Wake(ctx context.Context, r io.Reader, began func(handover.Running) error, ready func() error) (_ *handover.Running, err error) {
	in, err := checkpoint.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	lab, err := t.host.NewLab(t.offer.Lab, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Close(context.WithoutCancel(ctx))) }()
	if err := t.step("claim the lab"); err != nil {
		return nil, err
	}
	lab.mu.Lock()
	err = lab.claim(ctx)
	lab.mu.Unlock()
	if err != nil {
		return nil, err
	}
	at := handover.Running{Name: t.offer.Name, Lab: lab.Name()}
	if err := t.step("write down what it will be"); err != nil {
		return nil, err
	}
	if err := began(at); err != nil {
		return nil, err
	}
	o := t.options()
	o.Ready = func(context.Context) error {
		if err := t.step("say that all is there"); err != nil {
			return err
		}
		defer t.point()
		return ready()
	}
	if _, err := lab.Wake(ctx, in, o); err != nil {
		return nil, err
	}
	t.drop = nil
	return &at, nil
}

// Clear ends what a taker has left that died on the way: its lab has nothing else.
func (t *taking) Clear(ctx context.Context, at handover.Running) error {
	return t.host.clearMove(ctx, at)
}

func (h *Host) clearMove(ctx context.Context, at handover.Running) error {
	if err := CheckName("lab", "name", at.Lab); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(h.State, at.Lab)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := h.down(ctx, at.Lab, false)
	return err
}

// network fits a network to this host: of a VXLAN's hosts this one is another now.
func (t *taking) network(s *VNetSpec) error {
	if s.VXLAN == nil {
		return nil
	}
	mine, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	x := *s.VXLAN
	there := x.Local
	if !there.IsValid() {
		there = t.from
	}
	x.Local, x.Peers = netip.Addr{}, nil
	for _, p := range s.VXLAN.Peers {
		if slices.ContainsFunc(mine, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			return ok && n.IP.Equal(p.AsSlice())
		}) {
			x.Local = p
		} else {
			x.Peers = append(x.Peers, p)
		}
	}
	if there.IsValid() && !slices.Contains(x.Peers, there) {
		x.Peers = append(x.Peers, there)
	}
	s.VXLAN = &x
	return nil
}

// ReceiveStdio is Receive on standard input and output. What anything else writes to
// the latter goes to standard error.
func (h *Host) ReceiveStdio(ctx context.Context) error {
	in, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	// Not on number 1: a write to that which nobody reads kills a Go program.
	out, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		unix.Close(in)
		return fmt.Errorf("standard output: %w", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Dup3(null, 0, 0), unix.Dup3(2, 1, 0))
		unix.Close(null)
	}
	if err != nil {
		return fmt.Errorf("redirect the standard streams: %w", err)
	}
	// So that a read and a write end when the other goroutine closes them.
	unix.SetNonblock(in, true)
	unix.SetNonblock(out, true)
	return h.Receive(ctx, os.NewFile(uintptr(in), "the line"), os.NewFile(uintptr(out), "the line"))
}
