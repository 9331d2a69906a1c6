package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
)

// What is different for machines of a user who is not root.

// under is what the host is to the machines that it is the parent of.
func (h *Host) under() Under {
	if h.space == nil && os.Geteuid() == 0 {
		return Under{}
	}
	return Under{User: true, OneID: h.space.single()}
}

// bound is a copy of the spec of which the kernel can end every process: where no
// control group holds them, a PID space does. So it is given to machines that do not
// name one, as if they had.
// An overlay over the host's root is laid out as the kernel can make it here.
func (h *Host) bound(parent *Machine, spec *Spec) (Spec, error) {
	s := *spec
	if !h.Cgroup.User {
		return s, nil
	}
	if h.Cgroup.Group("", cgroup.Limits{}, false).Tracker == "" && !s.Has("pidspace") {
		s.Resources = append(slices.Clone(s.Resources), &Space{Name: "pidspace"})
	}
	return s, h.layered(parent, &s)
}

// writeInit writes the machine's init into the ledger, as the one with whom all its
// processes end. Until then it waits for msh, and ends if that is killed.
func (t *Txn) writeInit(c *Child) error {
	if err := t.step("write its init down"); err != nil {
		return err
	}
	g := t.plan.Group
	g.Init = &cgroup.Init{Pid: c.pid, Start: startTime(c.pid)}
	return t.ledger.Write("cgroup", g)
}

// stayAwake is the environment that takes another msh, which outlives this one, for
// one in the space; nil for root's.
func (u *userSpace) stayAwake() []string {
	var st unix.Stat_t
	if u == nil || unix.Stat("/proc/self/ns/user", &st) != nil {
		return nil
	}
	return []string{u.env(st.Ino, -1)}
}

// spares tells whether that many ids are there besides the user's own.
func (u *userSpace) spares(size uint32) bool { return u.ids()-1 >= size }

func (u *userSpace) tooFew(size uint32) error {
	e := &ParamError{Kind: "uidspace", Param: "size", Got: fmt.Sprint(size), Want: fmt.Sprintf("at most %d: the ids that /etc/subuid gives this user", u.ids()-1)}
	e.Mend = subMend
	if u.Lack != "" {
		e.Want += " (" + u.Lack + ")"
	}
	if n := u.ids(); n > 1 {
		e.Mend = fmt.Sprintf("uidspace(size=%d), uidspace(map=[(0, 0, %d)]) for ids that are the parent's, or more of them: %s", min(n-1, 1000), n, subMend)
	} else {
		e.Mend = "uidspace(map=[(0, 0, 1)]), or more ids: " + e.Mend
	}
	return e
}

// checkSpace sees that the ids named are there in the space of a user.
func (u *Uidspace) checkSpace(t *Txn) error {
	s := t.host.space
	if s == nil || t.plan.Under.IDs != nil {
		return nil
	}
	maps := u.Map
	if u.Base != nil {
		maps = []IDMap{{0, *u.Base, u.size()}}
	}
	for _, m := range maps {
		if uint64(m.Outside)+uint64(m.Size) > uint64(s.ids()) {
			e := s.tooFew(m.Size).(*ParamError)
			e.Param, e.Got, e.Want = "map", m.String(), fmt.Sprintf("ids of this user's, which are 0 to %d", s.ids()-1)
			return e
		}
	}
	return nil
}

// needsRoot is the error of a kind that only the host's root can have.
func (h *Host) needsRoot(what, why, mend string) error {
	if h.space == nil {
		return nil
	}
	return unsupported(mend, "%s for an ordinary user: %s", what, why)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// explainPermission is the mend for an EPERM of what root may do.
func explainPermission() string {
	if InSpace() {
		return "the kernel keeps this from ordinary users, or has it locked (`msh doctor`): run msh as root"
	}
	return "msh makes namespaces and control groups: run it as root"
}

// findings are what the doctor says of the space of a user; none of root.
func (u *userSpace) findings(h *Host) []Finding {
	if u == nil {
		return nil
	}
	ids := Finding{Name: "ids", OK: u.Lack == "", Detail: fmt.Sprintf("%d, of which 0 is this user", u.ids())}
	if !ids.OK {
		ids.Detail, ids.Mend = "the user's own alone, which is root in machines: no uidspace but map=[(0, 0, 1)], no user= but root ("+u.Lack+")", "install uidmap, and "+subMend
	}
	_, path, err := findWayOut()
	nat := Finding{Name: "way out", OK: err == nil, Detail: "vnet(nat=True) goes through " + path}
	if err != nil {
		nat.Detail = err.Error()
		if hint := (interface{ Hint() string })(nil); errors.As(err, &hint) {
			nat.Mend = hint.Hint()
		}
	}
	return []Finding{ids, nat, {Name: "state", OK: true, Detail: h.State}}
}
