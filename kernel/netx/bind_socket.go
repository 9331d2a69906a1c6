package netx

import (
	"net/netip"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// socketProgram sees an address that a socket is about to use, and may change it.
type socketProgram struct{ *groupProgram }

// Places in struct bpf_sock_addr and struct bpf_sock of <linux/bpf.h>. Addresses
// are in the order of the network.
const (
	userIP4, userIP6, sockFamily, sourceIP4, sourceIP6, addrSock = 4, 8, 28, 40, 44, 64
	sockIP4, sockIP6                                             = 24, 28
	mappedIP4                                                    = userIP6 + 12 // ::ffff:1.2.3.4
)

var (
	mappedPrefix = []byte{0, 0, 0xff, 0xff}
	localhost    = []byte{127, 0, 0, 1}
)

// mask is the i-th word of a network's mask.
func mask(p netip.Prefix, i int) int32 {
	var b [4]byte
	for k := range 32 {
		if 32*i+k < p.Bits() {
			b[k/8] |= 0x80 >> (k % 8)
		}
	}
	return word(b[:], 0)
}

// fallback is the source for a destination that is in no network of list's.
func fallback(list []netip.Prefix) netip.Addr {
	for _, p := range list {
		if !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	return list[0].Addr()
}

// own4 goes on with an IPv4 address that is own, in R7. Those that mean the
// machine itself become the first: 0.0.0.0 and, within the bits, 127.0.0.1.
func (o owned) own4(p *socketProgram, off int16, bits int, other string) {
	if len(o.four) == 0 {
		p.goTo(deny)
		return
	}
	self, done := p.unique(), p.unique()
	p.load(asm.R7, off)
	for _, a := range o.four {
		p.add(asm.JEq.Imm32(asm.R7, word(a.Addr().AsSlice(), 0), done))
	}
	loop := netip.PrefixFrom(netip.AddrFrom4([4]byte(localhost)), bits).Masked()
	p.add(asm.JEq.Imm32(asm.R7, 0, self), asm.Mov.Reg(asm.R8, asm.R7), asm.And.Imm32(asm.R8, mask(loop, 0)),
		asm.JEq.Imm32(asm.R8, word(loop.Addr().AsSlice(), 0), self))
	if other == "" {
		other = done
	}
	p.goTo(other)
	p.label(self)
	p.store(off, word(o.four[0].Addr().AsSlice(), 0))
	p.label(done)
}

// pick4 finds the source for the destination in R7, and puts it into R9.
func (o owned) pick4(p *socketProgram) {
	done := p.unique()
	for _, a := range o.four {
		next := p.unique()
		p.add(asm.Mov.Reg(asm.R8, asm.R7), asm.And.Imm32(asm.R8, mask(a, 0)), asm.JNE.Imm32(asm.R8, word(a.Masked().Addr().AsSlice(), 0), next),
			asm.Mov.Imm32(asm.R9, word(a.Addr().AsSlice(), 0)))
		p.goTo(done)
		p.label(next)
	}
	p.add(asm.Mov.Imm32(asm.R9, word(fallback(o.four).AsSlice(), 0)))
	p.label(done)
}

// own6 goes on with an IPv6 address that is own. :: and ::1 become the first.
func (o owned) own6(p *socketProgram, other string) {
	self, done := p.unique(), p.unique()
	for _, a := range o.six {
		next := p.unique()
		for i := range 4 {
			p.load(asm.R7, userIP6+int16(4*i))
			p.add(asm.JNE.Imm32(asm.R7, word(a.Addr().AsSlice(), i), next))
		}
		p.goTo(done)
		p.label(next)
	}
	if other == "" {
		other = done
	}
	for i := range 3 {
		p.load(asm.R7, userIP6+int16(4*i))
		p.add(asm.JNE.Imm(asm.R7, 0, other))
	}
	one := []byte{0, 0, 0, 1}
	p.load(asm.R7, userIP6+12)
	p.add(asm.JEq.Imm32(asm.R7, 0, self), asm.JNE.Imm32(asm.R7, word(one, 0), other))
	p.label(self)
	for i := range 4 {
		p.store(userIP6+int16(4*i), word(o.six[0].Addr().AsSlice(), i))
	}
	p.label(done)
}

// pick6 finds the source for the IPv6 destination, and hands it to put.
func (o owned) pick6(p *socketProgram, put func(netip.Addr)) {
	done := p.unique()
	for _, a := range o.six {
		next := p.unique()
		for i := range 4 {
			if m := mask(a, i); m != 0 {
				p.load(asm.R7, userIP6+int16(4*i))
				p.add(asm.And.Imm32(asm.R7, m), asm.JNE.Imm32(asm.R7, word(a.Masked().Addr().AsSlice(), i), next))
			}
		}
		put(a.Addr())
		p.goTo(done)
		p.label(next)
	}
	put(fallback(o.six))
	p.label(done)
}

// mapped goes on if the address is an IPv4 one in an IPv6 socket, else to other.
func (p *socketProgram) mapped(other string) {
	for i, w := range []int32{0, 0, word(mappedPrefix, 0)} {
		p.load(asm.R7, userIP6+int16(4*i))
		p.add(asm.JNE.Imm32(asm.R7, w, other))
	}
}

// unbound goes on if the socket has no address yet. One that it has is own.
func (p *socketProgram) unbound(six bool) {
	p.add(asm.LoadMem(asm.R8, asm.R6, addrSock, asm.DWord))
	if !six {
		p.add(asm.LoadMem(asm.R9, asm.R8, sockIP4, asm.Word), asm.JNE.Imm(asm.R9, 0, allow))
		return
	}
	for i := range 4 {
		p.add(asm.LoadMem(asm.R9, asm.R8, sockIP6+int16(4*i), asm.Word), asm.JNE.Imm(asm.R9, 0, allow))
	}
}

const sizeofIn6 = 28 // of struct sockaddr_in6, without the padding

// put writes words to the stack.
func (p *socketProgram) put(at int16, words ...int32) {
	for i, w := range words {
		p.add(asm.StoreImm(asm.R10, at+int16(4*i), int64(w), asm.Word))
	}
}

// bind4 binds the socket to the IPv4 address in R9, bindMapped an IPv6 socket, and
// bind6 one to the address that its argument writes.
func (p *socketProgram) bind4() {
	p.put(-16, unix.AF_INET, 0, 0, 0)
	p.add(asm.StoreMem(asm.R10, -12, asm.R9, asm.Word))
	p.bind(16, 16)
}

func (p *socketProgram) bindMapped() {
	p.bind6(func(at int16) {
		p.put(at, 0, 0, word(mappedPrefix, 0))
		p.add(asm.StoreMem(asm.R10, at+12, asm.R9, asm.Word))
	})
}

func (p *socketProgram) bind6(address func(at int16)) {
	p.put(-32, unix.AF_INET6, 0)
	p.put(-8, 0)
	address(-24)
	p.bind(32, sizeofIn6)
}

func (p *socketProgram) bind(at, size int32) {
	p.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -at), asm.Mov.Imm(asm.R3, size), asm.FnBind.Call(),
		asm.JNE.Imm(asm.R0, 0, deny))
	p.goTo(allow)
}

