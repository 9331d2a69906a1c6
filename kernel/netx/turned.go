package netx

// Turned are the counters as the other end of the cable has them.
func (c Counters) Turned() Counters {
	return Counters{
		RxPackets: c.TxPackets, RxBytes: c.TxBytes, RxErrors: c.TxErrors, RxDropped: c.TxDropped,
		TxPackets: c.RxPackets, TxBytes: c.RxBytes, TxErrors: c.RxErrors, TxDropped: c.RxDropped,
	}
}
