package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"msh/kernel/ledger"
)

// Uidspace is a user and group ID space of a machine's own: its root is nobody
// outside.
type Uidspace struct {
	Base *uint32 `json:",omitempty"` // of the parent's ids; nil: a range nobody has
	Size uint32  `json:",omitempty"` // 0: 65536
	Map  []IDMap `json:",omitempty"` // instead of both
}

// IDMap maps Size ids from Inside on to the parent's from Outside on.
type IDMap struct{ Inside, Outside, Size uint32 }

func (m IDMap) String() string { return fmt.Sprintf("(%d, %d, %d)", m.Inside, m.Outside, m.Size) }

// IDs are the maps of a machine being planned.
type IDs struct {
	Free bool    // Maps[0].Outside is to be found by the Txn
	Maps []IDMap // to the parent's ids
}

const (
	defaultIDs = 65536
	// firstID is where msh hands out ranges: above systemd's own (container
	// UIDs up to 0x6FFFFFFF), below what 32-bit programs take for negative.
	firstID = 0x7000_0000
	lastID  = 0x7fff_0000
)

// Kind is "uidspace".
func (*Uidspace) Kind() string { return "uidspace" }

// Mode is exclusive where msh finds the range: no other machine has it.
func (u *Uidspace) Mode() Mode {
	if u.Map != nil {
		return New
	}
	return Exclusive
}

func (u *Uidspace) size() uint32 {
	if u.Size == 0 {
		return defaultIDs
	}
	return u.Size
}

// Validate checks ranges and overlaps.
func (u *Uidspace) Validate() error {
	if u.Map != nil {
		if u.Base != nil || u.Size != 0 {
			return bad("uidspace", "map", nil, "either map, or base and size")
		}
		if len(u.Map) == 0 || len(u.Map) > 340 {
			return bad("uidspace", "map", len(u.Map), "1 to 340 entries (inside, outside, size)")
		}
		root := false
		for i, m := range u.Map {
			if m.Size == 0 || uint64(m.Inside)+uint64(m.Size) > 1<<32-1 || uint64(m.Outside)+uint64(m.Size) > 1<<32-1 {
				return bad("uidspace", "map", m, "ranges of at least one id that end below 4294967295")
			}
			root = root || m.Inside == 0
			for _, o := range u.Map[:i] {
				if overlap(m.Inside, m.Size, o.Inside, o.Size) || overlap(m.Outside, m.Size, o.Outside, o.Size) {
					return &ParamError{Kind: "uidspace", Param: "map", Got: fmt.Sprintf("%v and %v", o, m), Want: "ranges that do not overlap"}
				}
			}
		}
		if !root {
			return bad("uidspace", "map", nil, "want id 0 mapped: the machine's init is its root")
		}
		return nil
	}
	if u.Base != nil && uint64(*u.Base)+uint64(u.size()) > 1<<32-1 {
		return bad("uidspace", "base", *u.Base, fmt.Sprintf("a range of %d ids that ends below 4294967295", u.size()))
	}
	return nil
}

func overlap(a, an, b, bn uint32) bool {
	return uint64(a) < uint64(b)+uint64(bn) && uint64(b) < uint64(a)+uint64(an)
}

// Plan asks for a user namespace, and lays out its map.
func (u *Uidspace) Plan(p *Plan) error {
	p.Flags |= unix.CLONE_NEWUSER
	switch {
	case u.Map != nil:
		p.IDs = &IDs{Maps: u.Map}
	case u.Base != nil:
		p.IDs = &IDs{Maps: []IDMap{{0, *u.Base, u.size()}}}
		if p.Under.IDs == nil {
			p.Claims = append(p.Claims, ledger.Claim{Kind: "uid", Name: fmt.Sprint(*u.Base), Amount: int64(u.size())})
		}
	default:
		p.IDs = &IDs{Free: true, Maps: []IDMap{{0, 0, u.size()}}}
	}
	if u.Base != nil || u.Map != nil {
		for _, m := range p.IDs.Maps {
			if _, ok := outward(p.Under.IDs, m.Outside, m.Size); !ok {
				return bad("uidspace", "base", m.Outside, fmt.Sprintf("%d ids that %s has", m.Size, p.Under.Name))
			}
		}
	}
	return nil
}

// outward turns a range of a machine's ids into the host's; false where the
// machine does not have it, or not in one piece.
func outward(maps []IDMap, id, size uint32) (uint32, bool) {
	if maps == nil {
		return id, true
	}
	for _, m := range maps {
		if id >= m.Inside && uint64(id)+uint64(size) <= uint64(m.Inside)+uint64(m.Size) {
			return m.Outside + (id - m.Inside), true
		}
	}
	return 0, false
}

func (d *IDs) words() string {
	if d.Free {
		return fmt.Sprintf("0-%d are a range that no other machine has", d.Maps[0].Size-1)
	}
	var parts []string
	for _, m := range d.Maps {
		parts = append(parts, fmt.Sprintf("%d-%d are the parent's %d-%d", m.Inside, m.Inside+m.Size-1, m.Outside, m.Outside+m.Size-1))
	}
	return strings.Join(parts, ", ")
}

// shifts tells whether an id inside is another one of the parent's: then the
// owners of files that both use must be shifted.
func (d *IDs) shifts() bool {
	return d.Free || slices.ContainsFunc(d.Maps, func(m IDMap) bool { return m.Inside != m.Outside })
}

