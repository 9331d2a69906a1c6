// Package netx makes networks out of the kernel's parts: namespaces, switches,
// ports, cables, and what shapes, filters and counts their traffic. It knows
// no machines and keeps no state; what it makes lies in network namespaces that
// are handed in as descriptors, so that no thread of the caller's ever moves.
//
//	ns, err := netx.Make()                       // a namespace
//	br, err := ns.AddBridge("switch", 1500)      // a switch in it
//	err = ns.AddVeth(netx.Veth{…, Peer: other})  // a port, its other end made in place
//	err = ns.ShapeOut(port, netx.Impair{…})      // what leaves through it
package netx
