package kernel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
	"msh/kernel/seccomp"
	"msh/kernel/stage0"
)

// unameFD is the line to who answers.
const unameFD stage0.FD = "uname"

// unameFiles are the files below /proc that tell what uname(2) tells, each with what
// it is to have. Host and domain name are files of the namespace already.
var unameFiles = []struct {
	path string
	text func(u *Uname) string
}{
	{"/proc/sys/kernel/ostype", func(u *Uname) string { return u.Sysname + "\n" }},
	{"/proc/sys/kernel/osrelease", func(u *Uname) string { return u.Release + "\n" }},
	{"/proc/sys/kernel/version", func(u *Uname) string { return u.Version + "\n" }},
	{"/proc/sys/kernel/arch", func(u *Uname) string { return u.Machine + "\n" }}, // since Linux 6.1
	{"/proc/version", func(u *Uname) string {
		return fmt.Sprintf("%s version %s %s%s\n", u.Sysname, u.Release, builder(), u.Version)
	}},
	{"/proc/version_signature", func(u *Uname) string { return u.Release + "\n" }}, // Ubuntu's
}

// builder is who has built the kernel, and with what, as /proc/version has it between
// the release and the version. It is the same kernel whatever it is called.
var builder = sync.OnceValue(func() string {
	real, err := kernelNames()
	b, err2 := rawfile.Read("/proc/version")
	if err != nil || err2 != nil {
		return ""
	}
	text := strings.TrimPrefix(strings.TrimSpace(string(b)), real.Sysname+" version "+real.Release+" ")
	if before, ok := strings.CutSuffix(text, real.Version); ok {
		return before
	}
	return ""
})

// kernelNames is the kernel's own answer.
func kernelNames() (*Uname, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	s := unix.ByteSliceToString
	return &Uname{Sysname: s(u.Sysname[:]), Release: s(u.Release[:]), Version: s(u.Version[:]), Machine: s(u.Machine[:])}, nil
}

// unameFilesHere are those of the files that this kernel has.
var unameFilesHere = sync.OnceValue(func() []int {
	var here []int
	for i, f := range unameFiles {
		if _, err := os.Lstat(f.path); err == nil {
			here = append(here, i)
		}
	}
	return here
})

func unameFileName(i int) string {
	return "uname." + strings.ReplaceAll(strings.TrimPrefix(unameFiles[i].path, "/proc/"), "/", ".")
}

func unameTree(i int) stage0.FD { return stage0.FD("tree:" + unameFiles[i].path) }

// showsUname tells whether the files are to be covered: where the answer begins, and
// where a machine below that has another /proc than its parent.
func (p *Plan) showsUname() bool {
	own, _ := p.Spec.find("uname").(*Uname)
	return p.Uname != nil && (own.answers() || p.Flags&unix.CLONE_NEWPID != 0 || p.Spec.Has("root"))
}

// writeUnameFiles writes the files into a machine's directory, where they are mounted
// from: what is there is changed in place.
func writeUnameFiles(dir string, names *Uname) error {
	real, err := kernelNames()
	if err != nil {
		return err
	}
	all := real.over(names)
	for _, i := range unameFilesHere() {
		if err := os.WriteFile(filepath.Join(dir, unameFileName(i)), []byte(unameFiles[i].text(all)), 0o444); err != nil {
			return fmt.Errorf("uname: %w", err)
		}
	}
	return nil
}

