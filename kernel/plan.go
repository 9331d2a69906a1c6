package kernel

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
	"msh/kernel/stage0"
)

// Under is what a plan needs to know of the machine that will be the parent. The
// zero value is the host.
type Under struct {
	Name  string  // "" for the host
	Path  string  // of its control group, "" for the host
	Space uintptr // namespaces of its own, its parents' included (CLONE_NEW*)
	Root  bool    // whether its root is not the host's
	Net   string  // the machine whose network it is in, "" where that is the host's
	Lab   string
	IDs   []IDMap   // its ids as the host sees them; nil where they are the host's
	Limit []*Rlimit // its rlimits, its parents' first
	Clock Timespace // how far its clocks are from the host's

	Places   []cgroup.Place // where in v1's hierarchies its processes are
	Confined *Confinement   `json:",omitempty"` // how what runs in it is
	User     bool           `json:",omitempty"` // whether msh is root only in the space of a user
	OneID    bool           `json:",omitempty"` // and that has no id but the user's own
	Uname    *Uname         `json:",omitempty"` // what msh answers to its uname calls; nil where the kernel does
}

// Plan is, to the letter, what the kernel will be asked for a machine. It is
// made of a Spec by pure computation: the same spec on the same kind of host
// gives the same plan, and needs no rights.
type Plan struct {
	Spec  *Spec
	Under Under

	Flags  uintptr        // namespaces that clone(2) makes
	Unmade uintptr        // namespaces that the child itself unshares: cgroup
	Limits cgroup.Limits  // of its control group
	Group  *cgroup.Group  // laid out from them
	Claims []ledger.Claim // exclusive things; the owner is filled in by the Txn
	IDs    *IDs           // nil without a uidspace
	Trees  []*Tree        // directories of the parent's that it mounts
	Clocks *Timespace     // nil without a timespace
	Table  bool           // whether it has a mount table of its own
	Parks  bool           // whether the child waits for an Attacher
	Nets   []*Netif       // interfaces it gets, those on a vnet first
	IPv6   bool           // whether a network of its own does IPv6

	Confined *Confinement // how what runs in it is; its parent's, where it names nothing
	Uname    *Uname       // what msh answers to its uname calls; likewise

	Steps *Steps // what the child, and before it the intermediate, performs
}

// Steps is the child's program being written, with the plan at hand.
type Steps struct {
	*stage0.Program
	Plan *Plan

	proc, sys any // the mounts on /proc and /sys that these steps have made

	unnamed []*Rlimit // of an entry: those of the machine's init that no resource names
}

