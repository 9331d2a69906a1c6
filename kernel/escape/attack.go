package escape

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Target is what an attack is told of the world outside: as much as an attacker
// could find out or guess.
type Target struct {
	Only    []string // the attacks to make; all of the table's where empty
	Marker  string   // a file outside the machine
	Text    string   // what is in it
	Handle  []byte   // its file handle, on the file system that Shared is on
	Type    int32    // of the handle
	Shared  string   // a file beside it that the machine has been given
	Secret  string   // a word in the environment of msh's caller
	Key     string   // the name of a key in its session keyring
	UserKey string   // of one in its user's
	Null    uint64   // device and inode of the host's /dev/null
	NullIno uint64
	Disk    uint64 // a block device of the host's
	Socket  string // an abstract socket that somebody outside listens on
	Victim  int    // the number of a process outside, for machines that share its PID space
	Host    string // the name of the host
	Self    string // the program of the msh outside
	Nofile  uint64 // the machine's limits
	Pids    int
}

// Outcome is how an attack has ended.
type Outcome string

// The outcomes.
const (
	Held    Outcome = "held"
	Escaped Outcome = "ESCAPED"
	Absent  Outcome = "absent"
)

// Attack is one of them.
type Attack struct {
	Name  string
	About string // what it does, and where it was seen
	// From is the lowest level at which it must be held, with the host's ids and with
	// ids of the machine's own.
	From    [2]int
	Why     string // why lower levels permit it
	Control string // where its control runs: "" outside as it is, "chroot", "userns"
	Rare    bool   // it wants what a host may lack, as CAP_SYS_RESOURCE in a container
	Apart   bool   // it is made by a process of its own, which it may leave in any state
	do      func(*Target) error
}

// What an attack returns: nil when it has succeeded, absent(…) where there is
// nothing to attack, any other error when it was held.
type absentError struct{ why string }

func (e absentError) Error() string { return e.why }

func absent(format string, args ...any) error { return absentError{fmt.Sprintf(format, args...)} }

func outcome(err error) (Outcome, string) {
	var a absentError
	switch {
	case err == nil:
		return Escaped, ""
	case errors.As(err, &a):
		return Absent, a.why
	}
	return Held, err.Error()
}

// reached tells a system call that came past the question of who asks. The kernel
// answers EPERM or EACCES to that, a filter may also say ENOSYS.
func reached(errno error) error {
	switch errno {
	case unix.EPERM, unix.EACCES, unix.EROFS:
		return errno
	case unix.ENOSYS:
		return absent("no such system call")
	}
	return nil
}

// prefix begins the lines that attacks report with, among whatever else is on the stream.
const prefix = "escape:"

// Main is the attacker, when args[0] is "attack": the target, as JSON, follows. It
// makes the attacks one after another and reports them on out.
func Main(args []string, out io.Writer) int {
	var t Target
	if err := json.Unmarshal([]byte(args[1]), &t); err != nil {
		fmt.Fprintln(out, "attack:", err)
		return 2
	}
	if args[0] == "attack-one" {
		attackNamed(&t).make(&t, out)
		return 0
	}
	for _, a := range attacksOn(&t) {
		switch {
		case len(t.Only) > 0 && !contains(t.Only, a.Name):
		case a.Apart:
			apart(t, a.Name, out)
		default:
			a.make(&t, out)
		}
	}
	fmt.Fprintln(out, prefix+"\tend")
	return 0
}

// Arguments are those of a process that makes the attacks.
func (t *Target) Arguments() []string {
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // plain data
	}
	return []string{"attack", string(b)}
}

func report(out io.Writer, name string, o Outcome, detail string) {
	fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", prefix, name, o, strings.ReplaceAll(detail, "\n", " "))
}

// make makes the attack, on a thread that nobody uses afterwards: it may have other
// namespaces by then.
func (a Attack) make(t *Target, out io.Writer) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(done)
		o, detail := outcome(a.do(t))
		report(out, a.Name, o, detail)
	}()
	<-done
}

// apart makes an attack in a process of its own.
func apart(t Target, name string, out io.Writer) {
	t.Only = []string{name}
	cmd := exec.Command("/proc/self/exe", "attack-one", t.Arguments()[1])
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		report(out, name, "broken", err.Error())
		return
	}
	late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	late.Stop()
	for line := range strings.Lines(said.String()) {
		if strings.HasPrefix(line, prefix+"\t"+name+"\t") {
			io.WriteString(out, line)
			return
		}
	}
	if strings.Contains(said.String(), "SIGSYS") || err != nil && strings.Contains(err.Error(), "bad system call") {
		report(out, name, Held, "killed by its filter")
		return
	}
	report(out, name, "broken", fmt.Sprintf("%v: %.300s", err, said.String()))
}

// Results reads what an attacker has reported. whole is false where it did not come to its end.
func Results(text string) (results map[string]Result, whole bool) {
	results = map[string]Result{}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), "\t")
		switch {
		case f[0] != prefix:
		case len(f) == 2 && f[1] == "end":
			whole = true
		case len(f) == 4:
			results[f[1]] = Result{Outcome(f[2]), f[3]}
		}
	}
	return results, whole
}

// Result is the outcome of an attack, and what it met.
type Result struct {
	Outcome Outcome
	Detail  string
}

func attackNamed(t *Target) *Attack {
	for _, a := range attacksOn(t) {
		if a.Name == t.Only[0] {
			return &a
		}
	}
	panic("no attack " + t.Only[0])
}

// attacksOn are those of a machine that is on its own, or of one with neighbours.
func attacksOn(t *Target) []Attack {
	switch {
	case t.Victim != 0:
		return Neighbours()
	case t.Self != "":
		return Joiners()
	}
	return Attacks()
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// readMarker is nil when the file outside can be read by that path.
func readMarker(t *Target, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if string(b) != t.Text {
		return fmt.Errorf("%s is another file", path)
	}
	return nil
}

// openable is nil when a file can be opened for writing, which is all that is done.
func openable(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err == unix.ENOENT {
		return absent("no %s", path)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	unix.Close(fd)
	return nil
}

// anyOf makes the attempts until one succeeds. Where all are absent, so is it.
func anyOf(attempts ...func() error) error {
	var held, last error
	for _, f := range attempts {
		err := f()
		if err == nil {
			return nil
		}
		last = err
		if !errors.As(err, new(absentError)) {
			held = err
		}
	}
	if held != nil {
		return held
	}
	return last
}
