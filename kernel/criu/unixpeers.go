package criu

import (
	"encoding/binary"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// unixPeers are the unix sockets of a process's network, by inode, with the inode
// of the one each is joined to; nil where they cannot be listed (CONFIG_UNIX_DIAG).
//
// The request is sock_diag(7)'s own: netlink's UnixSocketDiagInfo takes a socket's
// type for its family, and ends its list at the first one that is not a stream.
func unixPeers(pid int) map[uint64]uint64 {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil
	}
	defer ns.Close()
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil
	}
	defer s.Close()
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: s}}
	req.AddRawData(unixDiagRequest())
	m := map[uint64]uint64{}
	err = req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
		if ino, peer, ok := unixDiag(msg); ok {
			m[ino] = peer
		}
		return true
	})
	if err != nil {
		return nil
	}
	return m
}

// As in linux/unix_diag.h.
const (
	unixDiagReqSize  = 24 // struct unix_diag_req
	unixDiagMsgSize  = 16 // struct unix_diag_msg
	unixDiagShowPeer = 0x4
	unixDiagPeer     = 2
)

func unixDiagRequest() []byte {
	b := make([]byte, unixDiagReqSize)
	b[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // in all states
	binary.NativeEndian.PutUint32(b[12:], unixDiagShowPeer)
	return b
}

// unixDiag reads one answer: a socket, and the one that it is joined to, 0 for none.
func unixDiag(msg []byte) (ino, peer uint64, ok bool) {
	if len(msg) < unixDiagMsgSize || msg[0] != unix.AF_UNIX {
		return 0, 0, false
	}
	attrs, err := nl.ParseRouteAttr(msg[unixDiagMsgSize:])
	if err != nil {
		return 0, 0, false
	}
	for _, a := range attrs {
		if a.Attr.Type == unixDiagPeer && len(a.Value) >= 4 {
			peer = uint64(binary.NativeEndian.Uint32(a.Value))
		}
	}
	return uint64(binary.NativeEndian.Uint32(msg[4:])), peer, true
}
