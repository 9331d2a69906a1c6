package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"msh/kernel/checkpoint"
	"msh/kernel/criu"
	"msh/kernel/handover"
)

// MigrateOptions say how machines move to another host.
type MigrateOptions struct {
	// Rounds is how many times memory is sent ahead at most, while the machines run;
	// 0 is for not at all, -1 for as often as it makes what is left smaller. It wants a
	// kernel that tells which pages have changed.
	Rounds int
	// Patience is for how long the other host is asked what has become of the move
	// when the line breaks at its end; 0 stands for DefaultPatience.
	Patience time.Duration
	Whole    bool // they are all machines of their lab, all of whose networks move too

	dial handover.Dial // in the place of ssh
}

// DefaultPatience outlasts a reboot of a switch.
const DefaultPatience = 2 * time.Minute

// The modes that a machine moves in.
const (
	PreCopy     = "pre-copy"
	StopAndCopy = "stop-and-copy"
)

// MigrateReport tells how machines have moved.
type MigrateReport struct {
	Host     string   // as ssh://…
	Lab      string   // theirs on the other host
	Machines []string // their names
	Mode     string   // PreCopy or StopAndCopy
	Why      string   // there was no pre-copy
	Rounds   int      // of pre-copy
	Frozen   time.Duration
	Sent     int64 // bytes
	Layers   []string
	Left     []string // what did not go along, in words
	// Settled: they had moved before, and only that was found out now.
	Settled bool
}

// Migrate moves the machine to another host, where it is kept: see Migrate.
func (m *Machine) Migrate(ctx context.Context, to *Remote, o MigrateOptions) (*MigrateReport, error) {
	return Migrate(ctx, []*Machine{m}, to, o)
}

