package kernel

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// Rlimit is one of the limits of setrlimit(2), for every process of the machine.
type Rlimit struct {
	Name string // "nofile", "core", …
	Soft uint64 // Unlimited for none
	Hard uint64
}

// Unlimited is RLIM_INFINITY.
const Unlimited = ^uint64(0)

// rlimits are the names, at the places of their numbers.
var rlimits = []string{"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile",
	"memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"}

// Kind is "rlimit".
func (*Rlimit) Kind() string { return "rlimit" }

// Mode is shared.
func (*Rlimit) Mode() Mode { return Shared }

// Key is the limit's name.
func (r *Rlimit) Key() string { return r.Name }

// Validate checks the name, and that soft is not above hard.
func (r *Rlimit) Validate() error {
	if !slices.Contains(rlimits, r.Name) {
		return bad("rlimit", "name", r.Name, "one of "+strings.Join(rlimits, " "))
	}
	if r.Soft > r.Hard {
		return bad("rlimit", "soft", limitText(r.Soft), "at most hard, "+limitText(r.Hard))
	}
	return nil
}

func limitText(v uint64) string {
	if v == Unlimited {
		return "unlimited"
	}
	return fmt.Sprint(v)
}

// Plan refuses more than the parent may have itself.
func (r *Rlimit) Plan(p *Plan) error { return r.under(p.Under.Limit, p.Under.Name) }

// under checks the limit against those of the parent, of which the last counts.
func (r *Rlimit) under(limits []*Rlimit, parent string) error {
	for _, u := range slices.Backward(limits) {
		if u.Name == r.Name {
			if r.Hard > u.Hard {
				return bad("rlimit", "hard", limitText(r.Hard), "at most "+limitText(u.Hard)+", which "+parent+" has")
			}
			return nil
		}
	}
	return nil
}

// rlimits sets the limits of the machine's init, and so of all it starts: its own,
// and of those of the machines that it is in the ones it has not itself. They come
// right before exec: with nofile or fsize small, no other step would succeed.
func (s *Steps) rlimits() {
	all := slices.Clone(s.Plan.Under.Limit)
	for _, r := range s.Plan.Spec.Resources {
		if r, ok := r.(*Rlimit); ok {
			all = append(all, r)
		}
	}
	s.lastOf(all)
}

// lastOf sets of the limits of each name the last.
func (s *Steps) lastOf(limits []*Rlimit) {
	for i, r := range limits {
		if !slices.ContainsFunc(limits[i+1:], func(o *Rlimit) bool { return o.Name == r.Name }) {
			s.rlimit(r)
		}
	}
}

func (s *Steps) rlimit(r *Rlimit) { s.rlimitOr(0, r) }

func (s *Steps) rlimitOr(flags stage0.Flags, r *Rlimit) {
	pair := binary.NativeEndian.AppendUint64(nil, r.Soft)
	pair = binary.NativeEndian.AppendUint64(pair, r.Hard)
	s.Call(fmt.Sprintf("rlimit %s %s %s", r.Name, limitText(r.Soft), limitText(r.Hard)), flags,
		unix.SYS_PRLIMIT64, 0, slices.Index(rlimits, r.Name), pair, 0)
}

// limitsOf are all the limits of a process.
func limitsOf(pid int) (all [16]Rlimit, err error) {
	for i, name := range rlimits {
		var l unix.Rlimit
		if err := unix.Prlimit(pid, i, nil, &l); err != nil {
			return all, fmt.Errorf("rlimits of process %d: %w", pid, err)
		}
		all[i] = Rlimit{name, l.Cur, l.Max}
	}
	return all, nil
}

// takeLimits has the process that enters take the limits that the machine's init has,
// where a child of msh would have others: whoever calls has theirs from another log-in.
// It comes where the process can raise a hard limit yet, if it can at all.
func (s *Steps) takeLimits(m *Machine) {
	own, err := limitsOf(0)
	if err != nil {
		return
	}
	its, err := limitsOf(m.pid)
	if err != nil {
		return // who is in another group than root may not look; or it has ended, as entering it will tell
	}
	for i := range its {
		r := &its[i]
		// Of descriptors msh does not know its children's soft limit: Go raises its own.
		if *r == own[i] && r.Name != "nofile" {
			continue
		}
		s.unnamed = append(s.unnamed, r)
		if r.Hard > own[i].Hard {
			s.rlimitOr(stage0.MayFail, &Rlimit{r.Name, own[i].Soft, r.Hard})
		}
	}
}

// enteredLimits sets them, and those that are named.
func (s *Steps) enteredLimits() {
	for _, r := range s.unnamed {
		if !slices.ContainsFunc(s.Plan.Under.Limit, func(o *Rlimit) bool { return o.Name == r.Name }) {
			s.rlimitOr(stage0.MayFail, r)
		}
	}
	s.lastOf(s.Plan.Under.Limit)
}

// takeLimits has the parked child of a machine in a machine have those of its parent's
// init; the child sets its own.
func (t *Txn) takeLimits(c *Child) error {
	if t.parent.isHost() {
		return nil
	}
	its, err := limitsOf(t.parent.pid)
	if err != nil {
		return nil // who is in another group than root may not look
	}
	own, err := limitsOf(c.pid)
	if err != nil {
		return err
	}
	for i, l := range its {
		if l == own[i] {
			continue
		}
		err := unix.Prlimit(c.pid, i, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil)
		if err != nil && err != unix.EPERM { // where only the host's root could raise it
			return fmt.Errorf("rlimit %s: %w", l.Name, err)
		}
	}
	return nil
}

// set changes the limit of every process the machine has now; those it starts
// later inherit it, or get it on their way in.
func (r *Rlimit) set(m *Machine) error {
	if err := r.under(m.parent.self.Limit, m.parent.Name()); err != nil {
		return err
	}
	pids, err := m.group.Pids()
	if err != nil {
		return err
	}
	lim := &unix.Rlimit{Cur: r.Soft, Max: r.Hard}
	for _, pid := range pids {
		if err := unix.Prlimit(pid, slices.Index(rlimits, r.Name), lim, nil); err != nil && err != unix.ESRCH {
			return fmt.Errorf("rlimit %s of process %d: %w", r.Name, pid, err)
		}
	}
	return nil
}
