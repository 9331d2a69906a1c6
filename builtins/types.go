package builtins

import (
	"slices"

	"go.starlark.net/starlark"

	"msh/interp"
)

// types are the types of the values that words return: what attributes they have beside their methods. A test holds it
// complete.
var types = []interp.Type{
	{Name: "Capture", Doc: "A capture of packets, of Netif.capture or VNet.capture.", Attrs: []interp.Attr{
		{Name: "path", Doc: "the file that it writes, as it was given"},
	}},
	{Name: "Lab", Doc: "What a script makes, as a whole: the predeclared lab, and the lab of a machine.", Attrs: []interp.Attr{
		{Name: "links", Doc: "a list of the cables there are, as Links"},
		{Name: "machines", Doc: "a list of its machines, those inside others too"},
		{Name: "name", Doc: "its name: that of the script without .star, or what --lab says"},
		{Name: "vnets", Doc: "a list of the VNets there are"},
	}},
	{Name: "Link", Doc: "A cable, of link.", Attrs: []interp.Attr{
		{Name: "ends", Doc: "a list of what is at its two ends: machines or VNets"},
		{Name: "name", Doc: `its name, of those of its ends: "a-b"`},
		{Name: "netifs", Doc: "a list of the machines' interfaces at its two ends, as Netifs; None for a VNet's"},
	}},
	{Name: "Machine", Doc: "A machine, of machine_rfork or Machine.rfork, and the predeclared host.", Attrs: []interp.Attr{
		{Name: "address", Doc: `its first address, as "10.0.0.1", that of netif() or of netaddr(); None where it has none of msh's`},
		{Name: "children", Doc: "a list of the machines that run inside it, one level down"},
		{Name: "given", Doc: "a list of the resources it was given, as Resources; each prints as it was written"},
		{Name: "lab", Doc: "the Lab that it is in"},
		{Name: "name", Doc: "its name"},
		{Name: "netifs", Doc: "a list of the interfaces that msh has given it, as Netifs"},
		{Name: "parent", Doc: "the machine that it lies in; None for the host"},
		{Name: "pid", Doc: "the number of its init, as the host sees it; unknown in a dry run"},
		{Name: "root", Doc: `the directory of its parent's that is its /, as root() has it; "/" without one`},
		{Name: "state", Doc: `"running", "frozen" or "dead"; unknown in a dry run`},
	}},
	{Name: "Netif", Doc: "An interface of a machine, of Machine.netif, Machine.netifs or VNet.attach.", Attrs: []interp.Attr{
		{Name: "address", Doc: `its first address, as "10.0.0.1"; None where it has none`},
		{Name: "addresses", Doc: `a list of its addresses with their prefix lengths, as "10.0.0.1/24"`},
		{Name: "mac", Doc: "its hardware address; None where it is a real interface that keeps its own"},
		{Name: "machine", Doc: "the machine that has it"},
		{Name: "mtu", Doc: "the largest packet in bytes; None where it was not given"},
		{Name: "name", Doc: `its name in the machine, as "eth0"`},
		{Name: "vnet", Doc: "the VNet that it is plugged into; None for another"},
	}},
	{Name: "Process", Doc: "A program that runs on its own, of Machine.spawn.", Attrs: []interp.Attr{
		{Name: "alive", Doc: "whether it runs"},
		{Name: "code", Doc: "its code, 128 and the signal's number where a signal ended it; None while it runs"},
		{Name: "pid", Doc: "its number, as the host sees it"},
	}},
	{Name: "Resource", Doc: "What a machine can be given, of cpu, memory, netif, … It has the parameters of its word as attributes too.", Attrs: []interp.Attr{
		{Name: "kind", Doc: `what it is: "cpu", "memory", "netif", …`},
		{Name: "mode", Doc: `"new", "shared" or "exclusive"`},
	}},
	{Name: "Route", Doc: "A way to a network, of route: its parameters, None for those left out.", Attrs: []interp.Attr{
		{Name: "dev", Doc: "the interface"},
		{Name: "dst", Doc: "the network"},
		{Name: "metric", Doc: "the lower one of two is taken"},
		{Name: "src", Doc: "the source address"},
		{Name: "via", Doc: "the gateway's address"},
	}},
	{Name: "VNet", Doc: "A virtual Ethernet, of vnet or Machine.vnet.", Attrs: []interp.Attr{
		{Name: "machines", Doc: "a list of the machines on it"},
		{Name: "mtu", Doc: "bytes"},
		{Name: "name", Doc: "its name"},
		{Name: "parent", Doc: "the machine that it lies in; the host's is host"},
		{Name: "subnet", Doc: `its network, as "10.0.0.0/24"; a list where it has several, None where none`},
	}},
}

