package netx

import (
	"bytes"
	"slices"

	"github.com/google/nftables"
	nfnl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ruleset is what a namespace has in nf_tables, as far as it matters for what is
// forwarded.
type ruleset struct {
	tables  map[chain]uint32 // their flags; by a chain without a name
	forward []chain          // base chains at hook forward that see IP packets
	drop    map[chain]bool   // those whose policy it is
	rules   map[chain][]rule // in their order
}

// chain names a chain.
type chain struct {
	family    nftables.TableFamily
	tableName string
	name      string
}

func (c chain) table() chain { return chain{family: c.family, tableName: c.tableName} }

// xtables tells whether the chain is one of those that iptables-nft keeps.
func (c chain) xtables() bool {
	return c.family != nftables.TableFamilyINet && c.tableName == "filter" && c.name == "FORWARD"
}

// rule is what is known of a rule.
type rule struct {
	in      chain
	handle  uint64
	comment string
	always  bool  // it asks for nothing, so its verdict is that of all who come to it
	verdict int32 // NF_DROP, NF_ACCEPT, NFT_JUMP, …; none without
	to      string
}

const (
	tableDormant = 1 // NFT_TABLE_F_DORMANT
	tableOwner   = 2 // NFT_TABLE_F_OWNER

	verdictDrop   = 0  // NF_DROP
	verdictAccept = 1  // NF_ACCEPT
	verdictJump   = -3 // NFT_JUMP
	verdictGoto   = -4 // NFT_GOTO
	verdictNone   = -100
)

// read reads it. It is errChanging when somebody changes it in the meantime.
func (t *tables) read() (*ruleset, error) {
	rs := &ruleset{tables: map[chain]uint32{}, drop: map[chain]bool{}, rules: map[chain][]rule{}}
	err := t.dump(unix.NFT_MSG_GETTABLE, func(family nftables.TableFamily, a *nfnl.AttributeDecoder) {
		c, flags := chain{family: family}, uint32(0)
		for a.Next() {
			switch a.Type() {
			case unix.NFTA_TABLE_NAME:
				c.tableName = a.String()
			case unix.NFTA_TABLE_FLAGS:
				flags = a.Uint32()
			}
		}
		rs.tables[c] = flags
	})
	if err != nil {
		return nil, err
	}
	err = t.dump(unix.NFT_MSG_GETCHAIN, func(family nftables.TableFamily, a *nfnl.AttributeDecoder) {
		c, hook, policy := chain{family: family}, -1, -1
		for a.Next() {
			switch a.Type() {
			case unix.NFTA_CHAIN_TABLE:
				c.tableName = a.String()
			case unix.NFTA_CHAIN_NAME:
				c.name = a.String()
			case unix.NFTA_CHAIN_POLICY:
				policy = int(a.Uint32())
			case unix.NFTA_CHAIN_HOOK:
				a.Nested(func(a *nfnl.AttributeDecoder) error {
					for a.Next() {
						if a.Type() == unix.NFTA_HOOK_HOOKNUM {
							hook = int(a.Uint32())
						}
					}
					return nil
				})
			}
		}
		ip := family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyIPv6 || family == nftables.TableFamilyINet
		if ip && hook == unix.NF_INET_FORWARD {
			rs.forward = append(rs.forward, c)
			rs.drop[c] = policy == verdictDrop
		}
	})
	if err != nil {
		return nil, err
	}
	err = t.dump(unix.NFT_MSG_GETRULE, func(family nftables.TableFamily, a *nfnl.AttributeDecoder) {
		r := readRule(family, a)
		rs.rules[r.in] = append(rs.rules[r.in], r)
	})
	return rs, err
}

func readRule(family nftables.TableFamily, a *nfnl.AttributeDecoder) rule {
	r := rule{in: chain{family: family}, always: true, verdict: verdictNone}
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_RULE_TABLE:
			r.in.tableName = a.String()
		case unix.NFTA_RULE_CHAIN:
			r.in.name = a.String()
		case unix.NFTA_RULE_HANDLE:
			r.handle = a.Uint64()
		case unix.NFTA_RULE_USERDATA:
			r.comment = commentOf(a.Bytes())
		case unix.NFTA_RULE_EXPRESSIONS:
			a.Nested(func(a *nfnl.AttributeDecoder) error {
				for a.Next() {
					a.Nested(r.readExpression)
				}
				return nil
			})
		}
	}
	return r
}

