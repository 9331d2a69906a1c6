package netx

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Closed says that firewalls which OpenForward could not open drop what is
// forwarded from an interface. All others it has opened.
type Closed struct {
	Leg   string
	By    []string // what drops it
	Mends []string // what opens each
}

func (e *Closed) Error() string {
	return fmt.Sprintf("packets forwarded from %s are dropped by %s", e.Leg, strings.Join(e.By, " and by "))
}

// Hint is the mend.
func (e *Closed) Hint() string { return strings.Join(e.Mends, "; ") }

func (e *Closed) add(by, mend string) {
	e.By, e.Mends = append(e.By, by), append(e.Mends, mend)
}

// OpenForward lets packets that came in by the interface leg pass the firewalls
// of the namespace, and the answers to them. It is for a host where others keep
// firewalls too: one chain's accept does not overrule another's drop (nft(8),
// VERDICT STATEMENTS), so rules of our own have to stand in the others' chains.
//
// They are put at the start of every base chain at hook forward that lets through
// only what it names: Docker's ip filter FORWARD with its policy drop, those of
// ufw and firewalld. Chains that drop no more than what they name are left alone.
// Each rule carries mark as its comment, in the form that nft(8) and iptables-nft
// show, and CloseForward finds them by it; those of an earlier call with the same
// mark are replaced. All is one transaction. It does not last for ever: a firewall
// that reloads its rules drops these with its own.
//
// What it cannot open is a *Closed: tables with an owner, and iptables-legacy,
// whose tables nf_tables does not see and which can only be replaced whole.
func (n *NS) OpenForward(mark, leg string) error {
	fail := func(err error) error { return fmt.Errorf("open the firewall for %s: %w", leg, err) }
	if err := checkName(leg); err != nil {
		return fail(err)
	}
	if mark == "" || len(mark) > maxComment {
		return fail(fmt.Errorf("got a mark of %d bytes, want 1 to %d", len(mark), maxComment))
	}
	closed := &Closed{Leg: leg}
	lacking := (*Missing)(nil)
	if err := n.openTables(mark, leg, closed); err != nil && !errors.As(err, &lacking) {
		return fail(err)
	}
	if err := n.checkLegacy(leg, closed); err != nil {
		return fail(err)
	}
	if len(closed.By) > 0 {
		return closed
	}
	return nil
}

// maxComment is the longest comment that nft(8) takes, without the NUL
// (NFTNL_UDATA_COMMENT_MAXLEN).
const maxComment = 127

// tries is how often a change is begun anew when others change the rules in the
// meantime; half of them with the matches of x_tables.
const tries = 6

func (n *NS) openTables(mark, leg string, closed *Closed) error {
	t, err := n.tables()
	if err != nil {
		return err
	}
	defer t.close()
	var owned []chain
	err = t.settle(func(try int) error {
		rs, err := t.read()
		if err != nil {
			return err
		}
		if err := t.deleteMarked(rs, mark); err != nil {
			return err
		}
		owned = nil
		for _, c := range rs.forward {
			switch table := rs.tables[c.table()]; {
			case table&tableDormant != 0 || !rs.closes(c):
			case table&tableOwner != 0:
				owned = append(owned, c.table())
			default:
				t.accept(c, mark, leg, try < tries/2)
			}
		}
		return t.commit()
	})
	for _, c := range slices.Compact(owned) {
		mend := fmt.Sprintf("have the program that owns the table accept what is forwarded from and to %s", leg)
		if c.tableName == "firewalld" {
			mend = "set NftablesTableOwner=no in /etc/firewalld/firewalld.conf, then: firewall-cmd --reload"
		}
		closed.add(fmt.Sprintf("table %s %s, which only its owner can change", familyName(c.family), c.tableName), mend)
	}
	return err
}

// accept adds our two rules to the transaction, at the chain's start.
func (t *tables) accept(c chain, mark, leg string, compat bool) {
	table := &nftables.Table{Family: c.family, Name: c.tableName}
	insert := func(match ...expr.Any) {
		t.InsertRule(&nftables.Rule{
			Table: table, Chain: &nftables.Chain{Table: table, Name: c.name},
			Exprs:    append(match, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}),
			UserData: userdata.AppendString(nil, userdata.TypeComment, mark),
		})
	}
	answers := ctState
	if compat && c.xtables() {
		answers = xtState
	}
	insert(slices.Concat(iface(expr.MetaKeyOIFNAME, leg), answers())...) // the last inserted stands first
	insert(iface(expr.MetaKeyIIFNAME, leg)...)
}

// ctState matches the answers to what was let through: ct state established,related.
func ctState() []expr.Any {
	bits := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Register: unix.NFT_REG_1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: bits, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: zero},
	}
}

// xtState is the same as iptables writes it: -m conntrack --ctstate
// RELATED,ESTABLISHED. With nf_tables' own form in one of its chains iptables-nft
// refuses to list the whole table ("is incompatible, use 'nft' tool").
func xtState() []expr.Any {
	info := &xt.ConntrackMtinfo3{}
	info.MatchFlags = uint16(xt.ConntrackState)
	info.StateMask = 1<<1 | 1<<2 // XT_CONNTRACK_STATE_BIT of IP_CT_ESTABLISHED, of IP_CT_RELATED
	return []expr.Any{&expr.Match{Name: "conntrack", Rev: 3, Info: info}}
}

// CloseForward takes back what OpenForward did: it deletes the rules with that
// comment, in whatever chain they are, and no others.
func (n *NS) CloseForward(mark string) error {
	fail := func(err error) error { return fmt.Errorf("take back the rules %q: %w", mark, err) }
	if mark == "" {
		return fail(errors.New("got no mark"))
	}
	t, err := n.tables()
	if err != nil {
		if lacking := (*Missing)(nil); errors.As(err, &lacking) {
			return nil
		}
		return fail(err)
	}
	defer t.close()
	err = t.settle(func(int) error {
		rs, err := t.read()
		if err != nil {
			return err
		}
		if err := t.deleteMarked(rs, mark); err != nil {
			return err
		}
		return t.commit()
	})
	if err != nil {
		return fail(err)
	}
	return nil
}

func (t *tables) deleteMarked(rs *ruleset, mark string) error {
	for _, r := range rs.marked(mark) {
		table := &nftables.Table{Family: r.in.family, Name: r.in.tableName}
		if err := t.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: r.in.name}, Handle: r.handle}); err != nil {
			return err
		}
	}
	return nil
}

// settle does a change that was read up for, again if others got in between:
// a rule or chain that has gone is ENOENT.
func (t *tables) settle(change func(try int) error) error {
	for try := 0; ; try++ {
		err := change(try)
		if err == nil || try == tries-1 || !errors.Is(err, errChanging) && !lacks(err) {
			return err
		}
	}
}
