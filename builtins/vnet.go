package builtins

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
)

var vnetParams = []interp.Param{
	{Name: "name", Type: "string", Default: "None", Pos: true, Doc: "a-z, 0-9 and -, unique in its lab; n1, n2, … when left out"},
	{Name: "subnet", Type: "string or list", Default: "None", Doc: `"10.0.0.0/24", "fd00::/64", or a list of such networks that do not overlap; addresses are handed out in order`},
	{Name: "mtu", Type: "int", Default: "1500", Doc: "bytes; 1450 is the default with vxlan, 1430 where its peers have IPv6 addresses"},
	{Name: "nat", Type: "bool", Default: "False", Doc: "the machines on it reach what the host reaches: the switch, with the first address of each subnet, is their gateway"},
	{Name: "uplink", Type: "string", Default: "None", Doc: "a real interface that becomes a port of the switch; the host loses it until the vnet ends, and gets it back as it was"},
	{Name: "isolated", Type: "bool", Default: "False", Doc: "the machines on it reach the gateway and the uplink, but not each other"},
	{Name: "vxlan", Type: "struct", Default: "None", Doc: `struct(id=, peers=[], local=, port=): the same Ethernet on several hosts, over UDP; local and port (4789) may be left out`},
	{Name: "force", Type: "bool", Default: "False", Doc: "take the uplink even if it is the only way out that the host has"},
}

// vnetWord is vnet, and the method of the same meaning.
func (s *Session) vnetWord(name string) *interp.Word {
	w := &interp.Word{
		Name: name,
		Doc: "Makes a virtual Ethernet: a switch in a network namespace of its own, so that nothing of it is to be seen on the host. " +
			"Machines on it know each other by name where they have a mount table. It does IPv6 where it has such a subnet. It ends with the script, unless a kept machine is on it. " +
			"Machines cannot tell it from a real one but by timing and by what its driver says of itself; docs/networks.md lists what that is, and why it cannot be hidden.",
		Params:  vnetParams,
		Returns: "a VNet: name, subnet, mtu, machines, attach(), detach(), partition(), heal(), capture(), stats(), destroy()",
		Errors:  "a subnet with host bits, or two that overlap; a name that is taken; an uplink that is not there or is the host's only way out",
		Needs:   "root",
		Fn:      s.makeVNet,
	}
	if name == "vnet" {
		w.Example = `lan = vnet("lan", subnet=["10.0.0.0/24", "fd00::/64"])
a = machine_rfork(name="a", resources=[netif(lan)])
b = machine_rfork(name="b", resources=[netif(lan)])
print(lan.machines, b.netif("eth0").addresses, a.run(["ping", "-c1", "-W2", "fd00::2"]).ok)`
		w.Output = `[<machine a>, <machine b>] ["10.0.0.2/24", "fd00::2/64"] True` + "\n"
	} else {
		w.Doc = "Makes a virtual Ethernet that lies in this machine and ends with it; its uplink and what its nat reaches are the machine's. " + w.Doc
		w.Example = `m = machine_rfork(name="site", resources=[netspace(), children(2)])
lan = m.vnet("lan", subnet="10.0.0.0/24")
a, b = [m.rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
print(a.run(["ping", "-c1", "-W2", b.address]).ok)`
		w.Output = "True\n"
	}
	return w
}

