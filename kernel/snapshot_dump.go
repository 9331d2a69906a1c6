package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
	"msh/kernel/criu"
	"msh/kernel/netx"
)

// dump has criu write the machine's processes into memory. While it stands still
// for all, it waits to be told how it goes on.
func (v *saving) dump() error {
	if v.o.FilesOnly {
		close(v.started)
		if err := <-v.begin; err != nil {
			return err
		}
		close(v.still)
		close(v.reached)
		return <-v.release
	}
	if err := v.step("save its memory"); err != nil {
		return err
	}
	d, err := v.request(checkpoint.SectionMemory)
	if err != nil {
		return err
	}
	v.images = d.Images
	if v.rounds > 0 {
		d.Parent = "../" + checkpoint.SectionRound(v.rounds)
		d.Track = true
	}
	d.Worker, d.Leave = v.worker, criu.LeaveRunning
	if v.o.Hibernate {
		d.Leave = criu.LeaveDead
	}
	if v.together() || v.state.Frozen {
		d.Group = v.m.freezer()
	}
	d.Hook = func(e criu.Event) error {
		switch e.Name {
		case criu.PreDump:
			select {
			case <-v.started:
				return nil // once more
			default:
			}
			close(v.started)
			return <-v.begin
		case criu.QueryFiles: // all of it stands still
			if v.ports == nil {
				if err := v.holdPorts(); err != nil {
					return err
				}
			}
			if err := v.step("look at its network"); err != nil {
				return err
			}
			v.network = make(chan error, 1)
			go func() { v.network <- v.saveNetwork() }() // while criu goes on
			pass(v.still)
		case criu.PostDump:
			close(v.reached)
			return <-v.release
		}
		return nil
	}
	d.Over = func() { close(v.over) }
	return v.tryDump(d)
}

// keepFacts says where what a criu finds out of the kernel is kept.
func (h *Host) keepFacts(c *criu.Criu) {
	c.Keep, c.Boot = filepath.Join(h.State, ".criu"), bootID()
}

// startCriu starts it for each machine: that takes as long as what is done until it is
// needed.
func (s *snapshot) startCriu() error {
	if s.o.FilesOnly {
		return nil
	}
	for _, v := range s.all {
		if err := s.step("start criu"); err != nil {
			return err
		}
		place, err := v.place()
		if err != nil {
			return err
		}
		if v.worker, err = s.criu.Start(s.ctx, place); err != nil {
			return err
		}
	}
	return nil
}

// tries is how often a machine is stopped anew in which something did not stop, and
// stopIn how long it may take but for the last time, where nothing is slow.
const (
	tries  = 5
	stopIn = time.Second
)

// tryDump has criu dump it. A process that does not stop as it is being born (vfork)
// will be there a moment later.
func (v *saving) tryDump(d *criu.Dump) (err error) {
	for n := 1; ; n++ {
		d.Stop = stopIn
		if n == tries {
			d.Stop = 0
		}
		v.stats, err = v.criu.Dump(v.ctx, d)
		var e *criu.Error
		if !errors.As(err, &e) || !e.Busy || n == tries || v.state.Frozen {
			return err
		}
		if err := v.again(n); err != nil {
			return err
		}
	}
}

// preDump writes memory that the machine has now as a round.
func (v *saving) preDump(round int) (*criu.Stats, error) {
	d, err := v.request(checkpoint.SectionRound(round))
	if err != nil {
		return nil, err
	}
	defer d.Images.Close()
	d.Track, d.Leave = true, criu.LeaveRunning
	if round > 1 {
		d.Parent = "../" + checkpoint.SectionRound(round-1)
	}
	stats, err := v.criu.PreDump(v.ctx, d)
	if err != nil {
		return nil, err
	}
	return stats, v.w.Images(v.ctx, v.m.Name(), checkpoint.SectionRound(round), int(d.Images.Fd()))
}