// answerUname has the machine's processes answered, and opens the files as mounts.
func (t *Txn) answerUname() error {
	p := t.plan
	if p.Uname == nil {
		return nil
	}
	if p.showsUname() {
		if err := t.step("write what /proc is to tell"); err != nil {
			return err
		}
		if err := writeUnameFiles(t.dir, p.Uname); err != nil {
			return err
		}
		t.shown = map[stage0.FD]int{}
		for _, i := range unameFilesHere() {
			fd, err := t.own(readOnlyTree(filepath.Join(t.dir, unameFileName(i))))
			if err != nil {
				return err
			}
			t.shown[unameTree(i)] = fd
		}
	}
	if err := t.step("answer uname"); err != nil {
		return err
	}
	var err error
	if !p.Spec.Keep {
		t.answers, err = newAnswerer(t.dir, p.Uname)
	} else {
		err = t.host.superviseUname(t.ctx, t.owner(), p.Uname, func(w watchman) error { return t.ledger.Write("supervisor", w) })
	}
	if err != nil {
		return err
	}
	t.uname, err = t.own(callAnswerer(t.dir))
	return err
}

// readOnlyTree opens a file of the host's as a mount of its own that nobody writes to.
func readOnlyTree(path string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open %s as a mount: %w", path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make %s read-only: %w", path, err)
	}
	return fd, nil
}

// showUname covers the files, found as what is masked is found (Steps.mask).
func (s *Steps) showUname() {
	proc := s.proc
	if proc == nil {
		proc = s.place("/proc")
	}
	for _, i := range unameFilesHere() {
		path := unameFiles[i].path
		s.below(path, proc, nil).cover("have it tell what uname does", unameTree(i))
	}
}

// askUname has the uname calls of the process, and of what it starts, answered. The
// control message with the listener is what seccomp(2) does not look at of the step
// that makes it, and behind that its result: a struct cmsghdr and a descriptor. It
// comes before rlimits, which may leave no descriptor, and before a change of user.
func (s *Steps) askUname() error {
	code, err := unameFilter()
	if err != nil {
		return err
	}
	const header, fdSize = unix.SizeofCmsghdr, 4
	listener := s.Call("have uname calls wait for an answer", 0, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		program(code), 0, header+fdSize, uint64(unix.SOL_SOCKET)|uint64(unix.SCM_RIGHTS)<<32)
	line := stage0.Words{[]byte{takeListener}, 1}                                               // struct iovec
	message := stage0.Words{0, 0, line, 1, stage0.Tail{Step: listener, From: 4}, header + 8, 0} // struct msghdr
	s.Call("hand them over to who answers", 0, unix.SYS_SENDMSG, unameFD, message, unix.MSG_NOSIGNAL)
	s.Call("close the listener", 0, unix.SYS_CLOSE, listener)
	return nil
}

// askUnameHere does so to the calling thread, and what it starts: criu, whose filters all
// have that it restores. The thread is not used again.
func askUnameHere(line int) error {
	code, err := unameFilter()
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(code) / seccomp.InstructionSize), Filter: (*unix.SockFilter)(unsafe.Pointer(&code[0]))}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("have uname calls wait for an answer: %w", errno)
	}
	defer unix.Close(int(listener))
	if err := unix.Sendmsg(line, []byte{takeListener}, unix.UnixRights(int(listener)), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("hand them over to who answers: %w", err)
	}
	return nil
}

