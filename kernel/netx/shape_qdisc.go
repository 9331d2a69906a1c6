package netx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The handles of msh's queueing disciplines. They are their mark: one with another
// handle is never changed.
const (
	rootHandle  = 0x6d73 << 16 // netem; tbf where there is no netem
	rateHandle  = 0x6d74 << 16 // tbf below netem
	limitHandle = 0x6d75 << 16 // pfifo below tbf
)

// bucket is what tbf and its pfifo are told.
type bucket struct {
	rate  uint64 // bytes per second
	burst uint64 // bytes
	limit uint32 // packets
}

// frameSize is the longest frame, in bytes, as tbf counts it: with the Ethernet
// header and two VLAN tags.
func frameSize(mtu int) uint64 { return uint64(mtu) + 14 + 2*4 }

// newBucket fills in what i leaves open. Without a rate it is a bucket that never
// holds anything back.
func newBucket(i Impair, mtu int) bucket {
	if i.Rate == 0 {
		return bucket{1 << 40, maxBurst, math.MaxInt32}
	}
	b := bucket{i.Rate / 8, i.Burst, i.Limit}
	if b.burst == 0 {
		// What the timer, or a processor that is busy, comes late is made up for
		// out of the bucket, up to 8 ms; a smaller one would lose from the rate.
		const late = 8 * time.Millisecond
		b.burst = min(frameSize(mtu)+b.rate/uint64(time.Second/late), maxBurst)
	}
	if b.limit == 0 {
		b.limit = 1000 // an Ethernet's txqueuelen
	}
	return b
}

// setQueue makes the disciplines of a device, or changes them.
//
// tbf below netem splits bunches longer than the burst, which netem counted wrongly,
// until it sent nothing any more, before Linux 6.13, 6.12.6, 6.6.67, 6.1.121 and
// 5.15.175 (CVE-2024-56770).
func (n *NS) setQueue(dev int, s *shaping) error {
	root := func() error {
		if s.netem {
			return n.execute(netemRequest(dev, s.Impair))
		}
		return n.execute(tbfRequest(dev, netlink.HANDLE_ROOT, rootHandle, s.bucket, s.mtu, unix.NLM_F_CREATE))
	}
	err := root()
	if err == unix.EINVAL {
		// Ours, but of the other kind: netem has been loaded since.
		if err = n.deleteQueue(dev); err == nil {
			err = root()
		}
	}
	switch {
	case err == unix.EEXIST:
		return errors.New("it has a queueing discipline that is not msh's (see tc qdisc show)")
	case err == unix.ENOENT && !s.netem:
		return &Missing{"tbf, which a rate needs", "a kernel with CONFIG_NET_SCH_TBF (modprobe sch_tbf)", err}
	case err != nil:
		return fmt.Errorf("set the queueing discipline: %w", err)
	case !s.netem:
		return n.setLimit(dev, rootHandle, s.bucket)
	}
	// To take the rate away would drop what waits for it: it becomes endless.
	create := unix.NLM_F_CREATE
	if s.Rate == 0 {
		create = 0
	}
	err = n.execute(tbfRequest(dev, rootHandle|1, rateHandle, s.bucket, s.mtu, create))
	switch {
	case err == unix.ENOENT && s.Rate == 0:
		return nil // there never was one
	case err == unix.ENOENT:
		return &Missing{"tbf, which a rate needs", "a kernel with CONFIG_NET_SCH_TBF (modprobe sch_tbf)", err}
	case err != nil:
		return fmt.Errorf("set the rate: %w", err)
	}
	return n.setLimit(dev, rateHandle, s.bucket)
}

// setLimit puts the pfifo below tbf, or changes it.
func (n *NS) setLimit(dev int, parent uint32, b bucket) error {
	req := qdiscRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE, dev, parent|1, limitHandle, "pfifo")
	req.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, nl.Uint32Attr(b.limit))) // struct tc_fifo_qopt
	if err := n.execute(req); err != nil {
		return fmt.Errorf("set the limit: %w", err)
	}
	return nil
}

// deleteQueue takes msh's disciplines off a device, and drops what they hold. A
// device that is gone is no error.
func (n *NS) deleteQueue(dev int) error {
	err := n.execute(qdiscRequest(unix.RTM_DELQDISC, 0, dev, netlink.HANDLE_ROOT, rootHandle, ""))
	// EINVAL: the root has another handle; ENOENT: there is none.
	if err != nil && err != unix.EINVAL && err != unix.ENOENT && err != unix.ENODEV {
		return fmt.Errorf("delete the queueing discipline: %w", err)
	}
	return nil
}

