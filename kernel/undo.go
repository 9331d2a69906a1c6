package kernel

import (
	"context"
	"encoding/json"
	"fmt"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
	"msh/kernel/netx"
)

// undo takes back one effect. Each must bear finding nothing to take back: the
// entry is written before the effect is made.
func (h *Host) undo(ctx context.Context, e ledger.Entry) error {
	switch e.Op {
	case "cgroup":
		// The group holds the processes, all of them: with it they end.
		var g cgroup.Group
		if err := json.Unmarshal(e.Arg, &g); err != nil {
			return err
		}
		return g.Remove(ctx)
	case recordOp, netOp, cableOp:
		return nil
	case "pin":
		var path string
		if err := json.Unmarshal(e.Arg, &path); err != nil {
			return err
		}
		if NeedsSpace() { // the mount table that it was in has ended
			return removeFile(path)
		}
		return netx.Unpin(path)
	case layersOp:
		var path string
		if err := json.Unmarshal(e.Arg, &path); err != nil {
			return err
		}
		return unpinLayers(path)
	case "nic":
		var g givenNIC
		if err := json.Unmarshal(e.Arg, &g); err != nil {
			return err
		}
		return h.takeNICBack(g)
	case vxlanOp:
		var pin string
		if err := json.Unmarshal(e.Arg, &pin); err != nil {
			return err
		}
		return removeVXLAN(pin)
	case "leg":
		var g leg
		if err := json.Unmarshal(e.Arg, &g); err != nil {
			return err
		}
		return h.removeLeg(g)
	case routesOp:
		var own routeTable
		if err := json.Unmarshal(e.Arg, &own); err != nil {
			return err
		}
		return h.removeTable(own)
	case "supervisor":
		var w watchman
		if err := json.Unmarshal(e.Arg, &w); err != nil {
			return err
		}
		return w.dismiss(ctx)
	case "claim":
		var c ledger.Claim
		if err := json.Unmarshal(e.Arg, &c); err != nil {
			return err
		}
		unlock, err := h.book.Lock()
		if err != nil {
			return err
		}
		defer unlock()
		if err := h.book.Release(c); err != nil {
			return err
		}
		if c.Kind == "cpu" {
			return h.confine()
		}
		return nil
	}
	return fmt.Errorf("undo %s: this msh does not know how; a newer one made it", e.Op)
}