func (s *Session) makeVNet(c *interp.Call) (starlark.Value, error) {
	var name, uplink Text
	var subnet starlark.Value
	mtu := Whole(1500)
	var nat, isolated, force bool
	var vxlan *starlarkstruct.Struct
	if err := c.Unpack(&name, &subnet, &mtu, &nat, &uplink, &isolated, &vxlan, &force); err != nil {
		return nil, err
	}
	if err := kernel.CheckMTU("vnet", int(mtu)); err != nil {
		return nil, err
	}
	spec := &kernel.VNetSpec{Name: string(name), MTU: int(mtu), NAT: nat, Uplink: string(uplink), Isolated: isolated, Force: force, Pos: c.Pos().String()}
	list := texts(subnet)
	if subnet != nil && list == nil {
		return nil, fmt.Errorf(`%s: subnet: got %s, want "10.0.0.0/24", or a list of such networks`, c.Word.Name, subnet.Type())
	}
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf(`%s: subnet: got %q, want a network, as "10.0.0.0/24" or "fd00::/64"`, c.Word.Name, kernel.Short(text))
		}
		spec.Subnets = append(spec.Subnets, p)
	}
	var err error
	if spec.VXLAN, err = readVXLAN(vxlan); err != nil {
		return nil, fmt.Errorf("%s: vxlan: %w", c.Word.Name, err)
	}
	if x := spec.VXLAN; x != nil && !named(c, "mtu") {
		spec.MTU -= 50 // Ethernet, IP, UDP and VXLAN headers (RFC 7348, 5)
		if x.Peers != nil && x.Peers[0].Is6() {
			spec.MTU -= 20
		}
	}
	parent := s.host
	if p, ok := c.Recv.(*Machine); ok {
		parent = p
	}
	if s.dry {
		v, err := s.lab.PlanVNet(parent.m, spec)
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(s.out, v.Plan())
		return s.vnet(v), nil
	}
	v, err := s.lab.VNet(c.Context(), parent.m, spec)
	if err != nil {
		return nil, err
	}
	return s.vnet(v), nil
}

func readVXLAN(s *starlarkstruct.Struct) (*kernel.VXLAN, error) {
	if s == nil {
		return nil, nil
	}
	x := &kernel.VXLAN{}
	for _, name := range s.AttrNames() {
		v, _ := s.Attr(name)
		switch name {
		case "id", "port":
			var n Whole
			if err := n.Unpack(v); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if name == "id" {
				x.ID = int(n)
			} else {
				x.Port = int(n)
			}
		case "peers", "local":
			for _, text := range texts(v) {
				a, err := netip.ParseAddr(text)
				if err != nil || name == "local" && x.Local.IsValid() {
					return nil, fmt.Errorf(`%s: got %q, want an address, as "192.0.2.2"`, name, kernel.Short(text))
				}
				if name == "peers" {
					x.Peers = append(x.Peers, a)
				} else {
					x.Local = a
				}
			}
		default:
			return nil, fmt.Errorf("got %q, want struct(id=, peers=[], local=, port=)", name)
		}
	}
	if v, _ := s.Attr("id"); v == nil {
		return nil, fmt.Errorf("want an id: struct(id=, peers=[], local=, port=)")
	}
	return x, nil
}

// VNet is a virtual Ethernet as a Starlark value.
type VNet struct {
	s *Session
	v *kernel.VNet
}

var _ starlark.HasAttrs = (*VNet)(nil)

// vnet is the value of a network, always the same one.
func (s *Session) vnet(v *kernel.VNet) *VNet {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.vnets[v]
	if !ok {
		n = &VNet{s, v}
		s.vnets[v] = n
	}
	return n
}

func (n *VNet) String() string { return fmt.Sprintf("<vnet %s>", n.v.Name()) }

// Type implements starlark.Value.
func (n *VNet) Type() string { return "vnet" }

// Freeze implements starlark.Value.
func (n *VNet) Freeze() {}

// Truth implements starlark.Value.
func (n *VNet) Truth() starlark.Bool { return true }

// Hash implements starlark.Value.
func (n *VNet) Hash() (uint32, error) { return starlark.String(n.v.Name()).Hash() }

// Attr implements starlark.HasAttrs.
func (n *VNet) Attr(name string) (starlark.Value, error) {
	switch name {
	case "name":
		return starlark.String(n.v.Name()), nil
	case "subnet":
		var list []starlark.Value
		for _, p := range n.v.Spec().Subnets {
			list = append(list, starlark.String(p.String()))
		}
		switch len(list) {
		case 0:
			return starlark.None, nil
		case 1:
			return list[0], nil
		}
		return starlark.NewList(list), nil
	case "mtu":
		return starlark.MakeInt(n.v.Spec().MTU), nil
	case "parent":
		return n.s.value(n.v.Parent()), nil
	case "machines":
		return starlark.NewList(n.machines()), nil
	}
	if w := n.s.method("VNet." + name); w != nil {
		return w.Bind(n), nil
	}
	return noAttr(n, name)
}

