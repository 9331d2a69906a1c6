package netx

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

var probePrefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}

// Masquerade has packets from any of these networks that leave by the interface
// out, or by whichever if that is "", carry that interface's address, and answers
// find their way back. It owns a table of that name, in family inet, and puts it in
// the place of one that is there, in one transaction. RemoveTable("inet", table)
// takes it back. Connections that are under way stay as they began, translated or
// not, until they end.
//
// To forward packets at all, and to get them past other firewalls, is Forwarding's
// and OpenForward's.
func (n *NS) Masquerade(table string, from []netip.Prefix, out string) error {
	fail := func(err error) error { return fmt.Errorf("masquerade %v: %w", from, err) }
	var leaves []expr.Any
	if out != "" {
		if err := checkName(out); err != nil {
			return fail(err)
		}
		leaves = iface(expr.MetaKeyOIFNAME, out)
	}
	t, err := n.tables()
	if err != nil {
		return fail(err)
	}
	defer t.close()
	own := &nftables.Table{Family: nftables.TableFamilyINet, Name: table}
	t.replace(own)
	chain := t.AddChain(&nftables.Chain{
		Table: own, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	for _, p := range from {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fail(fmt.Errorf("got the network %v, want an IPv4 or IPv6 prefix", p))
		}
		t.AddRule(&nftables.Rule{Table: own, Chain: chain, Exprs: slices.Concat(
			source(p), leaves, []expr.Any{&expr.Counter{}, &expr.Masq{}},
		)})
	}
	if err := t.commit(); lacks(err) {
		return fail(&Missing{"NAT by nftables", "Linux 5.2 or later, with CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT and CONFIG_NFT_MASQ (modprobe nft_masq)", err})
	} else if err != nil {
		return fail(err)
	}
	return nil
}

// source matches packets from a network, in a chain that sees both families.
func source(p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12) // the source address in struct iphdr
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 8 // and in struct ipv6hdr
	}
	size := p.Addr().BitLen()
	match := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{family}},
	}
	if p.Bits() == 0 {
		return match
	}
	match = append(match, &expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size / 8)})
	if p.Bits() < size {
		match = append(match, &expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: uint32(size / 8),
			Mask: net.CIDRMask(p.Bits(), size), Xor: make([]byte, size/8),
		})
	}
	return append(match, &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: p.Masked().Addr().AsSlice()})
}
