package kernel

import (
	"errors"
	"fmt"
	"os"

	"msh/kernel/netx"
)

// restoreNet gives the network what programs inside had made of it, unless its
// addresses are others now.
func (w *waking) restoreNet(ns *netx.NS) error {
	if w.o.Fresh || w.o.Addresses != nil {
		return nil
	}
	for _, nic := range w.state.Nets {
		if err := nic.Restore(ns); err != nil {
			return fmt.Errorf("restore the interface %s: %w", nic.Name, err)
		}
	}
	return ns.Do(func() error {
		for _, key := range routerSysctls {
			if value, ok := w.state.Sysctls[key]; ok {
				if err := netx.WriteSysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
			}
		}
		return nil
	})
}

// prepareNet does what the steps of a new machine do to its network.
func (t *Txn) prepareNet(ns *netx.NS) error {
	return ns.Do(func() error {
		set := func(key, value string) error {
			if err := netx.WriteSysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		}
		errs := []error{set("net/mptcp/enabled", "0")}
		if t.plan.IPv6 {
			errs = append(errs, set("net/ipv6/conf/default/accept_dad", "0"))
		} else {
			errs = append(errs, set("net/ipv6/conf/all/disable_ipv6", "1"))
		}
		errs = append(errs, ns.SetUp(1, true))
		for _, r := range t.plan.Spec.Resources {
			if s, ok := r.(*Sysctl); ok && s.space() == "netspace" {
				errs = append(errs, netx.WriteSysctl(s.path(), s.Value))
			}
		}
		return errors.Join(errs...)
	})
}

// join puts the machine's ports onto their switches.
func (t *Txn) join() error {
	for _, n := range t.plan.Nets {
		if n.Link != "" {
			continue
		}
		v := t.lab.findVNet(n.VNet)
		if v == nil {
			return fmt.Errorf("vnet %s: %w", n.VNet, errNoNet)
		}
		if err := v.join(n); err != nil {
			return err
		}
	}
	return nil
}
