package kernel

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
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
	own := map[string]bool{}
	for _, r := range s.Plan.Spec.Resources {
		if r, ok := r.(*Rlimit); ok {
			own[r.Name] = true
			s.rlimit(r)
		}
	}
	for _, r := range slices.Backward(s.Plan.Under.Limit) {
		if !own[r.Name] {
			own[r.Name] = true
			s.rlimit(r)
		}
	}
}

func (s *Steps) rlimit(r *Rlimit) {
	pair := binary.NativeEndian.AppendUint64(nil, r.Soft)
	pair = binary.NativeEndian.AppendUint64(pair, r.Hard)
	s.Call(fmt.Sprintf("rlimit %s %s %s", r.Name, limitText(r.Soft), limitText(r.Hard)), 0,
		unix.SYS_PRLIMIT64, 0, slices.Index(rlimits, r.Name), pair, 0)
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