// Migrate moves machines of one lab to another host, all at one instant, with the
// networks they are on. There they are kept. After an error they run here as before,
// unless it is a handover.Doubt: then they stand still, and a second Migrate to that
// host asks what has become of them first.
func Migrate(ctx context.Context, machines []*Machine, to *Remote, o MigrateOptions) (*MigrateReport, error) {
	if len(machines) == 0 {
		return nil, bad("migrate", "", nil, "a machine at least")
	}
	if o.dial == nil {
		o.dial = to.dial
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	g := &giving{stepper: stepper{ctx: ctx, fault: machines[0].host.Fault}, to: to, o: o, all: machines, report: &MigrateReport{Host: to.String()}}
	for _, m := range machines {
		if m.isHost() {
			return nil, NotHost("migrate")
		}
	}
	names := machineNames(machines)
	fail := func(err error) error {
		return fmt.Errorf("migrate %s to %s: %w", strings.Join(names, ", "), to, explainDoubt(err))
	}
	me, err := machines[0].host.hello(ctx)
	if err != nil {
		return nil, fail(err)
	}
	if at, err := g.settle(me); at != nil || err != nil {
		if err != nil {
			return nil, fail(err)
		}
		g.report.Lab, g.report.Machines, g.report.Settled = at.Lab, names, true
		return g.report, nil
	}
	g.report.Mode, g.report.Why = StopAndCopy, "it was not asked for"
	if o.Rounds != 0 && !me.Track {
		g.report.Why = "the kernel does not tell which pages have changed (CONFIG_MEM_SOFT_DIRTY)"
	}
	at, err := handover.Give(ctx, o.dial, me, g, o.Patience)
	if err != nil {
		return nil, fail(err)
	}
	g.report.Lab, g.report.Machines = at.Lab, names
	if g.report.Rounds > 0 {
		g.report.Mode, g.report.Why = PreCopy, ""
	}
	return g.report, nil
}

// explainDoubt says what can be done when nobody knows where a machine runs.
func explainDoubt(err error) error {
	if !errors.Is(err, handover.ErrStays) {
		return err
	}
	return withHint(err, "it stands still here until that is known: migrate it to the same host once more when that can be reached; if it never will be, `msh migrate --take-back MACHINE` lets it go on here")
}

// hello is what this host tells of itself.
func (h *Host) hello(ctx context.Context) (handover.Hello, error) {
	me := handover.Hello{Msh: Version(), Host: hostFacts()}
	me.Host.Cgroup = 1
	if h.Cgroup.Unified {
		me.Host.Cgroup = 2
	}
	c, err := criu.Find(ctx)
	if err != nil {
		return me, err
	}
	me.CRIU = c.Version.String()
	f, err := c.Features(ctx)
	me.Track = f.Track
	return me, err
}

// giving is the giver of machines.
type giving struct {
	stepper
	to        *Remote
	o         MigrateOptions
	all       []*Machine
	report    *MigrateReport
	manifest  *checkpoint.Manifest
	offer     *handover.Offer
	still     standstill // that of the machines
	lastPages uint64     // of the last round
}

// Offer looks the machines through, while they run.
func (g *giving) Offer(peer *handover.Hello) (*handover.Offer, error) {
	if err := g.step("offer them"); err != nil {
		return nil, err
	}
	m, err := Preview(g.ctx, g.all, SnapshotOptions{Whole: g.o.Whole})
	if err != nil {
		return nil, err
	}
	g.manifest = m
	o := &handover.Offer{Token: handover.NewToken(), Name: strings.Join(machineNames(g.all), ","), Lab: g.all[0].labID}
	if o.Options, err = json.Marshal(m); err != nil {
		return nil, err
	}
	for _, s := range m.Machines {
		for _, b := range s.Needs.Bases {
			if slices.ContainsFunc(o.Layers, func(l handover.Layer) bool { return l.Name == b.Path }) {
				continue
			}
			digest, err := layerDigest(g.ctx, b.Path)
			if err != nil {
				return nil, err
			}
			if digest != "" {
				o.Layers = append(o.Layers, handover.Layer{Name: b.Path, Digest: digest})
			}
		}
	}
	g.offer = o
	return o, nil
}

func machineNames(all []*Machine) (names []string) {
	for _, m := range all {
		names = append(names, m.Name())
	}
	return names
}

// Layer sends a root that the other host has not.
func (g *giving) Layer(ctx context.Context, n int, w io.Writer) error {
	if err := g.step("send " + g.offer.Layers[n].Name); err != nil {
		return err
	}
	g.report.Layers = append(g.report.Layers, g.offer.Layers[n].Name)
	return sendLayer(ctx, g.offer.Layers[n].Name, &counter{w, &g.report.Sent})
}

// Snapshot sends the machines.
func (g *giving) Snapshot(ctx context.Context, w io.Writer, commit func() error) error {
	// What is compressed takes longer than what a fast network takes to carry it, but
	// a machine's memory is mostly alike: zstd's fastest level is near the speed of disks.
	out, err := checkpoint.NewWriter(&counter{w, &g.report.Sent}, checkpoint.Options{})
	if err != nil {
		return err
	}
	moved := false
	o := SnapshotOptions{Hibernate: true, Hold: true, Whole: g.o.Whole, still: &g.still, Commit: func(context.Context) error {
		err := commit()
		moved = err == nil
		return err
	}}
	if g.o.Rounds != 0 {
		o.PreCopy = g.again
	}
	r, err := Snapshot(ctx, out, g.all, o)
	if moved && err != nil { // it runs there, whatever was left here
		g.report.Left = append(g.report.Left, fmt.Sprintf("here not all could be ended: %v", err))
		err = nil
	}
	if err != nil {
		return err
	}
	if r != nil {
		g.report.Frozen, g.report.Rounds = r.Frozen, r.Rounds
		g.report.Left = append(g.report.Left, r.Left...)
	}
	return nil
}

// mostRounds bounds pre-copy where each round goes on making it smaller.
const mostRounds = 8

// fewPages are not worth another round: 1 MiB is sent in less time than the round's
// own freezing takes.
const fewPages = 256

// again tells whether another round of pre-copy would leave less for the end.
func (g *giving) again(round int, stats []*criu.Stats) bool {
	most := g.o.Rounds
	if most < 0 {
		most = mostRounds
	}
	var pages uint64
	for _, s := range stats {
		pages += s.PagesWritten
	}
	last := g.lastPages
	g.lastPages = pages
	switch {
	case round == 0:
		return true
	case round >= most || pages <= fewPages:
		return false
	}
	return last == 0 || pages < last*4/5
}

// Given writes the machines down as perhaps running elsewhere.
func (g *giving) Given(token string) error {
	if err := g.step("write down that they may run elsewhere"); err != nil {
		return err
	}
	g.still.Token, g.still.To = token, g.to
	defer g.point()
	return g.still.save()
}

// Back takes that back.
func (g *giving) Back() error {
	g.still.Token, g.still.To = "", nil
	return g.still.save()
}

// counter counts what goes through.
type counter struct {
	w io.Writer
	n *int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	*c.n += int64(n)
	return n, err
}
