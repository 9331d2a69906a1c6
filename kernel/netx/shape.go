package netx

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ShapeOut has what leaves through an interface meet with i, whole: what was asked
// before and is not in i ends. A change happens in place, without a packet lost,
// except that taking all away, or the rate where there is no netem, drops what is
// still under way. The frame that is next waits for as long as it was told, unless
// another follows it. An interface with a queueing discipline of somebody else's is
// left alone and is an error.
//
//	        with netem                        without
//	frame ─> netem ─> tbf ─> pfifo ─> wire    bpf ─> tbf ─> pfifo ─> wire
//	         delay…   rate   limit            loss   rate   limit
//
// Without netem, which not every kernel has, the rest is a *Missing, and what was
// there stays. tbf drops frames longer than its burst, which depends on the
// interface's MTU: after a change of that, call it again.
func (n *NS) ShapeOut(link int, i Impair) error {
	s, err := n.shaping(link, i)
	if err == nil {
		err = n.shapeOut(s)
	}
	if err != nil {
		return fmt.Errorf("shape what leaves interface %d: %w", link, err)
	}
	return nil
}

// ShapeIn is ShapeOut for what comes in. A queue is only to be had for what leaves,
// so all that comes in leaves through an ifb, an interface made for it, which puts
// it back where it came in. Before that no one has seen it but who listens on the
// interface with a packet socket; a bridge that it is a port of has not. The two
// ends of a patch cannot do it; shape what leaves the other one. The ifb outlives
// the interface: ask for Impair{} when that is deleted, before or after.
func (n *NS) ShapeIn(link int, i Impair) error {
	s, err := n.shaping(link, i)
	if err == nil {
		err = n.shapeIn(s)
	}
	if err != nil {
		return fmt.Errorf("shape what comes in through interface %d: %w", link, err)
	}
	return nil
}

// shaping is what is to be done, checked.
type shaping struct {
	Impair
	link  int
	mtu   int
	netem bool // the kernel has it
	bucket
}

// shaping checks that the kernel can do it, before anything is changed.
func (n *NS) shaping(link int, i Impair) (*shaping, error) {
	if err := i.Validate(); err != nil {
		return nil, err
	}
	s := &shaping{Impair: i, link: link}
	if i.idle() {
		return s, nil
	}
	var err error
	if s.netem, err = haveNetem(i.beyondTBF() != ""); err != nil {
		return nil, err
	}
	if options := i.beyondTBF(); !s.netem && options != "" {
		return nil, &Missing{options + " on a link", netemMend, errNoNetem}
	}
	h, err := n.Route()
	if err != nil {
		return nil, err
	}
	l, err := h.LinkByIndex(link)
	if err != nil {
		return nil, err
	}
	s.mtu = l.Attrs().MTU
	s.bucket = newBucket(i, s.mtu)
	if frame := frameSize(s.mtu); i.Rate != 0 && s.burst < frame {
		return nil, &OptionError{"burst", fmt.Sprint(i.Burst), fmt.Sprintf("at least the %d bytes that a frame with an MTU of %d can have", frame, s.mtu)}
	}
	return s, nil
}

func (n *NS) shapeOut(s *shaping) error {
	if s.idle() {
		if err := n.deleteQueue(s.link); err != nil {
			return err
		}
		return n.unhook(s.link, egress, prioLoss)
	}
	if err := n.prepareHooks(s.link); err != nil {
		return err
	}
	if s.netem || s.Rate != 0 {
		if err := n.setQueue(s.link, s); err != nil {
			return err
		}
	} else if err := n.deleteQueue(s.link); err != nil {
		return err
	}
	return n.shapeLoss(s, egress)
}

// shapeLoss loses frames where netem does not.
func (n *NS) shapeLoss(s *shaping, where uint32) error {
	if s.netem || s.Loss == 0 {
		return n.unhook(s.link, where, prioLoss)
	}
	return n.hookLoss(s.link, where, chance(s.Loss))
}

func (n *NS) shapeIn(s *shaping) error {
	if !s.idle() && (s.netem || s.Rate != 0) {
		if err := n.detour(s); err != nil {
			return err
		}
	} else {
		if err := n.unhook(s.link, ingress, prioDetour); err != nil {
			return err
		}
		if err := n.Delete(ifbIndex(s.link)); err != nil {
			return fmt.Errorf("delete the ifb: %w", err)
		}
	}
	return n.shapeLoss(s, ingress)
}

// detour has what comes in go through an ifb.
func (n *NS) detour(s *shaping) error {
	// What an ifb puts back skips the hook (tc_skip_classify in ifb_ri_tasklet).
	if patched, err := n.hooked(s.link, ingress, prioPatch); err != nil {
		return err
	} else if patched {
		return errors.New("it is an end of a patch: shape what leaves the other end")
	}
	if err := n.addIFB(s.link, s.mtu); err != nil {
		return err
	}
	err := n.setQueue(ifbIndex(s.link), s)
	if err == nil {
		err = n.hookDetour(s.link)
	}
	if err != nil {
		if on, e := n.hooked(s.link, ingress, prioDetour); e == nil && !on {
			err = errors.Join(err, n.Delete(ifbIndex(s.link))) // it was new
		}
	}
	return err
}

// ifbIndex is the index of the ifb of an interface. It is far above what the kernel
// counts up to, so that none is taken which somebody else would choose.
func ifbIndex(link int) int { return 1<<30 | link }

// addIFB makes the ifb of an interface, up. One that is there is no error.
func (n *NS) addIFB(link, mtu int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(infomsg(ifbIndex(link), true))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(fmt.Sprintf("i%d", link))))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))) // for tbf, which complains when a burst is less
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("ifb"))
	req.AddData(info)
	err := n.execute(req)
	switch {
	case err == unix.EOPNOTSUPP:
		return &Missing{"ifb, which shaping what comes in needs", "a kernel with CONFIG_IFB (modprobe ifb)", err}
	case err != nil && err != unix.EEXIST:
		return fmt.Errorf("make the ifb: %w", err)
	}
	return nil
}
