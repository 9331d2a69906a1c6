package builtins

import (
	"fmt"
	"net/netip"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
	"msh/kernel/netx"
)

// netifParams are those of an interface, apart from where it is plugged in.
var netifParams = []interp.Param{
	{Name: "name", Type: "string", Default: "None", Doc: "eth0, eth1, … when left out; a real interface keeps its own"},
	{Name: "address", Type: "string or list", Default: "None", Doc: `"10.0.0.2/24", "fd00::2/64", or a list of them; None takes the next of each of the vnet's subnets, False none`},
	{Name: "gateway", Type: "string or list", Default: "None", Doc: "where what goes nowhere else is sent; of a vnet with nat its gateway when left out"},
	{Name: "mac", Type: "string", Default: "None", Doc: `"02:00:00:00:00:01"; one that is the same in every run on this host when left out`},
	{Name: "mtu", Type: "int", Default: "None", Doc: "bytes, at most the vnet's, which it is when left out"},
}

// netifArgs are their values.
type netifArgs struct {
	name    Text
	address starlark.Value
	gateway starlark.Value
	mac     Text
	mtu     Whole
}

func (a *netifArgs) dst(others ...any) []any {
	return append(others, &a.name, &a.address, &a.gateway, &a.mac, &a.mtu)
}

func (a *netifArgs) netif(c *interp.Call) (*kernel.Netif, error) {
	n := &kernel.Netif{Name: string(a.name), MAC: string(a.mac), MTU: int(a.mtu)}
	if named(c, "mtu") {
		if err := kernel.CheckMTU(c.Word.Name, int(a.mtu)); err != nil {
			return nil, err
		}
	}
	if err := addresses(n, a.address); err != nil {
		return nil, fmt.Errorf("%s: address: %w", c.Word.Name, err)
	}
	for _, g := range texts(a.gateway) {
		ip, err := netip.ParseAddr(g)
		if err != nil || ip.Zone() != "" {
			return nil, fmt.Errorf(`%s: gateway: got %q, want an address, as "10.0.0.1", or one of each family`, c.Word.Name, kernel.Short(g))
		}
		n.Gateway = append(n.Gateway, ip)
	}
	if a.gateway != nil && n.Gateway == nil {
		return nil, fmt.Errorf("%s: gateway: got %s, want an address, or a list of one of each family", c.Word.Name, a.gateway.Type())
	}
	return n, nil
}

// addresses reads an interface's: None, False, one or a list.
func addresses(n *kernel.Netif, v starlark.Value) error {
	switch v {
	case nil, starlark.None:
		return nil
	case starlark.False:
		n.Bare = true
		return nil
	}
	if _, ok := v.(starlark.String); !ok {
		if _, ok := v.(starlark.Iterable); !ok {
			return fmt.Errorf(`got %s, want an address, as "10.0.0.2/24", a list of them, None or False`, v.Type())
		}
	}
	list := texts(v)
	if list == nil {
		return fmt.Errorf("got %s, want texts, as \"10.0.0.2/24\", in the list; False is for none", kernel.Short(v.String()))
	}
	for _, text := range list {
		a, err := kernel.ParseAddress(text)
		if err != nil {
			return err
		}
		n.Addresses = append(n.Addresses, a)
	}
	return nil
}

// texts are those of a string, or of a list of strings; nil for anything else.
func texts(v starlark.Value) []string {
	if s, ok := v.(starlark.String); ok {
		return []string{string(s)}
	}
	it, ok := v.(starlark.Iterable)
	if !ok {
		return nil
	}
	var all []string
	for e := range starlark.Elements(it) {
		s, ok := starlark.AsString(e)
		if !ok {
			return nil
		}
		all = append(all, s)
	}
	return all
}

