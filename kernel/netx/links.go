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

// AwaitUp waits until an interface is operational: the kernel tells those that use
// it, a bridge or the routes, some time after its carrier is there, up to a second
// (linkwatch in the kernel's net/core/link_watch.c).
func (n *NS) AwaitUp(ctx context.Context, index int) error {
	h, err := n.Route()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for {
		l, err := h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("interface number %d: %w", index, err)
		}
		if a := l.Attrs(); a.OperState == netlink.OperUp || a.OperState == netlink.OperUnknown || a.Flags&net.FlagUp == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // its other end is down: there is nothing to wait for
		case <-time.After(5 * time.Millisecond):
		}
	}
}
