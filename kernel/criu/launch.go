package criu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Place is where a criu is started.
type Place struct {
	// Mounts gives criu a mount table of its own, a private copy of the caller's,
	// in which it starts faster and can have mounts that nobody else sees. It is not
	// for the dump of a tree that shares the caller's table.
	// Setup, if not nil, is called on a thread that stands in it (or else in the
	// caller's own), whose child criu will be. The thread dies with the call.
	Mounts bool
	Setup  func() error
	// Net is the network namespace for criu to stand in, nil for the caller's. The network
	// that it stands in itself criu neither saves nor makes: a tree that has it too is
	// restored in the one that criu stands in then. So nothing is made of a namespace
	// beside the tree's, which takes a third of the dump of a small tree. NewNet has it
	// stand in a new one that is empty. Both want Mounts.
	Net    *os.File
	NewNet bool
	// Group is the directory of a cgroup v2 group for criu, and so for what it
	// restores, to be born in; nil for the caller's. Joins are the tasks files of
	// v1 groups. A process that joins by itself, or is born there, does not wait
	// for a grace period of RCU, as one does that is moved (11 ms).
	Group *os.File
	Joins []string
}

// worker is a running `criu swrk`.
type worker struct {
	cmd    *exec.Cmd
	line   *net.UnixConn
	said   bytes.Buffer // on stderr, before it has a log
	rundir *os.File     // a private /run, nil where criu has the host's
	facts  []byte       // what is known of the kernel before it starts, nil for nothing
	root   atomic.Int64 // the root process of what it restores, once that is there
}

// firstFile is the number of the first of exec.Cmd's extra files in the child:
// the line to criu, and after it what it inherits.
const firstFile = 3

// launch starts a worker that has inherited files, which it finds at the numbers
// from firstFile+1 on.
func (c *Criu) launch(place Place, files []*os.File) (*worker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "line"), os.NewFile(uintptr(pair[1]), "criu's line")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	w := &worker{line: conn.(*net.UnixConn), facts: c.recall()}
	w.cmd = exec.Command(c.Path, "--no-default-config", "swrk", fmt.Sprint(firstFile))
	w.cmd.Env = environment()
	w.cmd.Stderr = &w.said
	w.cmd.WaitDelay = time.Second // what else may hold its stderr is not waited for
	w.cmd.Dir = "/"
	w.cmd.ExtraFiles = append([]*os.File{theirs}, files...)
	// A session of its own: it must not get the signals of the caller's terminal.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if place.Group != nil {
		w.cmd.SysProcAttr.UseCgroupFD, w.cmd.SysProcAttr.CgroupFD = true, int(place.Group.Fd())
	}
	if place.Mounts || place.Setup != nil || len(place.Joins) > 0 {
		err = onThread(func() error { return c.startAt(place, w) })
	} else {
		err = w.cmd.Start()
	}
	if err != nil {
		w.line.Close()
		if w.rundir != nil {
			w.rundir.Close()
		}
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	return w, nil
}

// Worker is a criu that was started ahead of what it is to do, as it takes a while.
type Worker struct {
	mu     sync.Mutex
	worker *worker
}

// Start starts one.
func (c *Criu) Start(ctx context.Context, place Place) (*Worker, error) {
	w, err := c.start(ctx, place, nil)
	return &Worker{worker: w}, err
}

// start launches a worker where the kernel is known as far as that is wanted.
func (c *Criu) start(ctx context.Context, place Place, files []*os.File) (*worker, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if place.Net != nil || place.NewNet {
		if err := c.know(ctx); err != nil {
			return nil, err
		}
	}
	return c.launch(place, files)
}

// take gives it away; nil where there is none any more.
func (w *Worker) take() *worker {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.worker = nil }()
	return w.worker
}

// Close ends one that was not used.
func (w *Worker) Close() {
	if w := w.take(); w != nil {
		w.end()
	}
}

// startAt starts the worker from the calling thread, which will die.
func (c *Criu) startAt(place Place, w *worker) error {
	if place.Mounts {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare the mount table: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make its mounts private: %w", err)
		}
		if err := c.ownRun(w); err != nil {
			return err
		}
	} else if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the root directory: %w", err)
	}
	if err := place.enterNet(); err != nil {
		return err
	}
	if place.Setup != nil {
		if err := place.Setup(); err != nil {
			return err
		}
	}
	for _, file := range place.Joins {
		if err := os.WriteFile(file, []byte("0"), 0); err != nil { // this thread alone
			return fmt.Errorf("join a control group: %w", err)
		}
	}
	return w.cmd.Start()
}