// text is the map as uid_map takes it.
func (d *IDs) text() string {
	var b strings.Builder
	for _, m := range d.Maps {
		fmt.Fprintf(&b, "%d %d %d\n", m.Inside, m.Outside, m.Size)
	}
	return b.String()
}

func (d *IDs) sysProcIDMap() []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range d.Maps {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.Inside), HostID: int(m.Outside), Size: int(m.Size)})
	}
	return out
}

// absolute are the maps as the host sees them.
func (d *IDs) absolute(under []IDMap) []IDMap {
	var out []IDMap
	for _, m := range d.Maps {
		at, _ := outward(under, m.Outside, m.Size)
		out = append(out, IDMap{m.Inside, at, m.Size})
	}
	return out
}

// Prepare checks that a named range is free, or finds one that is; the book is
// locked meanwhile.
func (u *Uidspace) Prepare(t *Txn) error {
	if err := u.checkSpace(t); err != nil || u.Map != nil {
		return err
	}
	claims, err := t.host.book.Claims("uid")
	if err != nil {
		return err
	}
	ids, under := t.plan.IDs, t.plan.Under.IDs
	size := u.size()
	if t.host.space != nil && under == nil && u.Base == nil && !t.host.space.spares(size) {
		return t.host.space.tooFew(size)
	}
	if u.Base != nil {
		at, _ := outward(under, *u.Base, size)
		if c, ok := taken(claims, at, size, t.parent); ok {
			shift := int64(*u.Base) - int64(at) // to the parent's numbers
			return &ParamError{Kind: "uidspace", Param: "base", Got: fmt.Sprint(*u.Base), Want: fmt.Sprintf("a free range: machine %s has %d to %d", c.Owner, firstOf(c)+shift, endOf(c)+shift),
				Mend: "leave base out, or share a range on purpose with map=[(0, BASE, SIZE)]"}
		}
		if under == nil {
			return nil // Plan has claimed it
		}
		// Its first ids may be the parent's own, whose claim has that number already.
		return t.claim(ledger.Claim{Kind: "uid", Name: fmt.Sprintf("%d.%s.%s", at, t.lab.name, t.plan.Spec.Name), Amount: int64(size)})
	}
	lo, hi := uint32(firstID), uint32(lastID)
	if under != nil {
		// The parent's own processes have its first 65536.
		m := under[0]
		if m.Size <= defaultIDs || m.Size-defaultIDs < size {
			return &ParamError{Kind: "uidspace", Param: "size", Got: fmt.Sprint(size), Want: fmt.Sprintf("ids that %s can spare: it has %d, and the first %d are its own", t.parent.Name(), m.Size, defaultIDs),
				Mend: fmt.Sprintf("make %s with uidspace(size=%d)", t.parent.Name(), defaultIDs+uint64(size))}
		}
		lo, hi = m.Outside+defaultIDs, m.Outside+m.Size
	} else if t.host.space != nil {
		lo, hi = 1, t.host.space.ids() // 0 is the user
	} else {
		subs, err := subordinate()
		if err != nil {
			return err
		}
		claims = append(claims, subs...)
	}
	for at := lo; uint64(at)+uint64(size) <= uint64(hi); {
		c, ok := taken(claims, at, size, t.parent)
		if !ok {
			ids.Maps[0].Outside = at
			if under != nil {
				ids.Maps[0].Outside = at - under[0].Outside + under[0].Inside
			}
			ids.Free = false
			return t.claim(ledger.Claim{Kind: "uid", Name: fmt.Sprint(at), Amount: int64(size)})
		}
		next := endOf(c) + 1
		if next > int64(hi) { // and perhaps above what 32 bits hold
			break
		}
		at = uint32(next)
	}
	return bad("uidspace", "size", size, "a range that is still free: all are taken")
}

// firstOf is the first of the host's ids that a claim is on, endOf the last. The
// claim of a range inside another machine's has its owner behind the number.
func firstOf(c ledger.Claim) int64 {
	number, _, _ := strings.Cut(c.Name, ".")
	base, _ := strconv.ParseInt(number, 10, 64)
	return base
}

func endOf(c ledger.Claim) int64 { return firstOf(c) + c.Amount - 1 }

// taken finds a claim that meets the range, and is not the parent's own or an
// ancestor's: those are where a nested range comes from.
func taken(claims []ledger.Claim, at, size uint32, parent *Machine) (ledger.Claim, bool) {
	for _, c := range claims {
		if overlap(at, size, uint32(firstOf(c)), uint32(c.Amount)) && !parent.within(c.Owner) {
			return c, true
		}
	}
	return ledger.Claim{}, false
}

// subordinate lists the ranges that /etc/subuid and /etc/subgid give to users.
func subordinate() ([]ledger.Claim, error) {
	var claims []ledger.Claim
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		f, err := os.Open(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		s := bufio.NewScanner(f)
		for s.Scan() {
			parts := strings.Split(strings.TrimSpace(s.Text()), ":")
			if len(parts) != 3 {
				continue
			}
			base, err1 := strconv.ParseUint(parts[1], 10, 32)
			n, err2 := strconv.ParseUint(parts[2], 10, 32)
			if err1 == nil && err2 == nil && base+n > firstID {
				claims = append(claims, ledger.Claim{Kind: "uid", Name: fmt.Sprint(base), Amount: int64(n), Owner: file})
			}
		}
		if err := s.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return claims, nil
}
