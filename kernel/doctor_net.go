package kernel

import (
	"errors"
	"net/netip"

	"msh/kernel/netx"
)

// checkNetworks tries, in network namespaces that are gone afterwards, what
// networks are made of.
func checkNetworks() []Finding {
	shaping := netx.ProbeShaping()
	all := []Finding{
		probed("vnet", "a bridge and veths", trySwitch()),
		probed("link rate", "rate, burst, limit", errors.Join(shaping.TBF, shaping.IFB)),
		probed("link loss", "loss", either(shaping.Netem, shaping.BPF)),
		probed("netem", "delay, jitter, duplicate, reorder, corrupt", shaping.Netem),
		probed("cable between machines", "link(a, b)", cables(shaping)),
		probed("nat", "vnet(nat=True)", netx.ProbeNAT()),
		probed("partition", "VNet.partition", netx.ProbePartition()),
	}
	for _, kind := range []string{"macvlan", "ipvlan"} {
		all = append(all, probed(kind, `netif(…, shared="`+kind+`")`, tryLower(kind)))
	}
	return append(all, probed("vxlan", "vnet(vxlan=…)", tryVXLAN()))
}

func either(a, b error) error {
	if a == nil || b == nil {
		return nil
	}
	return a
}

// probed turns the outcome of a trial into a finding.
func probed(name, detail string, err error) Finding {
	f := Finding{Name: name, OK: err == nil, Detail: detail}
	if err != nil {
		f.Detail += ": " + err.Error()
		f.Mend = "see the kernel's configuration, and run msh as root"
		var missing *netx.Missing
		if errors.As(err, &missing) {
			f.Mend = missing.Mend
		}
	}
	return f
}

// trySwitch makes a switch with one port.
func trySwitch() error {
	return withPort(func(*netx.NS, *netx.NS) error { return nil })
}

// withPort calls try with a namespace that has an interface eth0, and an empty one.
func withPort(try func(has, empty *netx.NS) error) error {
	sw, err := netx.MakeSwitch("switch", 1500)
	if err != nil {
		return err
	}
	defer sw.Close()
	ns, err := netx.Make(nil)
	if err != nil {
		return err
	}
	defer ns.Close()
	port := netx.End{Name: "p", Index: firstPort}
	if err := sw.AddVeth(netx.Veth{End: port, Master: netx.BridgeIndex, Up: true, Far: netx.End{Name: "eth0", Index: 2}, FarNS: ns}); err != nil {
		return err
	}
	if err := ns.SetUp(2, true); err != nil {
		return err
	}
	empty, err := netx.Make(nil)
	if err != nil {
		return err
	}
	defer empty.Close()
	return try(ns, empty)
}

func tryLower(kind string) error {
	return withPort(func(has, empty *netx.NS) (err error) {
		if kind == "macvlan" {
			_, err = has.AddMacvlan("eth0", empty, "eth0", nil, 0)
		} else {
			_, err = has.AddIpvlan("eth0", empty, "eth0", 0)
		}
		return err
	})
}

func tryVXLAN() error {
	under, err := netx.Make(nil)
	if err != nil {
		return err
	}
	defer under.Close()
	sw, err := netx.MakeSwitch("switch", 1500)
	if err != nil {
		return err
	}
	defer sw.Close()
	return sw.AddVXLAN(netx.VXLAN{ID: 1, Port: 4789, Peers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, MTU: 1500, Index: firstPort}, under)
}

// cables tells what a cable between machines needs: a BPF program, or for an ordinary
// user, who may load none, what an ifb needs too.
func cables(s netx.Shaping) error {
	if InSpace() {
		return s.IFB
	}
	return s.BPF
}