func (n *VNet) machines() []starlark.Value {
	var list []starlark.Value
	names := n.v.Machines()
	for _, name := range names {
		for _, m := range n.s.lab.Machines() {
			if m.Name() == name {
				list = append(list, n.s.value(m))
			}
		}
	}
	return list
}

// AttrNames implements starlark.HasAttrs.
func (n *VNet) AttrNames() []string {
	return n.s.attrNames("VNet")
}

// would prints a step of a dry run.
func (n *VNet) would(format string, args ...any) {
	fmt.Fprintf(n.s.out, "vnet %s: %s\n", n.v.Name(), fmt.Sprintf(format, args...))
}

// vnetMethod makes a word that is a method of a vnet.
func vnetMethod(w *interp.Word, fn func(c *interp.Call, n *VNet) (starlark.Value, error)) *interp.Word {
	w.Name = "VNet." + w.Name
	w.Needs = "root"
	w.Fn = func(c *interp.Call) (starlark.Value, error) { return fn(c, c.Recv.(*VNet)) }
	return w
}

var vnetAttachWord = vnetMethod(&interp.Word{
	Name: "attach",
	Doc:  "Plugs a running machine into the network: it gets one interface more. The machine must have a network of its own.",
	Params: linkParams(append([]interp.Param{
		{Name: "m", Type: "machine", Required: true, Pos: true, Doc: "the machine"}}, netifParams...)...),
	Returns: "the Netif",
	Errors:  "a machine that is dead, or shares its parent's network; as netif",
	Example: `lan = vnet(subnet="10.0.0.0/24")
m = machine_rfork(resources=[netspace()])
i = lan.attach(m, name="wan0")
print(i, i.address, m.run("ls /proc/sys/net/ipv4/conf").stdout.split())`,
	Output: `<netif wan0 of m1> 10.0.0.1 ["all", "default", "lo", "wan0"]` + "\n",
}, func(c *interp.Call, n *VNet) (starlark.Value, error) {
	var m *Machine
	var a netifArgs
	var link linkArgs
	if err := c.Unpack(link.dst(a.dst(&m)...)...); err != nil {
		return nil, err
	}
	k, err := a.netif(c)
	if err != nil {
		return nil, err
	}
	if k.Cable, err = link.cable(c); err != nil {
		return nil, err
	}
	if m.planned() {
		k, err = n.v.PlanAttach(m.m, k)
		if err == nil {
			n.would("attach %s as %s", m.Name(), k.Words())
		}
	} else {
		k, err = n.v.Attach(c.Context(), m.m, k)
	}
	if err != nil {
		return nil, err
	}
	return &Netif{m, k.Name}, nil
})

var vnetDetachWord = vnetMethod(&interp.Word{
	Name: "detach",
	Doc:  "Takes a machine off the network: it loses the interfaces it has there.",
	Params: []interp.Param{
		{Name: "m", Type: "machine", Required: true, Pos: true, Doc: "the machine"},
	},
	Errors: "a machine that is not on it",
	Example: `lan = vnet(subnet="10.0.0.0/24")
m = machine_rfork(resources=[netif(lan)])
lan.detach(m)
print(m.netifs, lan.machines)`,
	Output: "[] []\n",
}, func(c *interp.Call, n *VNet) (starlark.Value, error) {
	var m *Machine
	if err := c.Unpack(&m); err != nil {
		return nil, err
	}
	if err := n.v.Detach(m.m); err != nil {
		return nil, err
	}
	if m.planned() {
		n.would("detach %s", m.Name())
	}
	return nil, nil
})

