package netx

import "fmt"

// Counters is what has gone through an interface since it was made: in packets and
// bytes, as the interface's driver counts them.
type Counters struct {
	RxPackets, TxPackets uint64
	RxBytes, TxBytes     uint64
	RxErrors, TxErrors   uint64
	RxDropped, TxDropped uint64
}

// Counters reads the counters of the interface with that index.
func (n *NS) Counters(link int) (Counters, error) {
	h, err := n.Route()
	if err != nil {
		return Counters{}, err
	}
	l, err := h.LinkByIndex(link)
	if err != nil {
		return Counters{}, fmt.Errorf("read the counters of interface number %d: %w", link, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return Counters{}, fmt.Errorf("read the counters of interface %s: the kernel tells none", l.Attrs().Name)
	}
	return Counters{
		RxPackets: s.RxPackets, TxPackets: s.TxPackets, RxBytes: s.RxBytes, TxBytes: s.TxBytes,
		RxErrors: s.RxErrors, TxErrors: s.TxErrors, RxDropped: s.RxDropped, TxDropped: s.TxDropped,
	}, nil
}
