package kernel

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
)

// routesOp is the entry of a ledger for a routing table in a parent's network.
const routesOp = "routes"

// routeTable is what a machine with routes of its own has in its parent's network.
type routeTable struct {
	Home home
	netx.Lookup
}

// make makes the table, and has the mark lead there. It ends in a route that says
// no: otherwise the search would go on in the next table.
func (r *Routes) make(t *Txn, ns *netx.NS, l netx.Lookup) error {
	for _, f := range []struct {
		name   string
		number int
		six    bool
	}{{"IPv4", unix.AF_INET, false}, {"IPv6", unix.AF_INET6, true}} {
		if err := t.step("have the mark lead to the table, for " + f.name); err != nil {
			return err
		}
		err := ns.AddLookup(f.number, l)
		var missing *netx.Missing
		if errors.As(err, &missing) && f.six && !slices.ContainsFunc(r.Routes, Route.six) {
			continue // nobody there can have a socket of it
		}
		if err != nil {
			return explainPrograms("routes", err)
		}
		if err := t.step("end the table"); err != nil {
			return err
		}
		if err := ns.AddRoute(netx.Unreachable(l.Table, f.six)); err != nil {
			return fmt.Errorf("routes: unreachable default of table %d: %w", l.Table, err)
		}
	}
	if err := t.step("fill the table"); err != nil {
		return err
	}
	return r.replace(t.parent, ns, nil)
}

// removeTable takes back what make has made.
func (h *Host) removeTable(own routeTable) error {
	ns, err := h.universe(own.Home)
	if ns == nil || err != nil {
		return err
	}
	defer ns.Close()
	return errors.Join(ns.RemoveLookup(unix.AF_INET, own.Lookup), ns.RemoveLookup(unix.AF_INET6, own.Lookup), ns.ClearTable(own.Table))
}

// within tells whether a machine of m's can have the routes: no way that those
// machines do not have in whose network it is.
func (r *Routes) within(m *Machine) error {
	for ; !m.isHost() && !m.Spec().ownsNetwork(); m = m.parent {
		outer, ok := m.Spec().find("routes").(*Routes)
		if !ok {
			continue
		}
		for _, e := range r.Routes {
			if !slices.ContainsFunc(outer.Routes, e.inside) {
				return bad("route", "dst", e.String(), fmt.Sprintf("a way that %s has: %s", m.Name(), outer.words()))
			}
		}
		return nil // the outer one's is inside those above
	}
	return nil
}

// inside tells whether what goes by r goes by o too.
func (r Route) inside(o Route) bool {
	return o.Dst.Bits() <= r.Dst.Bits() && o.Dst.Contains(r.Dst.Addr()) &&
		(!o.Via.IsValid() || o.Via == r.Via) && (o.Dev == "" || r.Dev == "" || o.Dev == r.Dev)
}

func (r *Routes) words() string {
	if len(r.Routes) == 0 {
		return "none"
	}
	var words []string
	for _, e := range r.Routes {
		words = append(words, e.String())
	}
	return strings.Join(words, ", ")
}

// set puts other routes in the place of the machine's.
func (r *Routes) set(m *Machine) error {
	had, _ := m.Spec().find("routes").(*Routes)
	own := m.Spec().ownsNetwork()
	switch {
	case had == nil && !own:
		return bad("routes", "", nil, "the machine shares its parent's routes: make it with routes(…) to change them")
	case had != nil && r.Table != 0 && r.Table != had.Table && r.Table != had.Number:
		return bad("routes", "table", r.Table, "the machine's table, which stays: leave it out")
	}
	if had != nil {
		r = merge(had, r).(*Routes)
	}
	at := m
	if !own {
		at = m.parent
		if err := r.within(m.parent); err != nil {
			return err
		}
		if err := r.keepsInner(m); err != nil {
			return err
		}
	}
	ns, err := at.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := r.check(at, ns); err != nil {
		return err
	}
	return r.replace(at, ns, had)
}

// keepsInner refuses to take a way from m that a machine inside it has.
func (r *Routes) keepsInner(m *Machine) error {
	if m.lab == nil {
		return nil
	}
	for _, c := range m.lab.Machines() {
		inner, ok := c.Spec().find("routes").(*Routes)
		if !ok || c == m || !c.within(m.ID()) || c.under().Net != m.under().Net {
			continue
		}
		for _, e := range inner.Routes {
			if !slices.ContainsFunc(r.Routes, e.inside) {
				return bad("routes", "", nil, fmt.Sprintf("want the way that %s inside has: %s", c.Name(), e))
			}
		}
	}
	return nil
}

// listTables lists the routing tables of the network, and the next free one.
func listTables(v *View) ([]Available, error) {
	ns, err := v.from.network()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	claims, err := v.host.book.Claims("table")
	if err != nil {
		return nil, err
	}
	var list []Available
	for _, c := range claims {
		number, universe, _ := strings.Cut(c.Name, ".")
		n, err := strconv.ParseUint(number, 10, 32)
		if err == nil && strings.ReplaceAll(universe, ":", "/") == v.from.under().Net {
			list = append(list, Available{Name: fmt.Sprint("table ", n), Owner: c.Owner, Detail: fmt.Sprintf("what has mark %d goes by it, rule %d", n, tablePriority)})
		}
	}
	if err := v.host.mayTable(); err != nil { // with a network of its own they are had all the same
		a := Available{Name: "routes", Detail: "with netspace() or netif()"}
		a.refuse(err)
		a.Available = true
		return append(list, a), nil
	}
	next, err := (&Routes{}).free(v.host, v.from, ns)
	if err != nil {
		return append(list, Available{Name: "routes", Detail: err.Error()}), nil
	}
	return append(list, Available{Name: "routes", Available: true, Detail: fmt.Sprintf("the next free table is %d", next)}), nil
}
