package netx

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// partitionTable is the one that Partition owns, in family bridge.
const partitionTable = "msh"

// Partition drops frames that go from a port in one group to a port in another.
// n is a switch's namespace; ports are named, and need not be there yet. What
// comes from or goes to a port in no group is left alone, as is what the bridge
// itself sends and receives. It takes the place of an earlier partition in one
// transaction, and holds whatever the bridge's forwarding database says: frames
// are dropped on their way from port to port, flooded ones too. A TCP connection
// across stalls, and goes on after Heal.
//
// The work for a frame does not grow with their number: the port that it came in
// by leads to the chain of that port's group, which looks the other one up.
//
//	chain forward { iifname vmap @from }
//	chain group-1 { oifname @group-1 accept; oifname @ports drop }
func (n *NS) Partition(groups [][]string) error {
	fail := func(err error) error { return fmt.Errorf("partition the switch: %w", err) }
	sets := make([][]nftables.SetElement, len(groups))
	var ports, from []nftables.SetElement
	in := map[string]int{}
	for i, g := range groups {
		for _, port := range g {
			if err := checkName(port); err != nil {
				return fail(err)
			}
			if other, ok := in[port]; ok {
				return fail(fmt.Errorf("port %s is in groups %d and %d, want it in one", port, other+1, i+1))
			}
			in[port] = i
			key := make([]byte, unix.IFNAMSIZ)
			copy(key, port)
			sets[i] = append(sets[i], nftables.SetElement{Key: key})
			from = append(from, nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: groupName(i)}})
		}
		ports = append(ports, sets[i]...)
	}
	if len(ports) == 0 {
		return n.Heal()
	}
	t, err := n.tables()
	if err != nil {
		return fail(err)
	}
	defer t.close()
	own := &nftables.Table{Family: nftables.TableFamilyBridge, Name: partitionTable}
	t.replace(own)
	b := partition{tables: t, own: own}
	all := b.set("ports", ports)
	for i, elements := range sets {
		chain := t.AddChain(&nftables.Chain{Table: own, Name: groupName(i)})
		t.AddRule(&nftables.Rule{Table: own, Chain: chain, Exprs: leavesBy(b.set(groupName(i), elements), expr.VerdictAccept)})
		t.AddRule(&nftables.Rule{Table: own, Chain: chain, Exprs: leavesBy(all, expr.VerdictDrop)})
	}
	enter := b.set("from", from) // last, as it refers to the chains
	chain := t.AddChain(&nftables.Chain{
		Table: own, Name: "forward", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(bridgeFilter),
	})
	t.AddRule(&nftables.Rule{Table: own, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: enter.Name, SetID: enter.ID},
	}})
	if b.err != nil {
		return fail(b.err)
	}
	if err := t.commit(); lacks(err) {
		return fail(&Missing{"packet filter for bridges", "a kernel with CONFIG_NF_TABLES_BRIDGE (modprobe nft_meta_bridge)", err})
	} else if err != nil {
		return fail(err)
	}
	return nil
}

// bridgeFilter is nft(8)'s priority "filter" for bridges (NF_BR_PRI_FILTER_BRIDGED).
const bridgeFilter = -200

func groupName(i int) string { return fmt.Sprintf("group-%d", i+1) }

// partition is the transaction that makes one.
type partition struct {
	*tables
	own  *nftables.Table
	last uint32
	err  error
}

// set adds a set of interfaces' names, or a map to verdicts if the elements have
// any. They come in portions: a netlink attribute has at most 64 KiB, and an
// element takes up to 60 bytes. The sets' numbers hold within the transaction and
// are made here, as the library takes its own from a counter without a lock.
func (b *partition) set(name string, elements []nftables.SetElement) *nftables.Set {
	b.last++
	s := &nftables.Set{Table: b.own, ID: b.last, Name: name, Size: uint32(max(len(elements), 1)), KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	if len(elements) > 0 && elements[0].VerdictData != nil {
		s.IsMap, s.DataType = true, nftables.TypeVerdict
	}
	b.err = errors.Join(b.err, b.AddSet(s, nil))
	for portion := range slices.Chunk(elements, 512) {
		b.err = errors.Join(b.err, b.SetAddElements(s, portion))
	}
	return s
}

// leavesBy decides about frames that leave by a port in the set.
func leavesBy(s *nftables.Set, verdict expr.VerdictKind) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: unix.NFT_REG_1},
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: s.Name, SetID: s.ID},
		&expr.Verdict{Kind: verdict},
	}
}

// Heal takes a partition back. Without one it does nothing.
func (n *NS) Heal() error { return n.RemoveTable("bridge", partitionTable) }