// enterNet has the calling thread stand in criu's network.
func (p Place) enterNet() error {
	if p.Net != nil {
		if err := unix.Setns(int(p.Net.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter criu's network: %w", err)
		}
	}
	if !p.NewNet {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare the network: %w", err)
	}
	// To find out what the kernel can do, criu connects to itself.
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("take lo up: %w", err)
	}
	return nil
}

// factsFile is where criu keeps what it has found out about the kernel, in /run.
const factsFile = "criu.kdat"

// facts is that file, by the path of the criu that wrote it; criu itself knows
// those of another build.
var facts sync.Map

// recall is what was found out before, by this process or an earlier one. It is read
// before criu has a /run of its own, which may hide the file.
func (c *Criu) recall() []byte {
	if known, ok := facts.Load(c.Path); ok {
		return known.([]byte)
	}
	if c.Keep == "" {
		return nil
	}
	b, err := os.ReadFile(c.Keep)
	boot, known, ok := bytes.Cut(b, []byte("\n"))
	if err != nil || !ok || len(known) == 0 || string(boot) != c.Boot {
		return nil
	}
	facts.Store(c.Path, known)
	return known
}

// know has criu find out about the kernel in the caller's own network, before one does
// in another: it looks for packet filters, and those of iptables(8) are made by that.
func (c *Criu) know(ctx context.Context) error {
	knowing.Lock()
	defer knowing.Unlock()
	var fs unix.Statfs_t
	if err := unix.Statfs("/run", &fs); err == nil && fs.Type == unix.TMPFS_MAGIC {
		if _, err := os.Stat("/run/" + factsFile); err == nil {
			return nil
		}
	} else if c.recall() != nil {
		return nil
	}
	_, err := c.Features(ctx)
	return err
}

// knowing is held while one finds out, so that the others need not.
var knowing sync.Mutex

// ownRun gives criu a /run that is a tmpfs, with what was found out before: it
// keeps that on a tmpfs only, and takes 35 ms to find it out again. Where the
// host's /run is one, criu does so by itself.
func (c *Criu) ownRun(w *worker) error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/run", &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		return nil
	}
	if err := unix.Mount("criu", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs for criu on /run: %w", err)
	}
	if w.facts != nil {
		if err := os.WriteFile("/run/"+factsFile, w.facts, 0o600); err != nil {
			return err
		}
	}
	var err error
	w.rundir, err = os.Open("/run") // outlives the table, which goes with criu
	return err
}

// learn takes over what criu has found out. It is only a matter of speed.
func (c *Criu) learn(w *worker) {
	if w.rundir == nil {
		return
	}
	fd, err := unix.Openat(int(w.rundir.Fd()), factsFile, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), factsFile)
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil || len(b) == 0 || bytes.Equal(b, w.facts) {
		return
	}
	facts.Store(c.Path, b)
	if c.Keep != "" && os.WriteFile(c.Keep+".new", append([]byte(c.Boot+"\n"), b...), 0o600) == nil {
		os.Rename(c.Keep+".new", c.Keep)
	}
}

// end waits for a worker whose line is closed, and tells what it said before it
// had a log.
func (w *worker) end() string {
	w.line.Close()
	w.cmd.Wait() // its code says no more than its answer did
	if w.rundir != nil {
		w.rundir.Close()
	}
	return strings.TrimSpace(w.said.String())
}

// grace is how long a restore may take to come to its next event after the end of
// its context.
const grace = 10 * time.Second

// killAfter kills a restore, and what there is of its tree, that does not end by
// itself some time after ctx has ended, until the returned function is called. A
// dump is never killed.
func (w *worker) killAfter(ctx context.Context) (stop func()) {
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(grace):
			w.cmd.Process.Kill()
			if pid := w.root.Load(); pid > 1 {
				unix.Kill(int(pid), unix.SIGKILL) // frozen yet: the number is its own
			}
		}
	})
	return func() {
		cancel()
		close(ended)
	}
}

// onThread calls f on a thread of its own that is left to die. The process's first
// thread cannot die.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.New("the call has not returned") // runtime.Goexit, which a test's Fatal is
		defer func() { done <- err }()
		if unix.Gettid() == unix.Getpid() {
			err = onThread(f) // on another one, as this is held
			runtime.UnlockOSThread()
			return
		}
		err = f()
	}()
	return <-done
}
