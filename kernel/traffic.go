package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"msh/kernel/netx"
)

// Partition splits the network: machines of different groups cannot reach each
// other. Those that no group names form one more. Ports that are no machine's, of
// the gateway, an uplink, a cable to another switch, stay within everybody's reach.
func (v *VNet) Partition(groups [][]string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.alive(); err != nil {
		return err
	}
	if len(groups) == 0 {
		return bad("partition", "groups", "none", "at least one list of machines")
	}
	of := map[string]int{}
	for i, g := range groups {
		for _, name := range g {
			if !slices.ContainsFunc(v.ports, func(p *port) bool { return p.machine == name }) {
				return bad("partition", "groups", name, "a machine that is on "+v.Name())
			}
			if at, ok := of[name]; ok {
				return bad("partition", "groups", name, fmt.Sprintf("it in one group; it is in %d and %d", at+1, i+1))
			}
			of[name] = i
		}
	}
	if v.net == nil {
		return nil
	}
	before := v.groups
	v.groups = groups
	err := v.split(v.ports)
	if err != nil {
		v.groups = before
	}
	return err
}

// split has the switch keep the groups apart, whose machines have these ports.
func (v *VNet) split(all []*port) error {
	ports := make([][]string, len(v.groups)+1)
	for _, p := range all {
		if p.machine == "" {
			continue
		}
		i := slices.IndexFunc(v.groups, func(g []string) bool { return slices.Contains(g, p.machine) })
		if i < 0 {
			i = len(v.groups)
		}
		ports[i] = append(ports[i], p.name())
	}
	return explainShape(v.net.ns.Partition(slices.DeleteFunc(ports, func(g []string) bool { return len(g) == 0 })))
}

// Heal ends a partition.
func (v *VNet) Heal() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.alive(); err != nil || v.net == nil {
		return err
	}
	v.groups = nil
	return v.net.ns.Heal()
}

// PortCounters are what has gone through a port, as the machine there sees it.
type PortCounters struct {
	Machine, Netif string
	netx.Counters
}

// Stats counts port by port.
func (v *VNet) Stats() ([]PortCounters, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.alive(); err != nil {
		return nil, err
	}
	var all []PortCounters
	for _, p := range v.ports {
		if p.machine == "" {
			continue
		}
		c, err := v.net.ns.Counters(p.index)
		if err != nil && !v.net.ns.Has(p.name()) {
			continue // the machine has ended, or deleted its end
		}
		if err != nil {
			return nil, err
		}
		all = append(all, PortCounters{p.machine, p.netif.Name, c.Turned()})
	}
	return all, nil
}

// Stats counts what has gone through the cable, as each end sees it.
func (k *Link) Stats() ([2]netx.Counters, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var both [2]netx.Counters
	if err := k.alive(); err != nil {
		return both, err
	}
	for i, ns := range k.at {
		if ns == nil { // a machine on a switch: what is counted at the switch, turned
			continue
		}
		c, err := ns.Counters(k.port[i])
		if err != nil {
			return both, err
		}
		if k.ends[i].Machine != nil {
			c = c.Turned()
		}
		both[i] = c
	}
	if i := k.machineEnd(); i >= 0 {
		both[i] = both[1-i].Turned()
	}
	return both, nil
}

// Capture is one under way.
type Capture struct {
	*netx.Capture
	lab *Lab
}

// Capture writes what goes through an interface to a file, until it is stopped.
func (m *Machine) Capture(name string, o netx.CaptureOptions) (*Capture, error) {
	if _, err := m.Netif(name); err != nil {
		return nil, err
	}
	ns, err := m.network()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return m.lab.capture(ns, name, o)
}

// Capture writes all that comes in at the switch to a file, until it is stopped.
func (v *VNet) Capture(o netx.CaptureOptions) (*Capture, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.alive(); err != nil {
		return nil, err
	}
	o.Except = netx.BridgeIndex // which hears again what its ports have heard
	return v.lab.capture(v.net.ns, "", o)
}

func (l *Lab) capture(ns *netx.NS, link string, o netx.CaptureOptions) (*Capture, error) {
	c, err := ns.Capture(link, o)
	if err != nil {
		return nil, explainShape(err)
	}
	k := &Capture{c, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.captures = append(l.captures, k)
	return k, nil
}

// capturing is a capture under way; nil for none.
func (l *Lab) capturing() *Capture {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.captures) == 0 {
		return nil
	}
	return l.captures[0]
}

// Stop ends it; the file is whole then.
func (c *Capture) Stop() (netx.CaptureStats, error) {
	c.lab.mu.Lock()
	c.lab.captures = slices.DeleteFunc(c.lab.captures, func(o *Capture) bool { return o == c })
	c.lab.mu.Unlock()
	return c.Capture.Stop()
}

// Wait waits until it has as many packets as were asked for.
func (c *Capture) Wait(ctx context.Context, timeout time.Duration) error {
	inner, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := c.Capture.Wait(inner)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fmt.Errorf("wait for the capture: not full within %v", timeout)
	}
	return err
}

// Plan tells of a network that stands in a plan only.
func (v *VNet) Plan() string {
	words := []string{"vnet " + v.Name()}
	if v.parent != v.lab.root {
		words[0] += " in " + v.parent.Name()
	}
	for _, p := range v.spec.Subnets {
		words = append(words, p.String())
	}
	words = append(words, fmt.Sprintf("mtu %d", v.spec.MTU))
	if v.spec.NAT {
		words = append(words, "nat")
	}
	if v.spec.Isolated {
		words = append(words, "isolated")
	}
	if v.spec.Uplink != "" {
		words = append(words, "uplink "+v.spec.Uplink)
	}
	if x := v.spec.VXLAN; x != nil {
		words = append(words, fmt.Sprintf("vxlan %d to %v", x.ID, x.Peers))
	}
	return strings.Join(words, ", ")
}
