package criu

import (
	"context"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// Features are what criu can do with the running kernel.
type Features struct {
	// Track: the kernel tells which pages have changed (CONFIG_MEM_SOFT_DIRTY), so
	// that memory can be sent ahead of a dump.
	Track bool
	// Lazy: pages can be brought in after a restore (userfaultfd).
	Lazy bool
}

// Features asks criu. go-criu's own call returns the request it has sent.
func (c *Criu) Features(ctx context.Context) (Features, error) {
	req := &rpc.CriuReq{Type: rpc.CriuReqType_FEATURE_CHECK.Enum(), Features: &rpc.CriuFeatures{MemTrack: ref(true), LazyPages: ref(true)}}
	w, err := c.launch(Place{Mounts: true}, nil)
	if err != nil {
		return Features{}, err
	}
	resp, err := w.call(ctx, req, nil)
	c.learn(w)
	said := w.end()
	switch {
	case err != nil && !errors.Is(err, errEnded):
		return Features{}, err
	case err != nil || !resp.GetSuccess() || resp.GetFeatures() == nil:
		return Features{}, fmt.Errorf("%s: ask for its features: %s", c.Path, said)
	}
	return Features{Track: resp.GetFeatures().GetMemTrack(), Lazy: resp.GetFeatures().GetLazyPages()}, nil
}
