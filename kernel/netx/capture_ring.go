package netx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The ring is memory that the kernel and the reader share (packet(7), PACKET_RX_RING
// with TPACKET_V3): blocks, each full of packets of any length. The kernel hands a
// block over when it is full, or has been begun for so long. With a ring of this
// size as little is dropped as by tcpdump -B 16384, and less than by its usual 2 MiB.
const (
	blockSize   = 1 << 20 // bytes, more than the longest packet: 512 KiB, with BIG TCP
	blocks      = 16
	retireAfter = 16 * time.Millisecond
)

type ring struct {
	mem []byte
	at  int // the block that is the next to be handed over
}

// newRing gives a packet socket its ring.
func newRing(fd int) (*ring, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return nil, fmt.Errorf("make a ring: %w", err)
	}
	const frame = 2048 // only checked, with this version
	err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
		Block_size: blockSize, Block_nr: blocks, Frame_size: frame, Frame_nr: blockSize / frame * blocks,
		Retire_blk_tov: uint32(retireAfter.Milliseconds()),
	})
	if err != nil {
		return nil, fmt.Errorf("make a ring of %d MiB: %w", blocks*blockSize>>20, err)
	}
	mem, err := unix.Mmap(fd, 0, blockSize*blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	return &ring{mem: mem}, nil
}

func (r *ring) close() { unix.Munmap(r.mem) }

// header is that of the next block. The kernel's struct tpacket_block_desc is a
// version, an offset, and then this.
func (r *ring) header() *unix.TpacketHdrV1 {
	return (*unix.TpacketHdrV1)(unsafe.Pointer(&r.mem[r.at*blockSize+8]))
}

// ready tells whether the next block is the reader's.
func (r *ring) ready() bool {
	return atomic.LoadUint32(&r.header().Block_status)&unix.TP_STATUS_USER != 0
}

// empty tells that the kernel has put nothing into the next block.
func (r *ring) empty() bool { return !r.ready() && atomic.LoadUint32(&r.header().Num_pkts) == 0 }

// release gives the block back to the kernel.
func (r *ring) release() {
	h := r.header()
	h.Num_pkts = 0 // for empty: the kernel sets it only when it begins the block
	atomic.StoreUint32(&h.Block_status, unix.TP_STATUS_KERNEL)
	r.at = (r.at + 1) % blocks
}

// packets yields those of the next block, which are valid until it is released.
func (r *ring) packets() iter.Seq[packet] {
	return func(yield func(packet) bool) {
		block := r.mem[r.at*blockSize:][:blockSize]
		h := r.header()
		at := h.Offset_to_first_pkt
		for range h.Num_pkts {
			p := packet{(*unix.Tpacket3Hdr)(unsafe.Pointer(&block[at])), block[at:]}
			if !yield(p) || p.Next_offset == 0 {
				return
			}
			at += p.Next_offset
		}
	}
}

// packet is one in the ring.
type packet struct {
	*unix.Tpacket3Hdr
	mem []byte // from its header on
}

// appendTo appends the packet as a record of a pcap file, at most snaplen bytes of
// it. The kernel takes a VLAN's tag out of the packet and tells it beside (802.1Q:
// it stands after the two addresses).
func (p packet) appendTo(b []byte, snaplen int) []byte {
	data, had := p.mem[p.Mac:][:p.Snaplen], int(p.Len)
	const addresses = 12
	if p.Status&unix.TP_STATUS_VLAN_VALID == 0 || len(data) < addresses {
		kept := min(len(data), snaplen)
		return append(appendRecord(b, p.Sec, p.Nsec, kept, had), data[:kept]...)
	}
	kind := uint16(unix.ETH_P_8021Q)
	if p.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		kind = p.Hv1.Vlan_tpid
	}
	tag := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, kind), uint16(p.Hv1.Vlan_tci))
	kept := min(len(data)+len(tag), snaplen)
	b = appendRecord(b, p.Sec, p.Nsec, kept, had+len(tag))
	end := len(b) + kept
	b = append(append(append(b, data[:addresses]...), tag...), data[addresses:]...)
	return b[:end]
}

// tapped finds the interface to capture on, or where it is "" one that stands for
// all of them.
func (n *NS) tapped(link string) (netlink.Link, error) {
	if link == "" {
		h, err := n.Route()
		if err != nil {
			return nil, err
		}
		all, err := h.LinkList()
		if err != nil {
			return nil, fmt.Errorf("list the interfaces: %w", err)
		}
		for _, l := range all {
			if l.Attrs().EncapType == "ether" {
				return l, nil
			}
		}
		return nil, errors.New("there is none of Ethernet")
	}
	l, err := n.link(link)
	if err != nil {
		return nil, err
	}
	if kind := l.Attrs().EncapType; kind != "ether" && kind != "loopback" {
		return nil, fmt.Errorf("its packets are %s, want Ethernet; tcpdump knows others", kind)
	}
	return l, nil
}

// packetSocket opens a packet socket in the namespace, which receives nothing yet.
func (n *NS) packetSocket() (*os.File, error) {
	var f *os.File
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		f = os.NewFile(uintptr(fd), "packet socket")
		return nil
	})
	return f, err
}

// bindPackets has the socket receive what passes the interface, or comes in by any.
func bindPackets(fd int, l netlink.Link, all bool) error {
	a := l.Attrs()
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: a.Index}
	if all {
		to.Ifindex = 0
	}
	// What a host sends to itself by the loopback goes out and comes in.
	if all || a.RawFlags&unix.IFF_LOOPBACK != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("ignore what goes out (Linux 4.20): %w", err)
		}
	}
	if err := unix.Bind(fd, to); err != nil {
		return fmt.Errorf("bind to it: %w", err)
	}
	if all || a.RawFlags&unix.IFF_LOOPBACK != 0 {
		return nil
	}
	err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(a.Index), Type: unix.PACKET_MR_PROMISC})
	if err != nil {
		return fmt.Errorf("have it promiscuous: %w", err)
	}
	return nil
}