// hasQueue tells whether a device has disciplines of msh's. The answer is the
// acknowledgement: the discipline itself is told to others who listen (no NLM_F_ECHO).
func (n *NS) hasQueue(dev int) (bool, error) {
	err := n.execute(qdiscRequest(unix.RTM_GETQDISC, 0, dev, netlink.HANDLE_ROOT, rootHandle, ""))
	if err == unix.EINVAL || err == unix.ENOENT { // as in deleteQueue
		return false, nil
	}
	return err == nil, err
}

func qdiscRequest(proto, flags, dev int, parent, handle uint32, kind string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(proto, flags|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(dev), Parent: parent, Handle: handle})
	if kind != "" {
		req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(kind)))
	}
	return req
}

// tbfRequest makes a tbf, or changes it.
func tbfRequest(dev int, parent, handle uint32, b bucket, mtu, create int) *nl.NetlinkRequest {
	const ethernet = 1 // TC_LINKLAYER_ETHERNET; without it tbf wants a table for rates
	opt := nl.TcTbfQopt{
		Rate: nl.TcRateSpec{Linklayer: ethernet, Rate: uint32(min(b.rate, math.MaxUint32))},
		// tbf makes a bfifo of that many bytes, or sets a pfifo that it has to
		// that many packets (fifo_set_limit); either way it is enough until
		// setLimit has come.
		Limit: uint32(min(uint64(b.limit)*frameSize(mtu), math.MaxUint32)),
	}
	req := qdiscRequest(unix.RTM_NEWQDISC, create, dev, parent, handle, "tbf")
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_TBF_PARMS, opt.Serialize())
	options.AddRtAttr(nl.TCA_TBF_BURST, nl.Uint32Attr(uint32(b.burst)))
	if b.rate > math.MaxUint32 {
		options.AddRtAttr(nl.TCA_TBF_RATE64, nl.Uint64Attr(b.rate))
	}
	req.AddData(options)
	return req
}

// netem's attributes that netlink has no names for (linux/pkt_sched.h).
const (
	netemLatency64 = 10 // TCA_NETEM_LATENCY64, Linux 4.16
	netemJitter64  = 11 // TCA_NETEM_JITTER64
)

// netemRequest makes a netem, or changes it. Everything is said each time: netem
// keeps what a message leaves out.
func netemRequest(dev int, i Impair) *nl.NetlinkRequest {
	share := func(percent float64) uint32 { return uint32(min(chance(percent), math.MaxUint32)) } // all ones is always
	opt := nl.TcNetemQopt{
		Latency: ticks(i.Delay), Jitter: ticks(i.Jitter), Limit: netemLimit(i),
		Loss: share(i.Loss), Duplicate: share(i.Duplicate),
	}
	if i.Reorder != 0 {
		opt.Gap = 1 // every frame may go ahead
	}
	req := qdiscRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE, dev, netlink.HANDLE_ROOT, rootHandle, "netem")
	options := nl.NewRtAttr(nl.TCA_OPTIONS, opt.Serialize())
	options.AddRtAttr(netemLatency64, nl.Uint64Attr(uint64(i.Delay)))
	options.AddRtAttr(netemJitter64, nl.Uint64Attr(uint64(i.Jitter)))
	options.AddRtAttr(nl.TCA_NETEM_CORR, (&nl.TcNetemCorr{}).Serialize())
	options.AddRtAttr(nl.TCA_NETEM_REORDER, (&nl.TcNetemReorder{Probability: share(i.Reorder)}).Serialize())
	options.AddRtAttr(nl.TCA_NETEM_CORRUPT, (&nl.TcNetemCorrupt{Probability: share(i.Corrupt)}).Serialize())
	if i.Jitter != 0 {
		options.AddRtAttr(nl.TCA_NETEM_DELAY_DIST, distribution(i.Distribution))
	}
	req.AddData(options)
	return req
}

// ticks is a duration as tc counts, in 64 ns (PSCHED_SHIFT); what is too long for it
// a kernel takes from the attributes of 64 bits.
func ticks(d time.Duration) uint32 { return uint32(min(d>>6, math.MaxUint32)) }

// netemLimit is how many packets netem has under way. Where a rate is set, they wait
// behind it and not here.
func netemLimit(i Impair) uint32 {
	if i.Rate == 0 && i.Limit != 0 {
		return i.Limit
	}
	// One for each microsecond: more than a processor can send.
	return uint32(min(max((i.Delay+4*i.Jitter).Microseconds(), 10_000), 1_000_000))
}

// htons is a number in the network's order, as tc takes a protocol.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
