package netx

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Lookup is a rule of policy routing (ip-rule(8)): what has the mark finds its way
// in that table.
type Lookup struct {
	Table    uint32
	Mark     uint32
	Priority uint32 // among the rules; the lowest is asked first
}

// request makes the message that adds or removes the rule. The kernel compares all
// that is in it.
func (l Lookup) request(kind, flags, family int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family), Type: nl.FR_ACT_TO_TBL}}) // as struct fib_rule_hdr
	for _, a := range []struct {
		kind  int
		value uint32
	}{{nl.FRA_PRIORITY, l.Priority}, {nl.FRA_FWMARK, l.Mark}, {nl.FRA_FWMASK, ^uint32(0)}, {nl.FRA_TABLE, l.Table}} {
		req.AddData(nl.NewRtAttr(a.kind, nl.Uint32Attr(a.value)))
	}
	// In the kernel's name: systemd-networkd deletes the rules and routes of all
	// others when it starts (networkd.conf(5), ManageForeignRoutingPolicyRules=),
	// and what is marked would go the common way.
	req.AddData(nl.NewRtAttr(nl.FRA_PROTOCOL, nl.Uint8Attr(unix.RTPROT_KERNEL)))
	return req
}

// AddLookup adds the rule for a family (AF_INET or AF_INET6).
func (n *NS) AddLookup(family int, l Lookup) error {
	err := n.execute(l.request(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, family))
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		what, option := "IPv4", "CONFIG_IP_MULTIPLE_TABLES"
		if family == unix.AF_INET6 {
			what, option = "IPv6", "CONFIG_IPV6_MULTIPLE_TABLES"
		}
		return &Missing{"routing tables for " + what, "a kernel with " + option, err}
	}
	if err != nil {
		return fmt.Errorf("ip rule add priority %d fwmark %d lookup %d: %w", l.Priority, l.Mark, l.Table, err)
	}
	return nil
}

// RemoveLookup removes it. A rule that differs in anything stays; one that is not
// there is no error.
func (n *NS) RemoveLookup(family int, l Lookup) error {
	err := n.execute(l.request(unix.RTM_DELRULE, 0, family))
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("ip rule del priority %d fwmark %d lookup %d: %w", l.Priority, l.Mark, l.Table, err)
}

// Rule is a rule as far as it can be in the way of a Lookup.
type Rule struct {
	Priority, Table uint32
	Mark, Mask      uint32 // both 0 where it asks for none
}

// Rules lists the rules of both families.
func (n *NS) Rules() ([]Rule, error) {
	var list []Rule
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		all, err := n.dump(unix.RTM_GETRULE, unix.RTM_NEWRULE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the rules: %w", err)
		}
		for _, b := range all {
			m := nl.DeserializeRtMsg(b)
			attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
			if err != nil {
				return nil, err
			}
			r := Rule{Table: uint32(m.Table)}
			for _, a := range attrs {
				if len(a.Value) != 4 {
					continue
				}
				v := native.Uint32(a.Value)
				switch a.Attr.Type {
				case nl.FRA_PRIORITY:
					r.Priority = v
				case nl.FRA_TABLE:
					r.Table = v
				case nl.FRA_FWMARK:
					r.Mark = v
				case nl.FRA_FWMASK:
					r.Mask = v
				}
			}
			list = append(list, r)
		}
	}
	return list, nil
}

// Meets tells whether the rule is for the mark, or looks up the table, of that number.
func (r Rule) Meets(number uint32) bool {
	return r.Table == number || r.Mask != 0 && number&r.Mask == r.Mark
}
