package netx

import (
	"context"
	"testing"
	"time"
)

// Where one end of a cable is down, nobody waits for the other to come up.
func TestAwaitUp(t *testing.T) {
	a, b := makeNS(t), makeNS(t)
	noError(t, a.AddVeth(Veth{End: End{Name: "a0", Index: 11}, Up: true, Far: End{Name: "b0", Index: 12}, FarNS: b}))
	defer func(was time.Duration) { carrierPatience = was }(carrierPatience)
	carrierPatience = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ends := []Port{{a, 11}, {b, 12}}
	noError(t, AwaitUp(ctx, ends...)) // b0 is down
	noError(t, b.SetUp(12, true))
	noError(t, AwaitUp(ctx, ends...))
	h, err := a.Route()
	noError(t, err)
	l, err := h.LinkByIndex(11)
	noError(t, err)
	if got := l.Attrs().OperState.String(); got != "up" {
		t.Errorf("a0 is %s", got)
	}
	noError(t, a.SetUp(11, false))
	noError(t, AwaitUp(ctx, ends...))
	if ctx.Err() != nil {
		t.Error("waited for what does not come")
	}
	if err := AwaitUp(ctx, Port{a, 99}); err == nil {
		t.Error("waited for an interface that is not there")
	}
}
