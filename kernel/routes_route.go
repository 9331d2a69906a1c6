package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
)

// ParseRoute reads what a script says of a route. The texts may be "", the metric
// nil. dst is "default", a network, or one address.
func ParseRoute(dst, via, dev string, metric *int64, src string) (Route, error) {
	r := Route{Dev: dev}
	var err error
	for _, p := range []struct {
		name, text string
		to         *netip.Addr
	}{{"via", via, &r.Via}, {"src", src, &r.Src}} {
		if p.text == "" {
			continue
		}
		if *p.to, err = netip.ParseAddr(p.text); err != nil {
			return r, bad("route", p.name, p.text, `an address, as "10.0.0.1" or "fd00::1"`)
		}
	}
	switch network, err := netip.ParsePrefix(dst); {
	case dst == "default":
		r.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Via.Is6() || r.Src.Is6() {
			r.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	case err == nil:
		r.Dst = network
	default:
		a, err := netip.ParseAddr(dst)
		if err != nil || a.Zone() != "" {
			return r, bad("route", "dst", dst, `"default", a network, as "10.0.0.0/24" or "fd00::/64", or one address`)
		}
		r.Dst = netip.PrefixFrom(a, a.BitLen())
	}
	if metric != nil {
		if *metric < 0 || *metric >= int64(netx.LastMetric) {
			return r, bad("route", "metric", *metric, fmt.Sprintf("0 to %d; the lowest is taken", uint32(netx.LastMetric-1)))
		}
		r.Metric = uint32(*metric)
	}
	return r, r.Validate()
}

func (r Route) six() bool { return r.Dst.Addr().Is6() }

// dst is the destination in the words of ip-route(8).
func (r Route) dst() string {
	switch {
	case r.Dst.Bits() == 0 && r.six():
		return "default (IPv6)"
	case r.Dst.Bits() == 0:
		return "default"
	case r.Dst.IsSingleIP():
		return r.Dst.Addr().String()
	}
	return r.Dst.String()
}

func (r Route) String() string {
	text := r.dst()
	for _, w := range []struct {
		word, value string
		given       bool
	}{{"via", r.Via.String(), r.Via.IsValid()}, {"dev", r.Dev, r.Dev != ""}, {"metric", fmt.Sprint(r.Metric), r.Metric != 0}, {"src", r.Src.String(), r.Src.IsValid()}} {
		if w.given {
			text += " " + w.word + " " + w.value
		}
	}
	return text
}

// metric is the one in force: IPv6 has no 0 (IP6_RT_PRIO_USER).
func (r Route) metric() uint32 {
	if r.Metric == 0 && r.six() {
		return 1024
	}
	return r.Metric
}

// Validate checks the route by itself.
func (r Route) Validate() error {
	a := r.Dst.Addr()
	switch {
	case !r.Dst.IsValid() || a.Is4In6():
		return bad("route", "dst", r.Dst.String(), "a network of IPv4 or IPv6")
	case r.Dst != r.Dst.Masked():
		return &ParamError{Kind: "route", Param: "dst", Got: fmt.Sprintf("%q", r.Dst), Want: "a network, whose host bits are 0", Mend: fmt.Sprintf("dst=%q", r.Dst.Masked())}
	case r.Dst.Bits() > 0 && a.IsUnspecified() && r.Dst.IsSingleIP():
		return bad("route", "dst", a.String(), `"default" for all that no other route is for`)
	case !r.Via.IsValid() && r.Dev == "":
		return &ParamError{Kind: "route", Got: fmt.Sprintf("%q alone", r.dst()), Want: "the gateway or the interface", Mend: `via="10.0.0.1", or dev="eth0"`}
	case r.Metric == netx.LastMetric:
		return bad("route", "metric", r.Metric, fmt.Sprintf("at most %d", uint32(netx.LastMetric-1)))
	}
	for _, p := range []struct {
		name string
		a    netip.Addr
	}{{"via", r.Via}, {"src", r.Src}} {
		switch {
		case !p.a.IsValid():
		case p.a.Zone() != "":
			return &ParamError{Kind: "route", Param: p.name, Got: fmt.Sprintf("%q", p.a), Want: "the address alone", Mend: fmt.Sprintf("%s=%q, dev=%q", p.name, p.a.WithZone(""), p.a.Zone())}
		case p.a.Is4In6() || p.a.IsUnspecified() || p.a.IsMulticast() || p.name == "via" && p.a.IsLoopback():
			return bad("route", p.name, p.a.String(), "one that a machine can have")
		case p.a.Is6() != r.six():
			return bad("route", p.name, p.a.String(), fmt.Sprintf("an address of the family of %s", r.Dst))
		}
	}
	if r.Via.IsLinkLocalUnicast() && r.Via.Is6() && r.Dev == "" {
		return &ParamError{Kind: "route", Param: "via", Got: fmt.Sprintf("%q", r.Via), Want: "the interface beside it: each has such addresses", Mend: `dev="eth0"`}
	}
	if r.Dev != "" {
		return checkInterface("route", "dev", r.Dev)
	}
	return nil
}

// check looks whether the interfaces of the routes are there.
func (r *Routes) check(m *Machine, ns *netx.NS) error {
	devices, err := ns.Devices()
	if err != nil {
		return err
	}
	for _, e := range r.Routes {
		if e.Dev != "" && indexOf(devices, e.Dev) == 0 {
			var names []string
			for _, i := range slices.Sorted(maps.Keys(devices)) {
				names = append(names, devices[i].Name)
			}
			return bad("route", "dev", e.Dev, fmt.Sprintf("an interface of %s: %s", m.Name(), strings.Join(names, " ")))
		}
	}
	return nil
}

func indexOf(devices map[int]netx.Device, name string) int {
	for i, d := range devices {
		if d.Name == name {
			return i
		}
	}
	return 0
}

// kernel is the route as the kernel takes it.
func (r *Routes) kernel(e Route, devices map[int]netx.Device) netx.Route {
	k := netx.Route{Dst: e.Dst, Via: e.Via, Metric: e.Metric, Src: e.Src, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC, Index: indexOf(devices, e.Dev)}
	switch {
	case r.Number != 0:
		k.Table, k.Protocol = r.Number, unix.RTPROT_KERNEL // as the rule, and for its reason
	case r.Table != 0:
		k.Table = r.Table
	}
	return k
}

// replace puts the routes in the place of those that had has. When one cannot be
// made, it is all as it was.
func (r *Routes) replace(m *Machine, ns *netx.NS, had *Routes) (err error) {
	devices, err := ns.Devices()
	if err != nil {
		return err
	}
	if i := indexOf(devices, "lo"); i != 0 && slices.ContainsFunc(r.Routes, func(e Route) bool { return e.Dev == "lo" }) && !devices[i].Up && m.Spec().ownsNetwork() {
		// The child does so too, perhaps not yet.
		if err := ns.SetUp(i, true); err != nil {
			return fmt.Errorf("take lo up: %w", err)
		}
	}
	var old []Route
	if had != nil {
		old = had.Routes
	}
	same := func(list []Route, e Route) (Route, bool) {
		i := slices.IndexFunc(list, func(o Route) bool { return o.Dst == e.Dst && o.metric() == e.metric() })
		if i < 0 {
			return Route{}, false
		}
		return list[i], true
	}
	var back []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, f := range slices.Backward(back) {
			err = errors.Join(err, f())
		}
	}()
	// A gateway may be behind a network that another route is to.
	list := slices.Clone(r.Routes)
	slices.SortStableFunc(list, func(a, b Route) int { return gateways(a) - gateways(b) })
	for _, e := range list {
		k := r.kernel(e, devices)
		if o, ok := same(old, e); ok {
			if err := ns.PutRoute(k); err != nil {
				return explainRoute(m, ns, e, err)
			}
			back = append(back, func() error { return ns.PutRoute(had.kernel(o, devices)) })
			continue
		}
		if err := ns.AddRoute(k); err != nil {
			return explainRoute(m, ns, e, err)
		}
		back = append(back, func() error { return ns.RemoveRoute(k) })
	}
	for _, o := range old {
		if _, ok := same(r.Routes, o); ok {
			continue
		}
		k := had.kernel(o, devices)
		if err := ns.RemoveRoute(k); err != nil {
			return fmt.Errorf("remove the route to %s: %w", o, err)
		}
		back = append(back, func() error { return ns.PutRoute(k) })
	}
	return nil
}

