package builtins

import (
	"context"
	"fmt"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
)

// linkWord is link.
func (s *Session) linkWord() *interp.Word {
	return &interp.Word{
		Name: "link",
		Doc: "Lays one cable. Each end is a machine, which gets a new interface, or a vnet; between two vnets it joins their switches. " +
			"What it does to the traffic (rate, delay, …) it does in each direction; a pair of values is for the way from a to b and the way back.",
		Params: linkParams(
			interp.Param{Name: "a", Type: "machine or vnet", Required: true, Pos: true, Doc: "one end"},
			interp.Param{Name: "b", Type: "machine or vnet", Required: true, Pos: true, Doc: "the other end"},
			interp.Param{Name: "names", Type: "list", Default: "None", Doc: "what the new interfaces are called, one for each end; None for eth0, eth1, …, and for a vnet"},
			interp.Param{Name: "addresses", Type: "list", Default: "None", Doc: "their addresses, one or a list for each end; None for none, on a vnet for its next"},
		),
		Returns: "a Link: name, ends, up(), down(), set(), stats(), destroy()",
		Errors:  "a machine without a network of its own; a cable from a switch to itself; as netif",
		Example: `a, b = [machine_rfork(name=n, resources=[netspace()]) for n in "ab".elems()]
k = link(a, b, addresses=["10.9.0.1/30", "10.9.0.2/30"], rate="100mbit")
print(k, a.run(["ping", "-c1", "-W2", "10.9.0.2"]).ok)
k.down()
print(a.run("ip -br link show eth0").stdout.split()[1])`,
		Output: "<link a-b> True\nDOWN\n",
		Needs:  "root",
		Fn:     s.makeLink,
	}
}

func (s *Session) makeLink(c *interp.Call) (starlark.Value, error) {
	var a, b, names, addrs starlark.Value
	var link linkArgs
	if err := c.Unpack(link.dst(&a, &b, &names, &addrs)...); err != nil {
		return nil, err
	}
	cable, err := link.cable(c)
	if err != nil {
		return nil, err
	}
	var ends [2]kernel.LinkEnd
	for i, v := range []starlark.Value{a, b} {
		switch v := v.(type) {
		case *VNet:
			ends[i].VNet = v.v
		case *Machine:
			ends[i].Machine, ends[i].Netif = v.m, &kernel.Netif{}
		default:
			return nil, fmt.Errorf("link: %s: got %s, want a machine or a vnet", "ab"[i:i+1], v.Type())
		}
	}
	for _, p := range []struct {
		param string
		v     starlark.Value
		set   func(n *kernel.Netif, v starlark.Value) error
	}{{"names", names, setName}, {"addresses", addrs, addresses}} {
		if err := eachEnd(&ends, p.param, p.v, p.set); err != nil {
			return nil, err
		}
	}
	if s.dry {
		k, err := s.lab.PlanLink(ends[0], ends[1], cable)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(s.out, "link %s\n", k.Name())
		return s.link(k), nil
	}
	k, err := s.lab.Link(c.Context(), ends[0], ends[1], cable)
	if err != nil {
		return nil, err
	}
	return s.link(k), nil
}

func setName(n *kernel.Netif, v starlark.Value) error {
	if v == starlark.None {
		return nil
	}
	var t Text
	if err := t.Unpack(v); err != nil {
		return err
	}
	n.Name = string(t)
	return nil
}

// eachEnd gives each end its value of a pair.
func eachEnd(ends *[2]kernel.LinkEnd, param string, v starlark.Value, set func(*kernel.Netif, starlark.Value) error) error {
	if v == nil {
		return nil
	}
	pair, ok := v.(starlark.Sequence)
	if _, text := v.(starlark.String); text || !ok || pair.Len() != 2 {
		return fmt.Errorf("link: %s: got %s, want a pair, one for each end", param, kernel.Short(v.String()))
	}
	i := 0
	for e := range starlark.Elements(pair) {
		switch end := ends[i]; {
		case end.Netif != nil:
			if err := set(end.Netif, e); err != nil {
				return fmt.Errorf("link: %s: %w", param, err)
			}
		case e != starlark.None:
			return fmt.Errorf("link: %s: got %s for vnet %s, want None: a switch's port has none", param, kernel.Short(e.String()), end.VNet.Name())
		}
		i++
	}
	return nil
}

// Link is a cable as a Starlark value.
type Link struct {
	s *Session
	k *kernel.Link
}

var _ starlark.HasAttrs = (*Link)(nil)

// link is the value of a cable, always the same one.
func (s *Session) link(k *kernel.Link) *Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.links[k]
	if !ok {
		v = &Link{s, k}
		s.links[k] = v
	}
	return v
}

func (l *Link) String() string { return fmt.Sprintf("<link %s>", l.k.Name()) }

// Type implements starlark.Value.
func (l *Link) Type() string { return "link" }

// Freeze implements starlark.Value.
func (l *Link) Freeze() {}

// Truth implements starlark.Value.
func (l *Link) Truth() starlark.Bool { return true }

// Hash implements starlark.Value.
func (l *Link) Hash() (uint32, error) { return starlark.String(l.k.Name()).Hash() }