// request is what all dumps of the machine have in common, with a directory of that
// name for its images, in memory.
func (v *saving) request(name string) (*criu.Dump, error) {
	if v.work < 0 {
		fd, err := newTmpfs(0, "mode", "700")
		if err != nil {
			return nil, err
		}
		v.work = fd
	}
	dir, err := makeDirAt(v.work, name)
	if err != nil {
		return nil, err
	}
	place, err := v.place()
	if err != nil {
		return nil, err
	}
	d := &criu.Dump{Pid: v.m.pid, Images: dir, NewNet: v.m.Spec().ownsNetwork() && place.Net == nil, Place: place}
	v.state.InNet = place.Net != nil
	for _, f := range v.state.Files {
		d.Files = append(d.Files, f.Key)
	}
	for _, m := range v.state.Mounts {
		d.Mounts = append(d.Mounts, criu.Mount{Label: m.Label, Path: m.Path})
	}
	return d, nil
}

// place is where criu is started to save it.
func (v *saving) place() (criu.Place, error) {
	p := criu.Place{Mounts: true}
	if v.m.Spec().ownsNetwork() && v.m.space()&unix.CLONE_NEWUSER == 0 {
		if err := v.openNet(); err != nil {
			return p, err
		}
		p.Net = v.net
	}
	return p, nil
}

// openNet opens the machine's network, for criu to stand in.
func (v *saving) openNet() (err error) {
	if v.net != nil {
		return nil
	}
	if v.net, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", v.m.pid)); err != nil {
		return fmt.Errorf("open the network of %s: %w", v.m.Name(), err)
	}
	return v.m.alive() // or the number may be another's
}