// Types describes the types of values that the words return.
func Types() []interp.Type { return types }

// Named describes the predeclared values.
func Named() []interp.Named {
	return []interp.Named{
		{Name: "host", Type: "Machine", Doc: "The machine that msh itself runs in. It is never ended, frozen or limited, but runs and spawns programs, and reads and writes files, as others do."},
		{Name: "lab", Type: "Lab", Doc: "The lab that this script makes."},
	}
}

// attrNames lists what values of a type have: attributes and methods.
func (s *Session) attrNames(name string) []string {
	names := s.methodNames(name + ".")
	for _, t := range types {
		if t.Name == name {
			for _, a := range t.Attrs {
				names = append(names, a.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// elsewhere is what other programs, Mininet first of all, call what values have here.
var elsewhere = map[string]map[string]string{
	"machine": {
		"cmd": `m.run("…").stdout`, "cmdPrint": `print(m.run("…").stdout)`, "pexec": `m.run([…])`, "exec": `m.run([…])`,
		"popen": `m.spawn([…])`, "sendCmd": `m.spawn("…")`,
		"IP": "m.address", "ip": "m.address", "MAC": `m.netif("eth0").mac`, "mac": `m.netif("eth0").mac`,
		"intf": `m.netif("eth0")`, "intfs": "m.netifs", "interfaces": "m.netifs", "addresses": `m.netif("eth0").addresses`,
		"setIP": "netif(lan, address=…)", "terminate": "m.destroy()", "delete": "m.destroy()", "start": "machine_rfork, which starts it",
		"ping":  `load("@msh//net.star", "ping"), and ping(a, b)`,
		"iperf": `load("@msh//net.star", "iperf"), and iperf(a, b)`,
	},
	"vnet": {
		"connect": "lan.attach(m)", "addHost": "machine_rfork(resources=[netif(lan)])", "hosts": "lan.machines", "stop": "lan.destroy()", "delete": "lan.destroy()",
		"pingAll": `load("@msh//net.star", "pingall"), and pingall(lan.machines)`,
		"pingall": `load("@msh//net.star", "pingall"), and pingall(lan.machines)`,
	},
	"link": {"stop": "k.destroy()", "delete": "k.destroy()", "config": "k.set(…)", "intf1": "k.netifs[0]", "intf2": "k.netifs[1]"},
	"netif": {
		"IP": `m.netif("eth0").address`, "ip": `m.netif("eth0").address`, "MAC": `m.netif("eth0").mac`, "config": `m.netif("eth0").set(…)`, "node": `m.netif("eth0").machine`,
		"ifconfig": `m.netif("eth0").up(), down()`, "rename": "netif(lan, name=…)",
	},
	"process": {"poll": "p.code", "terminate": "p.kill()", "returncode": "p.code", "communicate": "p.log()", "stdout": "p.log()", "stop": "p.kill()"},
	"lab": {
		"hosts": "lab.machines", "switches": "lab.vnets",
		"pingAll": `load("@msh//net.star", "pingall"), and pingall(lab.machines)`,
		"pingall": `load("@msh//net.star", "pingall"), and pingall(lab.machines)`,
	},
}

// noAttr is what Attr returns for a name that v does not have: an error with a hint for what goes by another name here,
// else nothing, for Starlark's own error, which knows the names that are near.
func noAttr(v starlark.HasAttrs, name string) (starlark.Value, error) {
	here, ok := elsewhere[v.Type()][name]
	if !ok {
		return nil, nil
	}
	return nil, interp.WithHint(starlark.NoSuchAttrError(v.Type()+" has no ."+name+" field or method"), "it is called otherwise here: "+here)
}
