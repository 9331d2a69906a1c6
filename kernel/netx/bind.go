package netx

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// BindSockets confines the sockets of a control group (v2, by its directory) to
// some of the namespace's addresses, own, each with its network. It is done by BPF
// programs, which go with the group and hold for the groups below it; those of a
// group below are run first. Sockets of other namespaces are let be.
//
//	bind         0.0.0.0, ::, 127.0.0.1 and ::1 become the first of own, others that
//	             are not own are EPERM
//	connect      127.0.0.0/8, ::1, 0.0.0.0 and :: become the first of own; what is
//	sendmsg      not bound gets one of own as its source: that in the destination's
//	             network, or the first
//	packets out  from another source are dropped (EPERM), whatever made them
//	packets in   to another destination are dropped, but for groups
//
// Where own has addresses of one family only, the other is EPERM.
func (n *NS) BindSockets(dir string, own []netip.Prefix) error {
	cookie, err := n.Cookie()
	if err != nil {
		return err
	}
	m, err := foreign()
	if err != nil {
		return explainBPF(err, "make a map")
	}
	defer m.Close()
	var o owned
	for _, p := range own {
		if p.Addr().Is4() {
			o.four = append(o.four, p)
		} else {
			o.six = append(o.six, p)
		}
	}
	return attachGroup(dir, o.programs(cookie, m))
}

// Cookie is a number that the namespace alone has, ever.
func (n *NS) Cookie() (cookie uint64, err error) {
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(fd)
		if cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == unix.ENOPROTOOPT {
			return &Missing{"number for a network namespace (SO_NETNS_COOKIE)", "Linux 5.14 or later", err}
		}
		return err
	})
	return cookie, err
}

// owned are the addresses of a group, those of a family in order, as programs
// compare them.
type owned struct{ four, six []netip.Prefix }

func (o owned) programs(cookie uint64, m *ebpf.Map) []*groupProgram {
	birth := newGroupProgram("msh_birth", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate)
	birth.onlyHere(cookie)
	birth.goTo(allow)
	birth.label(elsewhere)
	birth.remember(m)
	birth.end()
	all := []*groupProgram{birth}
	for _, w := range []struct {
		name   string
		attach ebpf.AttachType
		write  func(*socketProgram)
	}{
		{"msh_bind4", ebpf.AttachCGroupInet4Bind, o.bind4},
		{"msh_bind6", ebpf.AttachCGroupInet6Bind, o.bind6},
		{"msh_connect4", ebpf.AttachCGroupInet4Connect, o.connect4},
		{"msh_connect6", ebpf.AttachCGroupInet6Connect, o.connect6},
		{"msh_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, o.sendmsg4},
		{"msh_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, o.sendmsg6},
	} {
		p := &socketProgram{newGroupProgram(w.name, ebpf.CGroupSockAddr, w.attach)}
		p.onlyHere(cookie)
		w.write(p)
		p.goTo(allow)
		p.label(elsewhere)
		p.end()
		all = append(all, p.groupProgram)
	}
	return append(all, o.packets("msh_egress", ebpf.AttachCGroupInetEgress, 12, 8, m), o.packets("msh_ingress", ebpf.AttachCGroupInetIngress, 16, 24, m))
}

const skbMark, skbProtocol, skbSock = 8, 16, 168 // in struct __sk_buff

// packets lets packets pass that have an own address at that place of the header.
func (o owned) packets(name string, attach ebpf.AttachType, at4, at6 int32, m *ebpf.Map) *groupProgram {
	p := newGroupProgram(name, ebpf.CGroupSKB, attach)
	fetch := func(at, size int32) {
		p.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, at), asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, -16), asm.Mov.Imm(asm.R4, size),
			asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, deny), asm.LoadMem(asm.R7, asm.R10, -16, asm.Word))
	}
	in := attach == ebpf.AttachCGroupInetIngress
	p.load(asm.R7, skbProtocol)
	p.add(asm.JEq.Imm32(asm.R7, protocol(unix.ETH_P_IPV6), "six"), asm.JNE.Imm32(asm.R7, protocol(unix.ETH_P_IP), deny))
	fetch(at4, 4)
	for _, a := range o.four {
		p.add(asm.JEq.Imm32(asm.R7, word(a.Addr().AsSlice(), 0), allow))
	}
	if in { // a group that a socket has joined
		p.add(asm.And.Imm32(asm.R7, word([]byte{0xf0, 0, 0, 0}, 0)), asm.JEq.Imm32(asm.R7, word([]byte{224, 0, 0, 0}, 0), allow))
	}
	p.goTo("other")
	p.label("six")
	fetch(at6, 16)
	for _, a := range o.six {
		next := p.unique()
		for i := range 4 {
			p.add(asm.LoadMem(asm.R7, asm.R10, int16(-16+4*i), asm.Word), asm.JNE.Imm32(asm.R7, word(a.Addr().AsSlice(), i), next))
		}
		p.goTo(allow)
		p.label(next)
	}
	if in {
		p.add(asm.LoadMem(asm.R7, asm.R10, -16, asm.Byte), asm.JEq.Imm(asm.R7, 0xff, allow))
	}
	p.label("other")
	p.onlyForeign(m)
	p.end()
	return p
}

// word is the i-th word of an address as a program reads it from memory.
func word(address []byte, i int) int32 { return int32(native.Uint32(address[4*i:])) }

// protocol is an ETH_P_* as it stands in struct __sk_buff.
func protocol(p uint16) int32 { return int32(native.Uint16([]byte{byte(p >> 8), byte(p)})) }