func (o owned) bind4(p *socketProgram) { o.own4(p, userIP4, 32, deny) }

func (o owned) bind6(p *socketProgram) {
	p.mapped("native")
	o.own4(p, mappedIP4, 32, deny)
	p.goTo(allow)
	p.label("native")
	if len(o.six) > 0 {
		o.own6(p, deny)
		return
	}
	if len(o.four) == 0 {
		p.goTo(deny)
		return
	}
	for i := range 4 { // the wildcard of IPv6 is that of both
		p.load(asm.R7, userIP6+int16(4*i))
		p.add(asm.JNE.Imm(asm.R7, 0, deny))
	}
	p.store(userIP6+8, word(mappedPrefix, 0))
	p.store(mappedIP4, word(o.four[0].Addr().AsSlice(), 0))
}

func (o owned) connect4(p *socketProgram) {
	o.own4(p, userIP4, 8, "")
	if len(o.four) == 0 {
		return
	}
	p.unbound(false)
	o.pick4(p)
	p.load(asm.R8, sockFamily)
	p.add(asm.JEq.Imm(asm.R8, unix.AF_INET6, "six"))
	p.bind4()
	p.label("six") // a UDP socket of IPv6 takes an address of IPv4 too
	p.bindMapped()
}

func (o owned) connect6(p *socketProgram) {
	p.mapped("native")
	if len(o.four) > 0 {
		o.own4(p, mappedIP4, 8, "")
		p.unbound(true)
		o.pick4(p)
		p.bindMapped()
	}
	p.goTo(deny)
	p.label("native")
	if len(o.six) == 0 {
		p.goTo(deny)
		return
	}
	o.own6(p, "")
	p.unbound(true)
	p.bind6(func(at int16) {
		o.pick6(p, func(a netip.Addr) {
			p.put(at, word(a.AsSlice(), 0), word(a.AsSlice(), 1), word(a.AsSlice(), 2), word(a.AsSlice(), 3))
		})
	})
}

func (o owned) sendmsg4(p *socketProgram) {
	o.own4(p, userIP4, 8, "")
	if len(o.four) == 0 {
		return
	}
	p.load(asm.R8, sourceIP4)
	for _, a := range o.four {
		p.add(asm.JEq.Imm32(asm.R8, word(a.Addr().AsSlice(), 0), allow))
	}
	p.add(asm.JNE.Imm(asm.R8, 0, deny))
	o.pick4(p)
	p.add(asm.StoreMem(asm.R6, sourceIP4, asm.R9, asm.Word))
}

func (o owned) sendmsg6(p *socketProgram) {
	if len(o.six) == 0 {
		p.goTo(deny)
		return
	}
	o.own6(p, "")
	for _, a := range o.six {
		next := p.unique()
		for i := range 4 {
			p.load(asm.R7, sourceIP6+int16(4*i))
			p.add(asm.JNE.Imm32(asm.R7, word(a.Addr().AsSlice(), i), next))
		}
		p.goTo(allow)
		p.label(next)
	}
	for i := range 4 {
		p.load(asm.R7, sourceIP6+int16(4*i))
		p.add(asm.JNE.Imm(asm.R7, 0, deny))
	}
	o.pick6(p, func(a netip.Addr) {
		for i := range 4 {
			p.store(sourceIP6+int16(4*i), word(a.AsSlice(), i))
		}
	})
}