var vnetPartitionWord = vnetMethod(&interp.Word{
	Name: "partition",
	Doc: "Splits the network: machines of different groups cannot reach each other until heal(). Machines that no group names form one more. " +
		"Connections stall, and go on afterwards. What there was of a partition before is forgotten; the gateway, an uplink and cables to other switches stay within everybody's reach.",
	Params: []interp.Param{
		{Name: "groups", Doc: "each a list of machines", Rest: true},
	},
	Errors: "a machine that is not on the network, or in two groups",
	Example: `lan = vnet(subnet="10.0.0.0/24")
a, b, c = [machine_rfork(name=n, resources=[netif(lan)]) for n in "abc".elems()]
lan.partition([a, b], [c])
print(a.run(["ping", "-c1", "-W1", b.address], check=False).ok, a.run(["ping", "-c1", "-W1", c.address], check=False).ok)
lan.heal()
print(a.run(["ping", "-c1", "-W2", c.address], check=False).ok)`,
	Output: "True False\nTrue\n",
}, func(c *interp.Call, n *VNet) (starlark.Value, error) {
	var groups starlark.Tuple
	if err := c.Unpack(&groups); err != nil {
		return nil, err
	}
	var all [][]string
	for i, g := range groups {
		it, ok := g.(starlark.Iterable)
		if !ok {
			return nil, interp.WithHint(fmt.Errorf("VNet.partition: got %s as group %d, want lists of machines", g.Type(), i+1), "partition([a, b], [c])")
		}
		var names []string
		for e := range starlark.Elements(it) {
			m, ok := e.(*Machine)
			if !ok {
				return nil, fmt.Errorf("VNet.partition: got %s in group %d, want machines", e.Type(), i+1)
			}
			names = append(names, m.Name())
		}
		all = append(all, names)
	}
	if err := n.v.Partition(all); err != nil {
		return nil, err
	}
	if n.s.dry {
		var words []string
		for _, g := range all {
			words = append(words, "["+strings.Join(g, ", ")+"]")
		}
		n.would("partition %s", strings.Join(words, " | "))
	}
	return nil, nil
})

var vnetHealWord = vnetSimple(&interp.Word{
	Name: "heal",
	Doc:  "Ends a partition of the network. One that is whole stays so.",
	Example: `lan = vnet(subnet="10.0.0.0/24")
a, b = [machine_rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
lan.partition([a], [b])
lan.heal()
print(a.run(["ping", "-c1", "-W2", b.address], check=False).ok)`,
	Output: "True\n",
}, func(ctx context.Context, v *kernel.VNet) error { return v.Heal() })

var vnetDestroyWord = vnetSimple(&interp.Word{
	Name: "destroy",
	Doc:  "Ends the network, and its cables. Machines on it lose their interface to it. Destroying it twice is no error.",
	Example: `lan = vnet(subnet="10.0.0.0/24")
m = machine_rfork(resources=[netif(lan)])
lan.destroy()
print(m.netifs, lab.vnets)`,
	Output: "[] []\n",
}, func(ctx context.Context, v *kernel.VNet) error { return v.Destroy(ctx) })

// vnetSimple makes a method without parameters.
func vnetSimple(w *interp.Word, do func(context.Context, *kernel.VNet) error) *interp.Word {
	name := w.Name
	return vnetMethod(w, func(c *interp.Call, n *VNet) (starlark.Value, error) {
		if err := c.Unpack(); err != nil {
			return nil, err
		}
		if err := do(c.Context(), n.v); err != nil {
			return nil, err
		}
		if n.s.dry {
			n.would("%s", name)
		}
		return nil, nil
	})
}

var vnetStatsWord = vnetMethod(&interp.Word{
	Name:    "stats",
	Doc:     "Counts what has gone over the network, port by port, as the machine at the port sees it.",
	Returns: "a list of struct(machine, netif, rx_packets, rx_bytes, …, tx_dropped): a machine's name and its interface's",
	Example: `lan = vnet(subnet="10.0.0.0/24")
a, b = [machine_rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
a.run(["ping", "-c3", "-i0.01", b.address])
print([(p.machine, p.netif, p.tx_packets >= 3) for p in lan.stats()])`,
	Output: `[("a", "eth0", True), ("b", "eth0", True)]` + "\n",
}, func(c *interp.Call, n *VNet) (starlark.Value, error) {
	if err := c.Unpack(); err != nil {
		return nil, err
	}
	if n.s.dry {
		return interp.Unknown, nil
	}
	ports, err := n.v.Stats()
	if err != nil {
		return nil, err
	}
	var list []starlark.Value
	for _, p := range ports {
		d := counted(p.Counters)
		d["machine"], d["netif"] = starlark.String(p.Machine), starlark.String(p.Netif)
		list = append(list, starlarkstruct.FromStringDict(starlarkstruct.Default, d))
	}
	return starlark.NewList(list), nil
})
