package netx

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// GiveNIC moves the interface of which nic was taken down into another namespace,
// where it is down and called as; "" keeps its name. Its number there is returned.
// It carries nic's mark from before it moves until TakeNICBack is done with it. On
// an error it is where and what it was.
func (n *NS) GiveNIC(nic *NIC, to *NS, as string) (index int, err error) {
	if as == "" {
		as = nic.Name
	}
	fail := func(err error) (int, error) { return 0, fmt.Errorf("give interface %s away: %w", nic.Name, err) }
	l, err := n.link(nic.Name)
	if err != nil {
		return 0, err
	}
	if l.Attrs().Index != nic.Index {
		return fail(fmt.Errorf("its number is %d now, it was %d: it is another one of that name", l.Attrs().Index, nic.Index))
	}
	if to.Has(as) {
		return fail(fmt.Errorf("there is an interface %s already where it should go", as))
	}
	h, err := n.Route()
	if err != nil {
		return fail(err)
	}
	if err := h.LinkSetAlias(l, nic.Mark()); err != nil {
		return fail(fmt.Errorf("set its alias: %w", err))
	}
	if err := n.move(nic.Index, to, as, 0); err != nil {
		if errors.Is(err, unix.EINVAL) {
			err = errors.New(kept)
		}
		// Where it had moved before something went wrong, it comes back from there.
		return fail(errors.Join(err, TakeNICBack(nic, to, n)))
	}
	index, err = to.Index(as)
	if err != nil {
		return fail(errors.Join(err, TakeNICBack(nic, to, n)))
	}
	return index, nil
}

// move has an interface go to another namespace by that name, and number where it
// is not 0. The kernel takes it down, moves it, and then renames it.
func (n *NS) move(index int, to *NS, name string, number int) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(infomsg(index, false))
	req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(to.fd))))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if number != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_NEW_IFINDEX, nl.Uint32Attr(uint32(number))))
	}
	return n.execute(req)
}

// goneAfter is how long a physical interface is looked for. Its namespace may have
// died just now: the kernel takes dead ones apart in its own time, many at once,
// and only then throws out what is in them.
var goneAfter = 10 * time.Second

// TakeNICBack finds an interface that was given away, moves it home and makes it
// what it was. from is the namespace it was given to, nil where that is no more;
// then the interface may also be at home, or in the initial namespace, which is
// that of process 1 as far as msh can see.
//
// It may be called at any time, again and again: when the interface was not given
// after all, when it is half-way back, and when it has come back, which it leaves
// alone. It goes on past errors and joins them. Where the interface's name has been
// taken meanwhile, it comes home under another one, which the error tells, and
// keeps its mark: a later call gives it its name.
func TakeNICBack(nic *NIC, from, home *NS) error {
	initial, err := Open("/proc/1/ns/net")
	if err != nil {
		initial = nil // a /proc without it
	} else {
		defer initial.Close()
	}
	at, err := nic.find(from, home, initial)
	if err != nil {
		return fmt.Errorf("take interface %s back: %w", nic.Name, err)
	}
	if at == nil {
		return nil
	}
	index, renamed, err := nic.bringHome(at, home)
	if err != nil {
		return fmt.Errorf("take interface %s back: %w", nic.Name, err)
	}
	if err := nic.restore(home, index, renamed); err != nil {
		return fmt.Errorf("restore interface %s: %w", nic.Name, err)
	}
	return nil
}

// place is where an interface is.
type place struct {
	ns    *NS
	index int
}

// find looks for the interface: by its mark, and else, as whoever had it could
// take that off, by what it is. It answers nil where it is at home and in order.
func (nic *NIC) find(from, home, initial *NS) (*place, error) {
	for end := time.Now().Add(goneAfter); ; time.Sleep(20 * time.Millisecond) {
		at, well, err := nic.look(from, home, initial)
		if at != nil || well || err != nil {
			return at, err
		}
		if !nic.physical() {
			return nil, fmt.Errorf("it %w: the kernel deletes a %s with its network namespace", ErrGone, nic.Kind)
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("it %w: no network namespace that it should be in has an interface of %s with MAC %s; it is unplugged, or a process holds the namespace it was in",
				ErrGone, or(nic.Device, "any device"), nic.PermanentMAC)
		}
	}
}

func or(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

func (nic *NIC) look(from, home, initial *NS) (at *place, well bool, err error) {
	homeID, err := home.ID()
	if err != nil {
		return nil, false, err
	}
	var like []place
	seen := map[uint64]bool{}
	for _, ns := range []*NS{from, home, initial} {
		if ns == nil {
			continue
		}
		id, err := ns.ID()
		if err != nil {
			return nil, false, err
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		h, err := ns.Route()
		if err != nil {
			return nil, false, err
		}
		all, err := h.LinkList()
		if err != nil {
			return nil, false, fmt.Errorf("list the interfaces: %w", err)
		}
		for _, l := range all {
			a := l.Attrs()
			switch {
			case a.Alias == nic.Mark():
				return &place{ns, a.Index}, false, nil
			case !nic.is(l):
			case id != homeID:
				like = append(like, place{ns, a.Index})
			case a.Name == nic.Name && (a.RawFlags&unix.IFF_UP != 0) == nic.Up:
				well = true // TakeNICBack takes the mark off last
			case a.Name == nic.Name || nic.physical():
				like = append(like, place{ns, a.Index})
			}
		}
	}
	if !well && len(like) == 1 {
		return &like[0], false, nil
	}
	return nil, well, nil
}

// is tells whether an interface without the mark is this one.
func (nic *NIC) is(l netlink.Link) bool {
	a := l.Attrs()
	if l.Type() != nic.Kind {
		return false
	}
	if nic.Device != "" || nic.PermanentMAC != "" {
		device := ""
		if a.ParentDev != "" {
			device = a.ParentDevBus + "/" + a.ParentDev
		}
		return device == nic.Device && a.PermHWAddr.String() == nic.PermanentMAC
	}
	return a.HardwareAddr.String() == nic.MAC
}