// Attr implements starlark.HasAttrs.
func (l *Link) Attr(name string) (starlark.Value, error) {
	switch name {
	case "name":
		return starlark.String(l.k.Name()), nil
	case "ends", "netifs":
		var list []starlark.Value
		for _, e := range l.k.Ends() {
			switch {
			case name == "ends" && e.VNet != nil:
				list = append(list, l.s.vnet(e.VNet))
			case name == "ends":
				list = append(list, l.s.value(e.Machine))
			case e.VNet == nil:
				list = append(list, &Netif{l.s.value(e.Machine), e.Netif.Name})
			default:
				list = append(list, starlark.None)
			}
		}
		return starlark.NewList(list), nil
	}
	if w := l.s.method("Link." + name); w != nil {
		return w.Bind(l), nil
	}
	return noAttr(l, name)
}

// AttrNames implements starlark.HasAttrs.
func (l *Link) AttrNames() []string {
	return l.s.attrNames("Link")
}

// linkMethod makes a word that is a method of a cable.
func linkMethod(w *interp.Word, fn func(c *interp.Call, l *Link) (starlark.Value, error)) *interp.Word {
	w.Name = "Link." + w.Name
	w.Needs = "root"
	w.Fn = func(c *interp.Call) (starlark.Value, error) { return fn(c, c.Recv.(*Link)) }
	return w
}

// linkSimple makes one without parameters.
func linkSimple(w *interp.Word, do func(context.Context, *kernel.Link) error) *interp.Word {
	name := w.Name
	return linkMethod(w, func(c *interp.Call, l *Link) (starlark.Value, error) {
		if err := c.Unpack(); err != nil {
			return nil, err
		}
		if err := do(c.Context(), l.k); err != nil {
			return nil, err
		}
		if l.s.dry {
			fmt.Fprintf(l.s.out, "link %s: %s\n", l.k.Name(), name)
		}
		return nil, nil
	})
}

var linkUpWord = linkSimple(&interp.Word{
	Name: "up",
	Doc:  "Plugs the cable in again.",
	Example: `a, b = [machine_rfork(name=n, resources=[netspace()]) for n in "ab".elems()]
k = link(a, b, addresses=["10.9.0.1/30", "10.9.0.2/30"])
k.down()
k.up()
print(a.run(["ping", "-c1", "-W2", "10.9.0.2"]).ok)`,
	Output: "True\n",
}, func(ctx context.Context, k *kernel.Link) error { return k.SetUp(ctx, true) })

var linkDownWord = linkSimple(&interp.Word{
	Name: "down",
	Doc:  "Pulls the cable: the interfaces at both ends lose their carrier, and nothing else.",
	Example: `a, b = [machine_rfork(name=n, resources=[netspace()]) for n in "ab".elems()]
k = link(a, b, addresses=["10.9.0.1/30", "10.9.0.2/30"])
k.down()
print(a.run(["ping", "-c1", "-W1", "10.9.0.2"], check=False).ok)`,
	Output: "False\n",
}, func(ctx context.Context, k *kernel.Link) error { return k.SetUp(ctx, false) })

var linkDestroyWord = linkSimple(&interp.Word{
	Name: "destroy",
	Doc:  "Takes the cable away, and with it the machines' interfaces at its ends. Destroying it twice is no error.",
	Example: `a, b = [machine_rfork(name=n, resources=[netspace()]) for n in "ab".elems()]
k = link(a, b)
k.destroy()
print(a.netifs, lab.links)`,
	Output: "[] []\n",
}, func(ctx context.Context, k *kernel.Link) error { return k.Destroy(ctx) })

var linkSetWord = linkMethod(&interp.Word{
	Name:   "set",
	Doc:    "Changes what the cable does to the traffic, in place. What is not named stays as it was; 0 clears. A pair of values is for the way from the first end to the second and the way back.",
	Params: linkParams(),
	Errors: "a value out of range; what this kernel cannot do: see msh doctor",
	Example: `a, b = [machine_rfork(name=n, resources=[netspace()]) for n in "ab".elems()]
k = link(a, b, rate="10mbit")
k.set(loss=100)
print(k.set(loss=0))`,
	Output: "None\n",
}, func(c *interp.Call, l *Link) (starlark.Value, error) {
	var link linkArgs
	if err := c.Unpack(link.dst()...); err != nil {
		return nil, err
	}
	cable, err := link.cable(c)
	if err == nil {
		err = kernel.CheckCableChange(cable)
	}
	if err != nil {
		return nil, err
	}
	if err := l.k.Set(cable); err != nil {
		return nil, optionError(c, err)
	}
	if l.s.dry {
		fmt.Fprintf(l.s.out, "link %s: set %s\n", l.k.Name(), strings.Join(cable.Named, ", "))
	}
	return nil, nil
})

var linkStatsWord = linkMethod(&interp.Word{
	Name:    "stats",
	Doc:     "Counts what has come out of the cable at each end.",
	Returns: "struct(a=, b=), each a struct(rx_packets, rx_bytes, …, tx_dropped) as the one at that end sees it",
	Example: `a, b = [machine_rfork(name=n, resources=[netspace()]) for n in "ab".elems()]
k = link(a, b, addresses=["10.9.0.1/30", "10.9.0.2/30"])
a.run(["ping", "-c3", "-i0.01", "10.9.0.2"])
print(k.stats().b.rx_packets >= 3)`,
	Output: "True\n",
}, func(c *interp.Call, l *Link) (starlark.Value, error) {
	if err := c.Unpack(); err != nil {
		return nil, err
	}
	if l.s.dry {
		return interp.Unknown, nil
	}
	both, err := l.k.Stats()
	if err != nil {
		return nil, err
	}
	d := starlark.StringDict{}
	for i, name := range []string{"a", "b"} {
		d[name] = starlarkstruct.FromStringDict(starlarkstruct.Default, counted(both[i]))
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, d), nil
})
