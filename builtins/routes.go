package builtins

import (
	"fmt"
	"slices"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"msh/interp"
	"msh/kernel"
)

// Route is a way to a network, as a Starlark value: a part of routes(…), and no
// resource by itself. It cannot be changed, and prints as it was written.
type Route struct {
	written *Resource // whose parameters are the route's
	route   kernel.Route
}

var (
	_ starlark.HasAttrs   = (*Route)(nil)
	_ starlark.Comparable = (*Route)(nil)
)

func (r *Route) String() string { return r.written.String() }

// Type implements starlark.Value.
func (r *Route) Type() string { return "route" }

// Freeze implements starlark.Value.
func (r *Route) Freeze() {}

// Truth implements starlark.Value.
func (r *Route) Truth() starlark.Bool { return true }

// Hash implements starlark.Value.
func (r *Route) Hash() (uint32, error) { return r.written.Hash() }

// CompareSameType makes routes that were written alike equal.
func (r *Route) CompareSameType(op syntax.Token, y starlark.Value, depth int) (bool, error) {
	same, err := r.written.CompareSameType(op, y.(*Route).written, depth)
	if err != nil {
		return false, fmt.Errorf("routes have no order")
	}
	return same, nil
}

// Attr gives the parameters.
func (r *Route) Attr(name string) (starlark.Value, error) {
	if !slices.Contains(r.AttrNames(), name) {
		return nil, nil
	}
	return r.written.Attr(name)
}

// AttrNames implements starlark.HasAttrs.
func (r *Route) AttrNames() []string { return []string{"dev", "dst", "metric", "src", "via"} }

var routeWord = &interp.Word{
	Name: "route",
	Doc:  "A way to a network, for routes(). One of via and dev is needed.",
	Params: []interp.Param{
		{Name: "dst", Type: "string", Required: true, Pos: true, Doc: `"10.0.0.0/8", "fd00::/64", one address, or "default": all that no other route is for, of the family of via and src, else IPv4 ("::/0" is IPv6's)`},
		{Name: "via", Type: "string", Default: "None", Doc: "the address of the gateway"},
		{Name: "dev", Type: "string", Default: "None", Doc: "the interface; left out, that of the gateway's network"},
		{Name: "metric", Type: "int", Default: "None", Doc: "0 to 4294967294: of two routes to one network the lower is taken"},
		{Name: "src", Type: "string", Default: "None", Doc: "the source address of what is not bound to one"},
	},
	Returns: "a route, with its parameters as attributes",
	Errors:  "a network with host bits; addresses of two families; neither via nor dev",
	Example: `r = route("10.8.0.0/16", via="10.0.0.1", metric=5)
print(r, r.dst, r.via, r.dev)`,
	Output: `route("10.8.0.0/16", via="10.0.0.1", metric=5) 10.8.0.0/16 10.0.0.1 None` + "\n",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var dst, via, dev, src Text
		metric := optional{}
		if err := c.Unpack(&dst, &via, &dev, &metric, &src); err != nil {
			return nil, err
		}
		r, err := kernel.ParseRoute(string(dst), string(via), string(dev), metric.n, string(src))
		if err != nil {
			return nil, err
		}
		written, err := newResource(c, &kernel.Routes{Routes: []kernel.Route{r}})
		if err != nil {
			return nil, err
		}
		return &Route{written.(*Resource), r}, nil
	},
}

// optional is a whole number that may be left out.
type optional struct{ n *int64 }

// Unpack implements starlark.Unpacker.
func (o *optional) Unpack(v starlark.Value) error {
	var w Whole
	if err := w.Unpack(v); err != nil {
		return err
	}
	n := int64(w)
	o.n = &n
	return nil
}

var routesWord = &interp.Word{
	Name: "routes",
	Doc: "Gives a machine routes of its own. " +
		"In a network universe of its own (netif() or netspace()) they are put into its main table, beside what its interfaces bring. " +
		"A machine that shares its parent's gets a routing table there to itself, as with VRF: its sockets carry the table's number as a mark, rule 900 of the parent's (ip rule) has the mark look it up, and what no route of the table is for is unreachable. " +
		"The parent's own addresses are reached as before; a parent that filters by reverse path (rp_filter=1) must be told that answers come another way (rp_filter=2). " +
		"A machine inside may have routes that are part of these. To take the mark off, and with it all that is sent (EPERM), wants CAP_NET_ADMIN or CAP_NET_RAW over the parent's network, which uidspace() takes. " +
		"Machine.set(routes([...])) puts others in their place, and back what the kernel has dropped because an interface was taken down.",
	Params: []interp.Param{
		{Name: "routes", Type: "list", Required: true, Pos: true, Doc: `of route(dst, via=, dev=, metric=, src=); an empty list leads nowhere`},
		{Name: "table", Type: "int", Default: "None", Doc: "the number of the table: in a universe of its own instead of the main one, which is then left to the machine's own rules; in the parent's instead of the next free one"},
	},
	Returns: "a resource of kind routes, mode new",
	Errors:  "an interface that is not there; a gateway in no network of an interface; two routes to one network of one metric; a table that is reserved or in use; in the parent's universe, a kernel before 5.14 or without CONFIG_CGROUP_BPF",
	Example: `m = machine_rfork(resources=[netspace(), children(1), routes([route("10.9.0.0/16", dev="lo")])])
print(m.run("ip route").stdout.strip())
inner = m.rfork(resources=[routes([route("10.9.8.0/24", dev="lo")])])
print(m.run("ip rule | grep -o 'fwmark.*'").stdout.strip())
for line in m.run("ip route show table 1828716544").stdout.splitlines():
    print(line.strip())`,
	Output: "10.9.0.0/16 dev lo proto static scope link\nfwmark 0x6d000000 lookup 1828716544\n" +
		"unreachable default proto kernel metric 4294967295\n10.9.8.0/24 dev lo proto kernel scope link\n",
	Needs: "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var list starlark.Value
		table := optional{}
		if err := c.Unpack(&list, &table); err != nil {
			return nil, err
		}
		it, ok := list.(starlark.Iterable)
		if !ok {
			hint := `[route("default", via="10.0.0.1")]`
			if r, ok := list.(*Route); ok {
				hint = fmt.Sprintf("[%s]", kernel.Short(r.String()))
			}
			return nil, interp.WithHint(fmt.Errorf("routes: routes: got %s, want a list of routes", list.Type()), hint)
		}
		r := &kernel.Routes{}
		for e := range starlark.Elements(it) {
			v, ok := e.(*Route)
			if !ok {
				return nil, interp.WithHint(fmt.Errorf("routes: routes: got %s at place %d, want route(dst, …)", e.Type(), len(r.Routes)+1), `route("default", via="10.0.0.1")`)
			}
			r.Routes = append(r.Routes, v.route)
		}
		if table.n != nil {
			if err := kernel.CheckTable(*table.n); err != nil {
				return nil, err
			}
			r.Table = uint32(*table.n)
		}
		return newResource(c, r)
	},
}
