package builtins

import (
	"fmt"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var netaddrWord = &interp.Word{
	Name: "netaddr",
	Doc: "Leaves a machine in its parent's network universe, with some of the addresses there: it can bind to and send from no other, as in jail(8). " +
		"The wildcards 0.0.0.0 and :: and the loopback addresses 127.0.0.1 and ::1 become the first of its addresses of that family, so that its servers are not the parent's, and none of the parent's is reached by localhost. " +
		"As the wildcard means one address, a server for both families must listen twice. What is not bound gets the address whose network the destination is in, or the first. " +
		"A packet from another source is dropped on its way out, whatever made it (EPERM): so is DHCP's, which is the interface's affair, and that of a ping whose source the kernel chose, which -I ADDRESS mends. " +
		"Machines inside have no more of the addresses. A machine with root's own ids is kept from mistakes, not from intent: AF_PACKET sockets write to the interface itself, and want CAP_NET_RAW over the parent's network, which uidspace() takes.",
	Params: []interp.Param{
		{Name: "address", Type: "string", Rest: true, Doc: `"10.0.0.2" or "fd00::2": addresses that interfaces of the parent have, without a prefix length`},
	},
	Returns: "a resource of kind netaddr, mode shared",
	Errors:  "an address that no interface of the parent has; netif() or netspace() beside it, which give a network universe of its own; a kernel before 5.14 or without CONFIG_CGROUP_BPF",
	Example: `m = machine_rfork(resources=[netaddr("127.0.0.1")])
server = "import socket; s = socket.socket(); s.bind(('0.0.0.0', 0)); print(s.getsockname()[0])"
print(m.run(["python3", "-c", server]).stdout.strip())
print(m.run(["python3", "-c", server.replace("0.0.0.0", "127.0.0.2")], check=False).stderr.splitlines()[-1])`,
	Output: "127.0.0.1\nPermissionError: [Errno 1] Operation not permitted\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var list starlark.Tuple
		if err := c.Unpack(&list); err != nil {
			return nil, err
		}
		n := &kernel.Netaddr{}
		for _, v := range list {
			text, ok := starlark.AsString(v)
			if !ok {
				return nil, interp.WithHint(fmt.Errorf("netaddr: address: got %s, want a string", v.Type()), `netaddr("10.0.0.2", "10.0.0.3")`)
			}
			a, err := kernel.ParseNetaddr(text)
			if err != nil {
				return nil, err
			}
			n.Addresses = append(n.Addresses, a)
		}
		return newResource(c, n)
	},
}