// unameLine connects to who answers for the machine. For one that is kept another is
// started where the last has died.
func (m *Machine) unameLine(ctx context.Context) (int, error) {
	line, err := callAnswerer(m.Dir())
	if err == nil || !nobodyAnswers(err) {
		return line, err
	}
	if !m.Spec().Keep {
		return -1, fmt.Errorf("enter %s: nobody answers uname for it: the msh that made it is gone: %w", m.Name(), err)
	}
	lock, err := os.OpenFile(filepath.Join(m.Dir(), "uname.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return -1, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return -1, err
	}
	if line, err = callAnswerer(m.Dir()); err == nil { // another was faster
		return line, nil
	}
	if err := m.host.superviseUname(ctx, m.ID(), m.unameAnswers(), func(w watchman) error { return m.write("supervisor", w) }); err != nil {
		return -1, err
	}
	return callAnswerer(m.Dir())
}

// unameAnswers is what is given; nil where the kernel answers itself.
func (m *Machine) unameAnswers() *Uname {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.self.Uname
}

// setAnswers changes the answers while the machine runs.
func (m *Machine) setAnswers(u *Uname) error {
	had := m.unameAnswers()
	own, _ := m.Spec().find("uname").(*Uname)
	if had == nil || !own.answers() {
		return &ParamError{Kind: "uname", Got: "sysname, release, version or machine", Want: "a machine that was made with one of them: those that run in it ask the kernel itself", Mend: "name one of them in machine_rfork"}
	}
	if err := m.answer(had.over(u.answered())); err != nil {
		return err
	}
	return m.passAnswersOn()
}

// answer has the machine's processes answered with these names from now on.
func (m *Machine) answer(names *Uname) error {
	line, err := m.unameLine(context.Background())
	if err != nil {
		return err
	}
	defer unix.Close(line)
	text, err := json.Marshal(names)
	if err != nil {
		return err
	}
	if _, err := unix.Write(line, append([]byte{takeNames}, text...)); err != nil {
		return fmt.Errorf("tell who answers uname: %w", err)
	}
	var done [1]byte
	if n, err := unix.Read(line, done[:]); err != nil || n != 1 {
		return fmt.Errorf("tell who answers uname: no word from it: %v", err)
	}
	if err := writeUnameFiles(m.Dir(), names); err != nil {
		return err
	}
	m.mu.Lock()
	m.self.Uname = names
	m.mu.Unlock()
	return nil
}

// passAnswersOn has the machines in m answer what m does now, but for what they name
// themselves: what they do not name they share.
func (m *Machine) passAnswersOn() error {
	var errs []error
	if m.lab == nil { // a handle by name, of which no script has machines
		return nil
	}
	for _, c := range m.lab.Machines() {
		if c.parent != m || c.alive() != nil {
			continue
		}
		own, _ := c.Spec().find("uname").(*Uname)
		err := c.answer(m.unameAnswers().over(own.answered()))
		if err == nil {
			c.mu.Lock()
			err = c.save()
			c.mu.Unlock()
		}
		errs = append(errs, err, c.passAnswersOn())
	}
	return errors.Join(errs...)
}

// superviseUname starts a supervisor that answers for a machine. It writes it down
// before it tells it to begin; one that is told nothing ends.
func (h *Host) superviseUname(ctx context.Context, id string, names *Uname, record func(watchman) error) error {
	raw, err := json.Marshal(order{Uname: names})
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"msh", "supervise", id}
	cmd.Env = []string{"MSH_STATE=" + h.State, "PATH=" + DefaultPath}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		in.Close()
		return err
	}
	if err := cmd.Start(); err != nil {
		in.Close()
		return fmt.Errorf("start who answers uname: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	fail := func(err error) error {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		if e := ctx.Err(); e != nil {
			return e
		}
		return err
	}
	if err := record(watchman{cmd.Process.Pid, startTime(cmd.Process.Pid)}); err != nil {
		return fail(err)
	}
	if _, err := in.Write(raw); err != nil {
		return fail(fmt.Errorf("start who answers uname: %w", err))
	}
	in.Close()
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "ok\n" {
		if line == "" {
			line = "it ended at once"
		}
		return fail(fmt.Errorf("start who answers uname: %s", strings.TrimSpace(line)))
	}
	out.Close()
	go cmd.Wait() // reap it, if it ends before this msh does
	return nil
}

// answerForEver is that supervisor's life; the ledger ends it.
func (h *Host) answerForEver(id string, names *Uname, out io.Writer) error {
	lab, name, ok := strings.Cut(id, "/")
	if !ok || CheckName("supervise", "lab", lab) != nil || CheckName("supervise", "machine", name) != nil {
		return bad("supervise", "", id, "LAB/MACHINE")
	}
	a, err := newAnswerer(filepath.Join(h.State, lab, name), names)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ok")
	if c, ok := out.(io.Closer); ok {
		c.Close() // whoever waits for the end of the script's output must not wait for this
	}
	<-a.ended
	return nil
}
