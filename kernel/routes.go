package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"msh/kernel/ledger"
	"msh/kernel/netx"
)

// Routes are a machine's own. In a network of its own they are put into a table
// there. In its parent's the machine has a table to itself: its sockets carry a
// mark, and what has the mark finds its way in that table alone.
type Routes struct {
	Routes []Route
	Table  uint32 `json:",omitempty"` // 0: the main one of its own network; in its parent's the next that is free
	Number uint32 `json:",omitempty"` // of the table in use in its parent's, once it has one
}

// Route is a way to a network.
type Route struct {
	Dst    netip.Prefix // 0.0.0.0/0 and ::/0: all that no other route is for
	Via    netip.Addr   // the gateway, or none
	Dev    string       `json:",omitempty"` // the interface; "" is that of the gateway's network
	Metric uint32       `json:",omitempty"` // the lowest is taken; 0 is the kernel's own choice
	Src    netip.Addr   // the source of what is not bound, or none
}

const (
	// firstTable is where msh hands out tables: numbers that nobody gives by hand.
	firstTable, lastTable = 0x6d00_0000, 0x6d00_ffff
	// tablePriority is that of msh's rules: after the local table (0), before those of
	// VRF (1000), Tailscale (5210) and WireGuard (32764), of which some take all.
	tablePriority = 900
)

// Kind is "routes".
func (*Routes) Kind() string { return "routes" }

// Mode is new: nobody else has them.
func (*Routes) Mode() Mode { return New }

// Validate checks the routes, and the table's number.
func (r *Routes) Validate() error {
	if err := checkTable(r.Table); r.Table != 0 && err != nil {
		return err
	}
	seen := map[Route]bool{}
	for _, e := range r.Routes {
		if err := e.Validate(); err != nil {
			return err
		}
		key := Route{Dst: e.Dst, Metric: e.metric()}
		if seen[key] {
			return &ParamError{Kind: "routes", Got: "two routes to " + e.dst() + " of one metric", Want: "each once", Mend: "give the one to fall back on a higher metric"}
		}
		seen[key] = true
	}
	return nil
}

// CheckTable tells whether a machine may be given the routing table of that number.
func CheckTable(n int64) error {
	if n < 1 || n > 1<<32-1 {
		return bad("routes", "table", n, "1 to 4294967295, but for 253 to 255")
	}
	return checkTable(uint32(n))
}

func checkTable(n uint32) error {
	names := map[uint32]string{0: "unspecified", 253: "default", 254: "main", 255: "local"}
	if name, ok := names[n]; ok {
		return &ParamError{Kind: "routes", Param: "table", Got: fmt.Sprint(n), Want: "a number that is not reserved; this is the table " + name, Mend: "leave table out for the machine's main table"}
	}
	return nil
}

// Plan has the child wait for its routes.
func (r *Routes) Plan(p *Plan) error {
	p.Parks = true
	if p.Spec.ownsNetwork() {
		p.IPv6 = p.IPv6 || slices.ContainsFunc(r.Routes, func(e Route) bool { return e.six() })
		return nil
	}
	own, ok := p.Spec.find("netaddr").(*Netaddr)
	for _, e := range r.Routes {
		if ok && e.Src.IsValid() && !slices.Contains(own.Addresses, e.Src) {
			return bad("route", "src", e.Src.String(), "one of the machine's netaddr: "+addressWords(own.Addresses))
		}
	}
	name := "(the next free)"
	if r.Table != 0 {
		name = tableName(r.Table, p.Under.Net)
	}
	p.Claims = append(p.Claims, ledger.Claim{Kind: "table", Name: name})
	return nil
}

// tableName is a table in the book: its number, and where it is not the host's,
// the machine in whose network it is.
func tableName(n uint32, universe string) string {
	name := fmt.Sprint(n)
	if universe != "" {
		name += "." + strings.ReplaceAll(universe, "/", ":")
	}
	return name
}

func (h *Host) mayTable() error {
	return h.needsRoot("routes in a shared network", "the kernel takes socket programs (BPF) and rules of the host's network from root alone", "give the machine an interface of its own, or run msh as root")
}

