package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/checkpoint-restore/go-criu/v8/stats"
	"golang.org/x/sys/unix"
)

// A Net is a network namespace that criu leaves alone: the tree is taken out of
// it, or put into it, and what is in it is somebody else's business.
type Net struct {
	Label string   // what the images call it
	NS    *os.File // the namespace: on a dump the tree's, on a restore the one to use
}

// A Mount is a place in the tree's mount table that is somebody else's: it is not
// saved, and on a restore bound from another path.
type Mount struct {
	Label string // what the images call it
	Path  string // dump: the place in the tree; restore: what is bound there, seen by criu
}

// TCP is what becomes of connections that are established.
type TCP int

const (
	TCPKeep  TCP = iota // saved, and restored as they were
	TCPClose            // restored as if the other side had closed them
)

// Leave is the state of the tree after a dump.
type Leave int

const (
	LeaveDead Leave = iota
	LeaveRunning
	LeaveStopped // by SIGSTOP's state, for SIGCONT or SIGKILL to end
)

// PageServer is where a dump sends pages in place of files: see ServePages.
type PageServer struct {
	Address string // "127.0.0.1"
	Port    int
	Line    *os.File // a connected socket; then the two above are not used
}

// Dump saves a tree of processes.
type Dump struct {
	Pid    int      // of the tree's root, seen from the caller
	Images *os.File // the directory to write to
	Nets   []Net
	// NewNet leaves the root's network alone as Nets does, but names none to use
	// in its place: the restore makes an empty one, for the hook to fill at
	// SetupNamespaces. A tree with a user namespace wants it so, for its network has to
	// be owned by that; for others Place.Net is faster. Restore.NewNet must be as this was.
	NewNet bool
	Mounts []Mount
	Files  []string // keys of files outside (FilesOutside): not saved
	TCP    TCP
	Leave  Leave
	// Parent is the directory of an earlier dump or pre-dump, relative to Images:
	// pages that have not changed since are not written again. Track starts
	// watching for changes; it needs Features.Track.
	Parent string
	Track  bool
	Dedup  bool // punch out of Parent what is written anew
	Pages  *PageServer
	// Group is the directory of a freezer (cgroup v1) or of a cgroup v2 group that
	// holds exactly the tree; with it a tree that is frozen already can be dumped.
	Group string
	// Ghosts is the size up to which files that have no name any more, but are
	// open, are saved; 0 stands for DefaultGhosts. They may have holes.
	Ghosts uint32
	// Stop is how long it may take until all processes are stopped, in whole seconds;
	// 0 is criu's own 10 s.
	Stop time.Duration
	Hook Hook
	// Over, if not nil, is called where criu has let go of the tree: Dump returns when
	// it has ended, too, some milliseconds later.
	Over  func()
	Place Place
	// Worker, if not nil, is one that has been started ahead, at that place. It is for
	// one dump, and not for one that has Pages.
	Worker *Worker
}

// DefaultGhosts is 256 MiB, as the memory of a database may be one (criu's own
// value is 1 MiB).
const DefaultGhosts = 256 << 20

// Restore makes a tree anew from images.
type Restore struct {
	Images *os.File
	// Ready, if not nil, is called when criu has been started and waits to be asked:
	// Images need not be there before.
	Ready  func() error
	Work   *os.File // a directory for the log, and for nothing else; nil stands for Images
	Nets   []Net
	NewNet bool
	Mounts []Mount
	// Root is a mount point, seen by criu, that becomes the root directory.
	Root    string
	TCP     TCP
	Stopped bool
	// Inherit are the files to use in place of those that were outside, by the key
	// they had there (Dump.Files).
	Inherit map[string]*os.File
	// Sibling makes the root process the caller's child, to be reaped by it.
	Sibling bool
	Hook    Hook
	Place   Place
}

// Stats tell how a dump went.
type Stats struct {
	Frozen       time.Duration // how long the tree stood still, for criu
	Freezing     time.Duration
	MemDump      time.Duration
	MemWrite     time.Duration
	PagesScanned uint64
	PagesSkipped uint64 // as the parent has them
	PagesWritten uint64
}