func gateways(r Route) int {
	if r.Via.IsValid() {
		return 1
	}
	return 0
}

// explainRoute says what the kernel means.
func explainRoute(m *Machine, ns *netx.NS, r Route, err error) error {
	held, e := ns.Addresses()
	if e != nil {
		return errors.Join(fmt.Errorf("route to %s: %w", r, err), e)
	}
	var networks []string
	has := false
	for _, h := range held {
		has = has || h.Prefix.Addr() == r.Src
		network := fmt.Sprintf("%s on %s", h.Prefix.Masked(), h.Device)
		if a := h.Prefix.Addr(); a.Is6() == r.six() && !a.IsLoopback() && !(a.Is6() && a.IsLinkLocalUnicast()) && !slices.Contains(networks, network) {
			networks = append(networks, network)
		}
	}
	if networks == nil {
		networks = []string{"none"}
	}
	devices, _ := ns.Devices()
	switch {
	case errors.Is(err, unix.EEXIST):
		return &ParamError{Kind: "route", Got: fmt.Sprintf("%q", r), Want: "a route that is not there: the table has one to " + r.dst() + " of that metric", Mend: "give it another metric"}
	case r.Dev != "" && !devices[indexOf(devices, r.Dev)].Up:
		return &ParamError{Kind: "route", Param: "dev", Got: fmt.Sprintf("%q", r.Dev), Want: "an interface that is up", Mend: "ip link set " + r.Dev + " up"}
	case r.Src.IsValid() && !has:
		return bad("route", "src", r.Src.String(), "an address that "+m.Name()+" has")
	case r.Via.IsValid() && (errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EINVAL)):
		for _, h := range held {
			if h.Prefix.Addr() == r.Via {
				return bad("route", "via", r.Via.String(), "another's address; this is one of "+m.Name()+"'s own")
			}
		}
		return bad("route", "via", r.Via.String(), fmt.Sprintf("a gateway in a network that an interface of %s has: %s", m.Name(), strings.Join(networks, ", ")))
	case r.six() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EAFNOSUPPORT)):
		return withHint(fmt.Errorf("route to %s: IPv6 is off there: %w", r, err), "net.ipv6.conf.all.disable_ipv6=0")
	}
	return fmt.Errorf("route to %s: %w", r, err)
}
