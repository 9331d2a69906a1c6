package criu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// ServePages takes pages from a dump or pre-dump elsewhere, whose Pages.Line is
// the other end of line, and writes them into a directory. It returns when the
// dump has ended. The pages of parent, relative to images, are not sent again.
func (c *Criu) ServePages(ctx context.Context, images *os.File, line *os.File, parent string) error {
	w, err := c.launch(Place{Mounts: true}, []*os.File{line})
	if err != nil {
		return err
	}
	// The server is one more process, which holds the line: only its end, or that
	// of the line, ends it.
	stop := context.AfterFunc(ctx, func() { unix.Shutdown(int(line.Fd()), unix.SHUT_RDWR) })
	defer stop()
	o := options(images, nil, "page-server.log")
	o.Ps = &rpc.CriuPageServerInfo{Fd: ref(int32(firstFile + 1))}
	o.NotifyScripts = ref(false)
	if parent != "" {
		o.ParentImg = ref(parent)
	}
	req := &rpc.CriuReq{Type: rpc.CriuReqType_PAGE_SERVER_CHLD.Enum(), Opts: o, KeepOpen: ref(true)}
	resp, err := w.call(ctx, req, nil)
	status := -1
	if err == nil && resp.GetSuccess() {
		wait := &rpc.CriuReq{Type: rpc.CriuReqType_WAIT_PID.Enum(), Pid: ref(uint32(resp.GetPs().GetPid()))}
		if resp, err = w.call(ctx, wait, nil); err == nil && resp.GetSuccess() {
			status = int(resp.GetStatus())
		}
	}
	c.learn(w)
	said := w.end()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && !errors.Is(err, errEnded):
		return fmt.Errorf("take pages: %w", err)
	case status != 0:
		return explain(req, resp, images, said)
	}
	return nil
}