// NewPlan plans a machine. state is the directory msh will keep for it.
func NewPlan(spec *Spec, under Under, host *cgroup.Host, state string) (*Plan, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	p := &Plan{Spec: spec, Under: under, Confined: under.Confined, Uname: under.Uname, IPv6: spec.Has("netspace")}
	parents := false
	err := p.each(func(r Resource) error {
		if c, ok := r.(*Children); ok && c.Max > 0 {
			parents = true
		}
		if r, ok := r.(Planner); ok {
			return r.Plan(p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if p.Table {
		p.Flags |= unix.CLONE_NEWNS
	}
	if err := p.refence(); err != nil {
		return nil, err
	}
	path := under.Path + "/" + spec.Name
	if under.Path == "" {
		path = labGroup(host, under.Lab, spec.Name)
	}
	p.Group = host.Group(path, p.Limits, parents)
	// Without a control group the machine's init stands for its processes: it is
	// written down before it goes on.
	p.Parks = p.Parks || p.Group.Tracker == ""
	p.Steps = &Steps{Program: stage0.New(), Plan: p}
	if err := p.write(state); err != nil {
		return nil, err
	}
	return p, nil
}

// labGroup is where a group of a lab's is that lies in no other.
func labGroup(host *cgroup.Host, lab, name string) string {
	return host.Base + "/msh." + lab + "." + name
}

// each calls f for the spec's resources in the order of the table of kinds, and
// within a kind in the order given.
func (p *Plan) each(f func(Resource) error) error {
	rs := slices.Clone(p.Spec.Resources)
	rank := func(r Resource) int {
		// Interfaces of the parent's come last of their kind: they may take any
		// index, those on a vnet are made at the first that a network has free.
		if n, ok := r.(*Netif); ok && n.Device != "" {
			return 2*rankOf(r.Kind()) + 1
		}
		return 2 * rankOf(r.Kind())
	}
	slices.SortStableFunc(rs, func(a, b Resource) int { return rank(a) - rank(b) })
	for _, r := range rs {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// relayed tells whether an intermediate process is needed: one that stands in
// the parent machine's namespaces, or in a new time namespace, when it clones
// the machine's init. Otherwise msh's own clone makes it.
func (p *Plan) relayed() bool { return p.Under.Space != 0 || p.Clocks != nil }

// plain tells whether msh's own clone makes the init, and with msh's own ids.
func (p *Plan) plain() bool { return p.IDs == nil && !p.Under.User && !p.relayed() }

// Space is every namespace of the machine that is not the host's.
func (p *Plan) Space() uintptr {
	s := p.Under.Space | p.Flags | p.Unmade
	if p.Clocks != nil {
		s |= unix.CLONE_NEWTIME
	}
	return s
}

// namespaces are all kinds, in the order setns and the plan name them.
var namespaces = []struct {
	flag uintptr
	name string // as in /proc/PID/ns
	word string
}{
	{unix.CLONE_NEWUSER, "user", "UID"},
	{unix.CLONE_NEWPID, "pid", "PID"},
	{unix.CLONE_NEWNS, "mnt", "mount"},
	{unix.CLONE_NEWUTS, "uts", "UTS"},
	{unix.CLONE_NEWIPC, "ipc", "IPC"},
	{unix.CLONE_NEWNET, "net", "network"},
	{unix.CLONE_NEWCGROUP, "cgroup", "cgroup"},
	{unix.CLONE_NEWTIME, "time", "time"},
}

func spaceWords(flags uintptr) string {
	var words []string
	for _, n := range namespaces {
		if flags&n.flag != 0 {
			words = append(words, n.word)
		}
	}
	return strings.Join(words, ", ")
}

// Print writes the plan as `msh -n` shows it.
func (p *Plan) Print(w io.Writer) error {
	var b strings.Builder
	under := ""
	if p.Under.Name != "" {
		under = " in " + p.Under.Name
	}
	fmt.Fprintf(&b, "machine %s%s\n", p.Spec.Name, under)
	if s := p.Flags | p.Unmade; s != 0 {
		fmt.Fprintf(&b, "  new spaces: %s\n", spaceWords(s))
	}
	if p.IDs != nil {
		fmt.Fprintf(&b, "  ids: %s\n", p.IDs.words())
	}
	for _, c := range p.Claims {
		fmt.Fprintf(&b, "  claim: %s\n", claimWords(c))
	}
	for _, l := range p.Limits.Words() {
		fmt.Fprintf(&b, "  limit: %s\n", l)
	}
	for _, n := range p.Nets {
		fmt.Fprintf(&b, "  interface: %s\n", n.Words())
	}
	for _, r := range p.Spec.Resources {
		switch r := r.(type) {
		case *Netaddr:
			fmt.Fprintf(&b, "  programs: sockets have no address but %s\n", addressWords(r.Addresses))
		case *Routes:
			for _, route := range r.Routes {
				fmt.Fprintf(&b, "  route: %s\n", route)
			}
		}
	}
	for _, t := range p.Trees {
		if !p.relayed() {
			fmt.Fprintf(&b, "  open: %s\n", t.words())
		}
	}
	if p.devAhead() {
		b.WriteString("  /dev: a tmpfs with msh's minimal init in it\n")
	}
	if p.netAhead() {
		b.WriteString("  network: ")
		for _, s := range p.netSettings() {
			b.WriteString(s.words + ", ")
		}
		b.WriteString(loWords + "\n")
	}
	last := ""
	for i, s := range p.Steps.Steps() {
		if s.Words == last {
			continue // one of many alike
		}
		last = s.Words
		fmt.Fprintf(&b, "  %2d %s\n", i+1, s.Words)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func claimWords(c ledger.Claim) string {
	switch c.Kind {
	case "memory":
		return fmt.Sprintf("%d bytes of memory", c.Amount)
	case "cpu":
		return "CPU " + cpuOf(c)
	case "uid":
		return fmt.Sprintf("uid %d", firstOf(c))
	}
	return c.Kind + " " + c.Name
}