var netifWord = &interp.Word{
	Name: "netif",
	Doc: "Gives a machine a network interface, and with it a network universe of its own. " +
		"On a vnet it is a new virtual Ethernet interface. An interface of the parent's is moved in with exclusive=True, and comes back with its name, MAC, MTU, addresses and routes when the machine ends; with shared= the machine gets one beside it. " +
		"What a link does to the traffic (rate, delay, …) it does in each direction; a pair of values is for what goes out and what comes in.",
	Params: linkParams(append(append([]interp.Param{
		{Name: "what", Type: "vnet or string", Required: true, Pos: true, Doc: "a vnet, or the name of an interface of the parent's"}},
		netifParams...),
		interp.Param{Name: "exclusive", Type: "bool", Default: "False", Doc: "the parent loses the interface until the machine ends"},
		interp.Param{Name: "shared", Type: "string", Default: "None", Doc: `"macvlan" (a MAC of its own), "ipvlan" (the parent's MAC), or "bridge" (a port of the parent's bridge of that name)`},
		interp.Param{Name: "force", Type: "bool", Default: "False", Doc: "take the interface even if it is the only way out that the parent has"})...),
	Returns: "a resource of kind netif; mode new on a vnet, else exclusive or shared",
	Errors:  "an interface that is not there, is given already, or is the parent's only way out; an address that is taken or outside the subnet; a name over 15 bytes; what this kernel cannot do to traffic",
	Example: `lan = vnet(subnet="10.0.0.0/24")
a = machine_rfork(name="a", resources=[netif(lan)])
b = machine_rfork(name="b", resources=[netif(lan, rate="100mbit")])
print(a.address, b.address, a.run(["ping", "-c1", "-W2", b.address]).ok)`,
	Output: "10.0.0.1 10.0.0.2 True\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var what starlark.Value
		var a netifArgs
		var exclusive, force bool
		var shared Text
		var link linkArgs
		if err := c.Unpack(link.dst(append(a.dst(&what), &exclusive, &shared, &force)...)...); err != nil {
			return nil, err
		}
		n, err := a.netif(c)
		if err != nil {
			return nil, err
		}
		switch w := what.(type) {
		case *VNet:
			n.VNet = w.v.Name()
		case starlark.String:
			n.Device = string(w)
		default:
			return nil, fmt.Errorf("netif: what: got %s, want a vnet, or the name of an interface of the parent's", what.Type())
		}
		n.Exclusive, n.Share, n.Force = exclusive, string(shared), force
		if n.Cable, err = link.cable(c); err != nil {
			return nil, err
		}
		return newResource(c, n)
	},
}

// Netif is an interface of a machine, as a Starlark value.
type Netif struct {
	v    *Machine
	name string
}

var _ starlark.HasAttrs = (*Netif)(nil)

func (n *Netif) String() string { return fmt.Sprintf("<netif %s of %s>", n.name, n.v.Name()) }

// Type implements starlark.Value.
func (n *Netif) Type() string { return "netif" }

// Freeze implements starlark.Value.
func (n *Netif) Freeze() {}

// Truth implements starlark.Value.
func (n *Netif) Truth() starlark.Bool { return true }

// Hash implements starlark.Value.
func (n *Netif) Hash() (uint32, error) { return starlark.String(n.String()).Hash() }

// Attr implements starlark.HasAttrs.
func (n *Netif) Attr(name string) (starlark.Value, error) {
	switch name {
	case "name":
		return starlark.String(n.name), nil
	case "machine":
		return n.v, nil
	case "address", "addresses", "mac", "mtu", "vnet":
		k, err := n.v.m.Netif(n.name)
		if err != nil {
			return nil, err
		}
		return n.attr(name, k), nil
	}
	if w := n.v.s.method("Netif." + name); w != nil {
		return w.Bind(n), nil
	}
	return noAttr(n, name)
}

func (n *Netif) attr(name string, k *kernel.Netif) starlark.Value {
	switch name {
	case "address":
		if len(k.Addresses) == 0 {
			return starlark.None
		}
		return starlark.String(k.Addresses[0].Addr().String())
	case "addresses":
		var list []starlark.Value
		for _, a := range k.Addresses {
			list = append(list, starlark.String(a.String()))
		}
		return starlark.NewList(list)
	case "mac":
		if k.HardwareAddr == "" {
			return starlark.None
		}
		return starlark.String(k.HardwareAddr)
	case "mtu":
		if k.MTU == 0 {
			return starlark.None
		}
		return starlark.MakeInt(k.MTU)
	}
	if v := n.v.s.lab.FindVNet(k.VNet); v != nil {
		return n.v.s.vnet(v)
	}
	return starlark.None
}

// AttrNames implements starlark.HasAttrs.
func (n *Netif) AttrNames() []string {
	return n.v.s.attrNames("Netif")
}

var machineNetifWord = method(&interp.Word{
	Name: "netif",
	Doc:  "Finds an interface that the machine has been given, by its name.",
	Params: []interp.Param{
		{Name: "name", Type: "string", Required: true, Pos: true, Doc: `as "eth0"`},
	},
	Returns: "a Netif: name, address (the first, without prefix length), addresses, mac, mtu, vnet, machine, up(), down(), set(), stats(), capture()",
	Errors:  "a name that none has",
	Example: `lan = vnet(subnet=["10.0.0.0/24", "fd00::/64"])
m = machine_rfork(resources=[netif(lan, mac="02:00:00:00:00:07")])
i = m.netif("eth0")
print(i.name, i.address, i.addresses, i.mac, i.mtu)`,
	Output: `eth0 10.0.0.1 ["10.0.0.1/24", "fd00::1/64"] 02:00:00:00:00:07 1500` + "\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var name Text
	if err := c.Unpack(&name); err != nil {
		return nil, err
	}
	if _, err := v.m.Netif(string(name)); err != nil {
		return nil, err
	}
	return &Netif{v, string(name)}, nil
})