// readExpression takes from an expression what decides about all packets; one of
// another kind may ask for something.
func (r *rule) readExpression(a *nfnl.AttributeDecoder) error {
	name := ""
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_EXPR_NAME:
			switch name = a.String(); name {
			case "counter", "log", "immediate", "target", "match":
			case "reject":
				r.verdict = verdictDrop
			default:
				r.always = false
			}
		case unix.NFTA_EXPR_DATA:
			switch name {
			case "immediate":
				a.Nested(r.readImmediate)
			case "target":
				a.Nested(r.readTarget)
			case "match":
				a.Nested(r.readMatch)
			}
		}
	}
	return nil
}

func (r *rule) readImmediate(a *nfnl.AttributeDecoder) error {
	for a.Next() {
		if a.Type() != unix.NFTA_IMMEDIATE_DATA {
			continue
		}
		a.Nested(func(a *nfnl.AttributeDecoder) error {
			for a.Next() {
				if a.Type() == unix.NFTA_DATA_VERDICT {
					a.Nested(r.readVerdict)
				}
			}
			return nil
		})
	}
	return nil
}

func (r *rule) readVerdict(a *nfnl.AttributeDecoder) error {
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_VERDICT_CODE:
			r.verdict = int32(a.Uint32())
		case unix.NFTA_VERDICT_CHAIN:
			r.to = a.String()
		}
	}
	return nil
}

// readTarget knows the targets of x_tables that end a packet; others let it go on.
func (r *rule) readTarget(a *nfnl.AttributeDecoder) error {
	for a.Next() {
		if a.Type() == unix.NFTA_TARGET_NAME {
			if name := a.String(); name == "REJECT" || name == "DROP" {
				r.verdict = verdictDrop
			}
		}
	}
	return nil
}

// readMatch knows the one match of x_tables that asks for nothing.
func (r *rule) readMatch(a *nfnl.AttributeDecoder) error {
	for a.Next() {
		if a.Type() == unix.NFTA_MATCH_NAME && a.String() != "comment" {
			r.always = false
		}
	}
	return nil
}

// commentOf finds the comment among user data, which is made of type, length,
// value (libnftnl's udata.h), the comment's type being 0 and its value ending in a NUL.
func commentOf(data []byte) string {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		value := data[2 : 2+int(data[1])]
		if data[0] == 0 {
			return string(bytes.TrimSuffix(value, []byte{0}))
		}
		data = data[2+len(value):]
	}
	return ""
}

// closes tells whether a base chain lets through only what it names: its policy is
// to drop, or it ends in a rule that drops or rejects whatever is left.
func (rs *ruleset) closes(c chain) bool {
	if verdict := rs.runs(c, nil); verdict != verdictNone {
		return verdict == verdictDrop
	}
	return rs.drop[c]
}

// runs follows a packet that nobody asks for through a chain, to what becomes of
// it there. above are the chains that lead to this one.
func (rs *ruleset) runs(c chain, above []chain) int32 {
	if slices.Contains(above, c) { // the kernel lets nobody make a loop
		return verdictNone
	}
	for _, r := range rs.rules[c] {
		if !r.always {
			continue
		}
		switch r.verdict {
		case verdictDrop, verdictAccept:
			return r.verdict
		case verdictJump, verdictGoto:
			to := chain{c.family, c.tableName, r.to}
			if v := rs.runs(to, append(above, c)); v != verdictNone || r.verdict == verdictGoto {
				return v
			}
		}
	}
	return verdictNone
}

// marked are the rules with that comment.
func (rs *ruleset) marked(comment string) []rule {
	var found []rule
	for _, rules := range rs.rules {
		for _, r := range rules {
			if r.comment == comment {
				found = append(found, r)
			}
		}
	}
	return found
}
