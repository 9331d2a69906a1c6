package netx

import (
	"fmt"
	"net"
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