// netifMethod makes a word that is a method of an interface.
func netifMethod(w *interp.Word, fn func(c *interp.Call, n *Netif) (starlark.Value, error)) *interp.Word {
	w.Name = "Netif." + w.Name
	w.Needs = "root"
	w.Fn = func(c *interp.Call) (starlark.Value, error) { return fn(c, c.Recv.(*Netif)) }
	return w
}

func upDown(up bool, word, doc, example, output string) *interp.Word {
	return netifMethod(&interp.Word{Name: word, Doc: doc, Errors: "the interface has gone", Example: example, Output: output},
		func(c *interp.Call, n *Netif) (starlark.Value, error) {
			if err := c.Unpack(); err != nil {
				return nil, err
			}
			if err := n.v.m.UpNetif(c.Context(), n.name, up); err != nil {
				return nil, err
			}
			if n.v.planned() {
				n.v.would("%s %s", n.name, word)
			}
			return nil, nil
		})
}

var netifUpWord = upDown(true, "up",
	"Takes the interface up, as `ip link set up` in the machine would, with the addresses and the default route that it was given: the kernel drops some of them with an interface that goes down.",
	`lan = vnet(subnet="10.0.0.0/24")
a, b = [machine_rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
b.netif("eth0").down()
b.netif("eth0").up()
print(a.run(["ping", "-c1", "-W2", b.address], check=False).ok)`, "True\n")

var netifDownWord = upDown(false, "down",
	"Takes the interface down, as `ip link set down` in the machine would. To pull its cable instead, which leaves it up without a carrier, there is Link.down.",
	`lan = vnet(subnet="10.0.0.0/24")
a, b = [machine_rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
b.netif("eth0").down()
print(a.run(["ping", "-c1", "-W1", b.address], check=False).ok)`, "False\n")

var netifSetWord = netifMethod(&interp.Word{
	Name:   "set",
	Doc:    "Changes what the interface's link does to its traffic, in place. What is not named stays as it was; 0 clears.",
	Params: linkParams(),
	Errors: "a value out of range; what this kernel cannot do: see msh doctor",
	Example: `m = machine_rfork(resources=[netif(vnet(subnet="10.0.0.0/24"), rate="10mbit")])
m.netif("eth0").set(loss=1.5)
m.netif("eth0").set(rate=("1mbit", "20mbit"), loss=0)`,
}, func(c *interp.Call, n *Netif) (starlark.Value, error) {
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
	if err := n.v.m.SetNetif(n.name, cable); err != nil {
		return nil, optionError(c, err)
	}
	if n.v.planned() {
		n.v.would("%s set %s", n.name, strings.Join(cable.Named, ", "))
	}
	return nil, nil
})

var netifStatsWord = netifMethod(&interp.Word{
	Name:    "stats",
	Doc:     "Counts what has gone through the interface, as the machine sees it.",
	Returns: "struct(rx_packets, rx_bytes, rx_errors, rx_dropped, tx_packets, tx_bytes, tx_errors, tx_dropped)",
	Example: `lan = vnet(subnet="10.0.0.0/24")
a, b = [machine_rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
a.run(["ping", "-c3", "-i0.01", b.address])
print(b.netif("eth0").stats().rx_packets >= 3)`,
	Output: "True\n",
}, func(c *interp.Call, n *Netif) (starlark.Value, error) {
	if err := c.Unpack(); err != nil {
		return nil, err
	}
	if n.v.planned() {
		return interp.Unknown, nil
	}
	s, err := n.v.m.NetifStats(n.name)
	if err != nil {
		return nil, err
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, counted(s)), nil
})

func counted(s netx.Counters) starlark.StringDict {
	return starlark.StringDict{
		"rx_packets": starlark.MakeUint64(s.RxPackets), "rx_bytes": starlark.MakeUint64(s.RxBytes),
		"rx_errors": starlark.MakeUint64(s.RxErrors), "rx_dropped": starlark.MakeUint64(s.RxDropped),
		"tx_packets": starlark.MakeUint64(s.TxPackets), "tx_bytes": starlark.MakeUint64(s.TxBytes),
		"tx_errors": starlark.MakeUint64(s.TxErrors), "tx_dropped": starlark.MakeUint64(s.TxDropped),
	}
}
