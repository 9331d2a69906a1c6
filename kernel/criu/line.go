package criu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// Event is a point that criu has reached and waits at.
type Event struct {
	Name string
	Pid  int // of the root process, seen from the caller: at SetupNamespaces and PostRestore
	// File is the master side of a terminal, at OrphanPtsMaster; the hook's to close.
	File *os.File
}

// The names of events, in the order they come in.
const (
	PreDump         = "pre-dump"              // dump: nothing is frozen yet
	NetworkLock     = "network-lock"          // dump: all is frozen, nothing written yet; of one with another network than criu's
	QueryFiles      = "query-ext-files"       // dump: as network-lock, also of a tree in criu's network
	PostDump        = "post-dump"             // dump: all is written, and frozen still
	NetworkUnlock   = "network-unlock"        // dump and restore: the tree is about to run; of one with another network than criu's, and whatever the hook says
	PreRestore      = "pre-restore"           // restore: nothing is made yet
	SetupNamespaces = "setup-namespaces"      // restore: the root process stands in its namespaces, alone
	NamespacesSetUp = "post-setup-namespaces" // restore: its mounts are made as well
	PostRestore     = "post-restore"          // restore: all is made, nothing runs yet
	PreResume       = "pre-resume"            // restore: the tree will run whatever the hook says
	PostResume      = "post-resume"           // restore: it runs
	OrphanPtsMaster = "orphan-pts-master"     // restore: a terminal whose master side was outside
)

// Hook is called at every event; an error makes criu give up and undo what it did.
type Hook func(Event) error

// call sends a request to a worker and answers its events until the response. At
// the end of ctx the next event is answered with no.
func (w *worker) call(ctx context.Context, req *rpc.CriuReq, hook Hook) (*rpc.CriuResp, error) {
	b, err := req.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	if _, err := w.line.Write(b); err != nil && !errors.Is(err, unix.EPIPE) { // its reason is in what it said
		return nil, fmt.Errorf("send the request: %w", err)
	}
	var refused error
	for {
		resp, file, err := w.read()
		if err != nil {
			return nil, errors.Join(refused, err)
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			if refused != nil {
				return resp, refused
			}
			return resp, nil
		}
		e := Event{Name: resp.GetNotify().GetScript(), Pid: int(resp.GetNotify().GetPid()), File: file}
		if e.Pid > 0 {
			w.root.Store(int64(e.Pid))
		}
		ended := ctx.Err()
		switch {
		case refused == nil && hook != nil && (ended == nil || e.Name == SetupNamespaces): // who is to reap that process has to know it
			refused = hook(e)
		case file != nil:
			file.Close()
		}
		if refused == nil {
			refused = ended
		}
		ok := refused == nil
		kind := rpc.CriuReqType_NOTIFY
		b, err := (&rpc.CriuReq{Type: &kind, NotifySuccess: &ok}).MarshalVT()
		if err != nil {
			return nil, fmt.Errorf("encode the answer: %w", err)
		}
		if _, err := w.line.Write(b); err != nil {
			return nil, errors.Join(refused, fmt.Errorf("answer %s: %w", e.Name, err))
		}
	}
}

// errEnded says that criu closed the line without an answer.
var errEnded = errors.New("criu ended without an answer")

// read reads one message, and the descriptor that may come with it.
func (w *worker) read() (*rpc.CriuResp, *os.File, error) {
	b, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*8))
	n, controls, flags, _, err := w.line.ReadMsgUnix(b, control)
	if n == 0 && (err == nil || errors.Is(err, unix.ECONNRESET) || err.Error() == "EOF") {
		return nil, nil, errEnded
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read from criu: %w", err)
	}
	var file *os.File
	if messages, err := unix.ParseSocketControlMessage(control[:controls]); err == nil {
		for i := range messages {
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				continue
			}
			for j, fd := range fds {
				unix.CloseOnExec(fd)
				if j == 0 && file == nil {
					file = os.NewFile(uintptr(fd), "from criu")
				} else {
					unix.Close(fd)
				}
			}
		}
	}
	resp := &rpc.CriuResp{}
	if flags&unix.MSG_TRUNC != 0 {
		err = errors.New("a message from criu is too long")
	} else if err = resp.UnmarshalVT(b[:n]); err != nil {
		err = fmt.Errorf("a message from criu: %w", err)
	}
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return resp, file, err
}