// makeDirAt makes a directory and opens it.
func makeDirAt(at int, name string) (*os.File, error) {
	if err := unix.Mkdirat(at, name, 0o700); err != nil {
		return nil, fmt.Errorf("mkdir %s: %w", name, err)
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// freezer is the directory by which the machine's group is frozen.
func (m *Machine) freezer() string { return m.group.Dirs()[0] }

// stop has the machine freeze, if it is not frozen already.
func (v *saving) stop() error {
	if v.state.Frozen {
		return nil
	}
	if err := v.step("freeze " + v.m.Name()); err != nil {
		return err
	}
	v.stopped = true
	if err := v.m.group.SetFrozen(true); err != nil {
		return fmt.Errorf("freeze %s: %w", v.m.Name(), err)
	}
	return nil
}

// awaitStop waits until it is frozen, and nothing in it in the middle of vfork(2).
func (v *saving) awaitStop() error {
	if !v.stopped {
		return nil
	}
	if err := v.m.group.AwaitFrozen(v.ctx, true); err != nil {
		return fmt.Errorf("freeze %s: %w", v.m.Name(), err)
	}
	for n := 1; n < 10 && v.bearing(); n++ {
		if err := v.again(n); err != nil {
			return err
		}
	}
	return nil
}

// bearing tells whether a process was frozen in the middle of vfork(2), where this
// kernel tells it: criu would wait in vain for it to stop.
func (v *saving) bearing() bool {
	pids, err := v.m.group.Pids()
	if err != nil {
		return false
	}
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
		for _, t := range threads {
			if at, _ := os.ReadFile(t); string(at) == "kernel_clone" {
				return true
			}
		}
	}
	return false
}

// again lets the machine go on for a moment, which grows with each time.
func (v *saving) again(n int) error {
	if v.stopped {
		if err := v.m.group.Thaw(v.ctx); err != nil {
			return err
		}
	}
	time.Sleep(time.Duration(n) * time.Millisecond)
	if v.stopped {
		return v.m.group.Freeze(v.ctx)
	}
	return nil
}

// goOn lets the machine go on, or what is left of it: its ports first. awaitGoing waits
// until it does.
func (v *saving) goOn() {
	// Those of one that has ended go with its network, which the kernel takes apart a
	// moment later: until then it would answer that there are no such connections.
	alive := v.m.alive() == nil && !v.o.still.End
	for _, p := range v.ports {
		if err := p.release(alive); err != nil && v.m.alive() == nil {
			v.left = append(v.left, fmt.Sprintf("the port of %s cannot be put on again: %v", v.m.Name(), err))
		}
	}
	v.ports = nil
	if v.stopped && !v.o.still.End {
		err := v.m.group.SetFrozen(false)
		v.stopped = err == nil // or there is nothing to wait for
		v.thawed(err)
	}
}

func (v *saving) awaitGoing() {
	if v.stopped && !v.o.still.End {
		v.stopped = false
		v.thawed(v.m.group.AwaitFrozen(context.WithoutCancel(v.ctx), false))
	}
}

func (v *saving) thawed(err error) {
	if err != nil && v.m.alive() == nil {
		v.left = append(v.left, fmt.Sprintf("%s cannot be thawed: %v", v.m.Name(), err))
	}
}

// heldPort is a port of a machine's that carries nothing: what came in now would be
// answered by a kernel whose connections are being taken away.
type heldPort struct {
	ns    *netx.NS
	index int
	patch bool // it is an end of a cable to another machine, not a switch's
	close bool // ns is this one's own
}

func (p *heldPort) open(open bool) error {
	if p.patch {
		return p.ns.HoldPatch(p.index, !open)
	}
	return p.ns.OpenPort(p.index, open)
}

func (p *heldPort) release(open bool) (err error) {
	if open {
		err = p.open(true)
	}
	if p.close {
		p.ns.Close()
	}
	return err
}

// holdPorts takes the machine off its networks without taking its carrier away.
func (v *saving) holdPorts() error {
	v.ports = []*heldPort{}
	for _, n := range v.m.Netifs() {
		if err := v.step(fmt.Sprintf("take %s off %s", v.m.Name(), n.on())); err != nil {
			return err
		}
		p, err := v.m.heldPort(n)
		if err == nil {
			err = p.open(false)
		}
		if err != nil {
			return fmt.Errorf("take %s off %s: %w", v.m.Name(), n.on(), err)
		}
		v.ports = append(v.ports, p)
	}
	return nil
}

// heldPort is the port that an interface is plugged into. Another msh's is reached
// where its network was pinned.
func (m *Machine) heldPort(n *Netif) (*heldPort, error) {
	if p, ok := m.portOf(n); ok {
		return &heldPort{ns: p.NS, index: p.Index, patch: n.Link != ""}, nil
	}
	dir := m.netDir(n.VNet)
	if n.Link != "" {
		dir = m.netDir(patchName)
	}
	ns, err := netx.Open(dir + "/" + pinFile)
	if err != nil {
		return nil, err
	}
	return &heldPort{ns: ns, index: n.Port, patch: n.Link != "", close: true}, nil
}

// saveNetwork takes down what programs inside have made of the machine's network.
func (v *saving) saveNetwork() error {
	if !v.m.Spec().ownsNetwork() {
		return nil
	}
	ns, err := v.m.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	v.state.Nets = nil
	for _, n := range v.m.Netifs() {
		nic, err := ns.SaveNIC(n.Name)
		if err != nil {
			return err
		}
		v.state.Nets = append(v.state.Nets, nic)
	}
	v.state.Sysctls = map[string]string{}
	return ns.Do(func() error {
		for _, key := range routerSysctls {
			if b, err := os.ReadFile("/proc/sys/" + key); err == nil {
				v.state.Sysctls[key] = strings.TrimSpace(string(b))
			}
		}
		return nil
	})
}

// routerSysctls are the parameters of a network as a whole that programs inside set
// most: those of a router.
var routerSysctls = []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter", "net/ipv4/fib_multipath_hash_policy"}

// madeInside names what programs inside have made of the machine's network that would
// be lost: interfaces, and tables of the packet filter, as "the interface br0".
func (m *Machine) madeInside() (names []string, err error) {
	if !m.Spec().ownsNetwork() {
		return nil, nil
	}
	ns, err := m.network()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	links, err := ns.Links()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		own := slices.ContainsFunc(m.Netifs(), func(n *Netif) bool { return n.Name == l.Name })
		if l.Name != "lo" && !own && !slices.Contains(fallbackDevices, l.Name) {
			names = append(names, "the interface "+l.Name)
		}
	}
	tables, err := ns.Tables()
	if err != nil {
		return nil, err
	}
	for _, name := range tables {
		names = append(names, "the packet filter's table "+name)
	}
	return names, nil
}

// fallbackDevices are in every new network where their modules are loaded
// (net.core.fb_tunnels_only_for_init_net).
var fallbackDevices = []string{"tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0"}