// logLevel is criu's "info": the lines that tell which process it is at.
const logLevel = 3

// options are those that all requests have.
func options(images, work *os.File, log string) *rpc.CriuOpts {
	o := &rpc.CriuOpts{
		ImagesDirFd: ref(int32(images.Fd())),
		LogLevel:    ref(int32(logLevel)),
		LogFile:     ref(log),
		// The caller makes groups and limits itself, so that a tree can go from
		// cgroup v1 to v2.
		ManageCgroups:     ref(true),
		ManageCgroupsMode: rpc.CriuCgMode_IGNORE.Enum(),
		NetworkLock:       rpc.CriuNetworkLockMethod_SKIP.Enum(),
		NotifyScripts:     ref(true),
		FileLocks:         ref(true),
	}
	if work != nil {
		o.WorkDirFd = ref(int32(work.Fd()))
	}
	return o
}

func ref[T any](v T) *T { return &v }

// Dump saves the tree. After an error the tree runs as before; the error of what
// cannot be saved is an *Error.
func (c *Criu) Dump(ctx context.Context, d *Dump) (*Stats, error) {
	return c.dump(ctx, d, rpc.CriuReqType_DUMP, "dump.log")
}

// PreDump saves the memory of a running tree, as the Parent of a later dump.
func (c *Criu) PreDump(ctx context.Context, d *Dump) (*Stats, error) {
	// Of the two kinds of pre-dump requests this is the one that ends the worker.
	return c.dump(ctx, d, rpc.CriuReqType_SINGLE_PRE_DUMP, "pre-dump.log")
}

