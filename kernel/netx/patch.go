package netx

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// Patch makes a cable of two ports in one namespace: every frame that comes in at
// one leaves at the other, whatever it is (also what a bridge would keep: LLDP,
// spanning tree, pause), with its VLAN tags and without being looked at. ShapeOut on
// b shapes what goes from a to b, and on a the reverse. Neither may be a port of a
// bridge; the namespace itself never sees the frames. The patch ends with the ports.
func (n *NS) Patch(a, b int) error {
	if err := n.patch(a, b); err != nil {
		return fmt.Errorf("patch interface %d to %d: %w", a, b, err)
	}
	return nil
}

// HoldPatch has nothing go on that comes in at one end of a patch, or lets it go on
// again. Its carrier stays, so that whoever is there does not notice.
func (n *NS) HoldPatch(index int, hold bool) error {
	if !hold {
		return n.unhook(index, ingress, prioHold)
	}
	return n.hookProgram(index, ingress, prioHold, "hold", asm.Instructions{
		asm.Mov.Imm(asm.R0, 2), // TC_ACT_SHOT
		asm.Return(),
	})
}

func (n *NS) patch(a, b int) error {
	if a == b {
		return errors.New("got one interface, want two")
	}
	for _, p := range []int{a, b} {
		if on, err := n.hooked(p, ingress, prioDetour); err != nil {
			return err
		} else if on {
			return fmt.Errorf("what comes in at %d is shaped: shape what leaves the other end", p)
		}
	}
	if err := n.hookPatch(a, b); err != nil {
		return err
	}
	if err := n.hookPatch(b, a); err != nil {
		return errors.Join(err, n.unhook(a, ingress, prioPatch))
	}
	return nil
}