// Prepare gives the machine a table of its parent's network. It is claimed, and
// written into the ledger, before anything else is made: so it is taken back last,
// when no process is left whose packets would go by the main table then.
func (r *Routes) Prepare(t *Txn) error {
	if t.plan.Spec.ownsNetwork() {
		return nil
	}
	if err := t.host.mayTable(); err != nil {
		return err
	}
	if err := r.within(t.parent); err != nil {
		return err
	}
	ns, err := t.parent.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := r.check(t.parent, ns); err != nil {
		return err
	}
	asked := *r
	if t.restores() && r.Number != 0 {
		asked.Table = r.Number // which its sockets have as their mark
	}
	table, err := asked.free(t.host, t.parent, ns)
	if err != nil && asked.Table != r.Table {
		err = fmt.Errorf("its sockets have the mark of the table that it had: %w", err)
	}
	if err != nil {
		return err
	}
	t.plan.Claims = slices.DeleteFunc(slices.Clone(t.plan.Claims), func(c ledger.Claim) bool { return c.Kind == "table" })
	if err := t.claim(ledger.Claim{Kind: "table", Name: tableName(table, t.plan.Under.Net)}); err != nil {
		return err
	}
	settled := *r
	settled.Number = table
	rs := slices.Clone(t.plan.Spec.Resources)
	rs[slices.Index(rs, Resource(r))] = &settled
	t.plan.Spec.Resources = rs

	at, err := t.parent.homeOf(ns)
	if err != nil {
		return err
	}
	own := routeTable{at, netx.Lookup{Table: table, Mark: table, Priority: tablePriority}}
	if err := t.step("write the routing table ahead"); err != nil {
		return err
	}
	if err := t.ledger.Write(routesOp, own); err != nil {
		return err
	}
	return settled.make(t, ns, own.Lookup)
}

// free is the table asked for, or the next that nobody uses. The book is locked.
func (r *Routes) free(h *Host, parent *Machine, ns *netx.NS) (uint32, error) {
	claims, err := h.book.Claims("table")
	if err != nil {
		return 0, err
	}
	rules, err := ns.Rules()
	if err != nil {
		return 0, err
	}
	use := func(n uint32) (string, error) {
		for _, c := range claims {
			if c.Name == tableName(n, parent.under().Net) {
				return "machine " + c.Owner + " has it", nil
			}
		}
		for _, rule := range rules {
			if rule.Meets(n) {
				return fmt.Sprintf("rule %d uses it, as a table or a mark", rule.Priority), nil
			}
		}
		routes, err := ns.TableRoutes(n)
		if err == nil && len(routes) > 0 {
			return fmt.Sprintf("%d routes are in it", len(routes)), nil
		}
		return "", err
	}
	if r.Table != 0 {
		by, err := use(r.Table)
		if err == nil && by != "" {
			err = &ParamError{Kind: "routes", Param: "table", Got: fmt.Sprint(r.Table), Want: "a table that is free: " + by, Mend: "leave table out: msh finds one"}
		}
		return r.Table, err
	}
	for n := uint32(firstTable); n <= lastTable; n++ {
		if by, err := use(n); err != nil || by == "" {
			return n, err
		}
	}
	return 0, fmt.Errorf("routes: all tables from %d to %d are in use", firstTable, lastTable)
}

// Attach marks the sockets of the machine's group, or gives its own network its routes.
func (r *Routes) Attach(t *Txn, c *Child) error {
	if !t.plan.Spec.ownsNetwork() {
		ns, err := t.parent.network()
		if err != nil {
			return err
		}
		defer ns.Close()
		return explainPrograms("routes", ns.MarkSockets(t.plan.Group.Dirs()[0], r.Number))
	}
	ns, err := t.childNet(c)
	if err != nil {
		if e := c.failure(); e != nil { // it has ended, and that is why
			return t.explain(e)
		}
		return err
	}
	who := with(t.plan.Spec, &Machine{})
	if err := r.check(who, ns); err != nil {
		return err
	}
	return r.replace(who, ns, nil)
}