func (c *Criu) dump(ctx context.Context, d *Dump, kind rpc.CriuReqType, log string) (*Stats, error) {
	o := options(d.Images, nil, log)
	o.Pid = ref(int32(d.Pid))
	o.TcpEstablished = ref(true)
	o.LinkRemap = ref(false)
	if d.Stop != 0 {
		o.Timeout = ref(uint32(d.Stop / time.Second))
	}
	o.GhostLimit = ref(uint32(DefaultGhosts))
	if d.Ghosts != 0 {
		o.GhostLimit = ref(d.Ghosts)
	}
	if d.TCP == TCPClose {
		o.TcpClose = ref(true)
	}
	switch d.Leave {
	case LeaveRunning:
		o.LeaveRunning = ref(true)
	case LeaveStopped:
		o.LeaveStopped = ref(true)
	}
	if d.NewNet {
		o.EmptyNs = ref(uint32(unix.CLONE_NEWNET))
	}
	for _, n := range d.Nets {
		var st unix.Stat_t
		if err := unix.Fstat(int(n.NS.Fd()), &st); err != nil {
			return nil, fmt.Errorf("network %s: %w", n.Label, err)
		}
		o.External = append(o.External, fmt.Sprintf("net[%d]:%s", st.Ino, n.Label))
	}
	for _, m := range d.Mounts {
		o.External = append(o.External, fmt.Sprintf("mnt[%s]:%s", m.Path, m.Label))
	}
	o.External = append(o.External, d.Files...)
	if d.Parent != "" {
		o.ParentImg = ref(d.Parent)
	}
	if d.Track {
		o.TrackMem = ref(true)
	}
	if d.Dedup {
		o.AutoDedup = ref(true)
	}
	if d.Group != "" {
		o.FreezeCgroup = ref(d.Group)
	}
	var files []*os.File
	if p := d.Pages; p != nil {
		o.Ps = &rpc.CriuPageServerInfo{Address: ref(p.Address), Port: ref(int32(p.Port))}
		if p.Line != nil {
			files = append(files, p.Line)
			o.Ps = &rpc.CriuPageServerInfo{Fd: ref(int32(firstFile + 1))}
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := d.Worker.take()
	if w == nil {
		var err error
		if w, err = c.start(ctx, d.Place, files); err != nil {
			return nil, err
		}
	}
	_, err := c.ask(ctx, w, &rpc.CriuReq{Type: &kind, Opts: o}, d.Images, d.Hook, d.Over)
	var e *Error
	if errors.As(err, &e) {
		e.look(d)
	}
	if err != nil {
		return nil, err
	}
	at, err := os.Open(reach(d.Images))
	if err != nil {
		return nil, err
	}
	defer at.Close()
	s, err := stats.CriuGetDumpStats(at)
	if err != nil {
		return nil, fmt.Errorf("read criu's figures: %w", err)
	}
	return dumpStats(s), nil
}

func dumpStats(s *stats.DumpStatsEntry) *Stats {
	us := func(n uint32) time.Duration { return time.Duration(n) * time.Microsecond }
	return &Stats{
		Frozen: us(s.GetFrozenTime()), Freezing: us(s.GetFreezingTime()), MemDump: us(s.GetMemdumpTime()), MemWrite: us(s.GetMemwriteTime()),
		PagesScanned: s.GetPagesScanned() + s.GetShpagesScanned(),
		PagesSkipped: s.GetPagesSkippedParent() + s.GetShpagesSkippedParent(),
		PagesWritten: s.GetPagesWritten() + s.GetShpagesWritten(),
	}
}

// reach is a path to an open directory, whatever has become of its name.
func reach(dir *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", dir.Fd()) }

// Restore makes the tree and returns its root's number, seen from the caller.
// After an error nothing of it is left.
func (c *Criu) Restore(ctx context.Context, r *Restore) (int, error) {
	var files []*os.File
	var inherited []*rpc.InheritFd
	inherit := func(key string, f *os.File) {
		files = append(files, f)
		inherited = append(inherited, &rpc.InheritFd{Key: ref(key), Fd: ref(int32(firstFile + len(files)))})
	}
	for _, n := range r.Nets {
		inherit(n.Label, n.NS)
	}
	for key, f := range r.Inherit {
		inherit(key, f)
	}
	w, err := c.start(ctx, r.Place, files)
	if err != nil {
		return 0, err
	}
	if r.Ready != nil {
		if err := r.Ready(); err != nil {
			w.end()
			return 0, err
		}
	}
	o := options(r.Images, r.Work, "restore.log")
	o.TcpEstablished = ref(true)
	o.RstSibling = ref(r.Sibling)
	o.OrphanPtsMaster = ref(false)
	o.InheritFd = inherited
	if r.TCP == TCPClose {
		o.TcpClose = ref(true)
	}
	if r.Root != "" {
		o.Root = ref(r.Root)
	}
	if r.Stopped {
		o.LeaveStopped = ref(true)
	}
	if r.NewNet {
		o.EmptyNs = ref(uint32(unix.CLONE_NEWNET))
	}
	for _, m := range r.Mounts {
		o.External = append(o.External, fmt.Sprintf("mnt[%s]:%s", m.Label, m.Path))
	}
	work := r.Work
	if work == nil {
		work = r.Images
	}
	defer w.killAfter(ctx)()
	resp, err := c.ask(ctx, w, &rpc.CriuReq{Type: rpc.CriuReqType_RESTORE.Enum(), Opts: o}, work, r.Hook, nil)
	if err != nil {
		return 0, err
	}
	return int(resp.GetRestore().GetPid()), nil
}

// ask has a worker perform its request, whose log is in the directory logs. It calls
// over, if that is not nil, when the answer is there.
func (c *Criu) ask(ctx context.Context, w *worker, req *rpc.CriuReq, logs *os.File, hook Hook, over func()) (*rpc.CriuResp, error) {
	resp, err := w.call(ctx, req, hook)
	if err == nil && resp.GetSuccess() && over != nil {
		over()
	}
	c.learn(w)
	said := w.end()
	if err == nil && resp.GetSuccess() && resp.GetType() == req.GetType() {
		return resp, nil
	}
	if err != nil && !errors.Is(err, errEnded) {
		return nil, err // the hook's own, or the context's: what criu says of it tells nothing
	}
	return nil, explain(req, resp, logs, said)
}
