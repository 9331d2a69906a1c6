package netx

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
)

// Link is an interface as it is listed.
type Link struct {
	Name  string
	Index int
	Kind  string // "device" for a real one, "veth", "bridge", …
	MAC   string
	MTU   int
	Up    bool
}

func (l Link) String() string {
	state := "down"
	if l.Up {
		state = "up"
	}
	return fmt.Sprintf("%s, %s, mtu %d", l.Kind, state, l.MTU)
}

// Links lists the interfaces of the namespace.
func (n *NS) Links() ([]Link, error) {
	h, err := n.Route()
	if err != nil {
		return nil, err
	}
	all, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	var list []Link
	for _, l := range all {
		a := l.Attrs()
		list = append(list, Link{a.Name, a.Index, l.Type(), a.HardwareAddr.String(), a.MTU, a.Flags&net.FlagUp != 0})
	}
	return list, nil
}

// carrierPatience is how long AwaitUp waits at most.
var carrierPatience = 3 * time.Second

// Port is an interface in its namespace.
type Port struct {
	NS    *NS
	Index int
}

// AwaitUp waits until the ends of a veth pair are operational: the kernel tells
// those that use one, a bridge or the routes, some time after its carrier is there,
// up to a second (linkwatch in the kernel's net/core/link_watch.c). Where one is
// down the other has no carrier, and there is nothing to wait for.
func AwaitUp(ctx context.Context, ends ...Port) error {
	ctx, cancel := context.WithTimeout(ctx, carrierPatience)
	defer cancel()
	for {
		ready := 0
		for _, p := range ends {
			h, err := p.NS.Route()
			if err != nil {
				return err
			}
			l, err := h.LinkByIndex(p.Index)
			if err != nil {
				return fmt.Errorf("interface number %d: %w", p.Index, err)
			}
			a := l.Attrs()
			if a.Flags&net.FlagUp == 0 {
				return nil
			}
			if a.OperState == netlink.OperUp || a.OperState == netlink.OperUnknown {
				ready++
			}
		}
		if ready == len(ends) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // one of them has an end that is not msh's, and is down
		case <-time.After(5 * time.Millisecond):
		}
	}
}
