package criu

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// Error is what criu could not do.
type Error struct {
	Op     string // "dump", "pre-dump" or "restore"
	Text   string // criu's own words: the last error in its log
	Pid    int    // of the process it was at, 0 where the log does not tell
	Name   string // that process's
	Inside int    // on a restore: its number in the tree's own PID space
	What   string // what is in the way, in words; "" where Text is all there is
	Mend   string
	Busy   bool     // a moment later it may go well
	Log    []string // the last lines of the log
}

func (e *Error) Error() string {
	s := e.Op
	if e.Pid != 0 {
		s += fmt.Sprintf(": process %d (%s)", e.Pid, e.Name)
	}
	if e.Inside != 0 {
		s += fmt.Sprintf(": process %d of the tree", e.Inside)
	}
	if e.What != "" {
		s += ": " + e.What
	}
	return s + ": criu: " + e.Text
}

// Hint is the mend.
func (e *Error) Hint() string { return e.Mend }

// explain reads why a request failed.
func explain(req *rpc.CriuReq, resp *rpc.CriuResp, logs *os.File, said string) *Error {
	e := &Error{Op: strings.TrimSuffix(req.GetOpts().GetLogFile(), ".log")}
	if b, err := os.ReadFile(reach(logs) + "/" + req.GetOpts().GetLogFile()); err == nil {
		e.read(string(b))
	}
	switch {
	case e.Text != "":
	case resp.GetCrErrmsg() != "":
		e.Text = clean(resp.GetCrErrmsg())
	case said != "":
		e.Text = clean(said[strings.LastIndexByte(said, '\n')+1:])
	default:
		e.Text = "no reason given"
	}
	return e
}

// An expression is compiled when it is first used: msh, of which this package is a
// part, should not begin with two dozen of them that few runs ever need.
type expression struct {
	text string
	once sync.Once
	exp  *regexp.Regexp
}

func (e *expression) re() *regexp.Regexp {
	e.once.Do(func() { e.exp = regexp.MustCompile(e.text) })
	return e.exp
}

// A line of the log is "(00.012345)     12: Error (criu/files.c:99): fd: Can't …":
// the time, on a restore the process, and the text.
var (
	logPrefix  = expression{text: `^\(\d+\.\d+\)\s*`}
	logProcess = expression{text: `^(?:pie: )?(\d+): `}
	logError   = expression{text: `^Error \([^)]*\): `}
	logAt      = expression{text: `^Dumping task \(pid: (\d+) comm: (.*)\)`}
)

// logDied names the process in which a restore failed.
var logDied = expression{text: `^(?:Task )?(\d+) (?:exited, status=|killed by signal)`}

// echo is an error that only tells that another one went before it.
var echo = expression{text: `^((Dumping|Pre-dumping|Restoring) FAILED|(Task )?\d+ (exited|killed by)|` +
	`(Dump|Collect) .* failed with|Killing processes because|One of more action scripts|Aborting restore|cg: cgroupd: recv)`}

// read finds the error in a log. On a dump it is the last one that is no echo of
// it; on a restore the first of the process that died.
func (e *Error) read(log string) {
	// Without CAP_SYS_RESOURCE this one stands in every log, and harms nobody.
	harmless := func(text string) bool { return strings.HasPrefix(text, "rlimit:") }
	var pid int // at which the dump is
	var name string
	died := 0
	first := map[int]string{} // errors of a restore's processes
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for _, line := range lines {
		text, at := logPrefix.re().ReplaceAllString(line, ""), 0
		if m := logProcess.re().FindStringSubmatch(text); m != nil {
			at, _ = strconv.Atoi(m[1])
			text = text[len(m[0]):]
		}
		if m := logAt.re().FindStringSubmatch(text); m != nil {
			pid, _ = strconv.Atoi(m[1])
			name = m[2]
		}
		if !logError.re().MatchString(text) {
			continue
		}
		text = clean(text)
		if m := logDied.re().FindStringSubmatch(text); m != nil && died == 0 {
			died, _ = strconv.Atoi(m[1])
		}
		if harmless(text) || e.Text != "" && echo.re().MatchString(text) {
			continue
		}
		e.Text, e.Pid, e.Name = text, pid, name
		if at != 0 && first[at] == "" && !echo.re().MatchString(text) {
			first[at] = text
		}
	}
	if text := first[died]; text != "" {
		e.Text, e.Inside = text, died
	}
	e.Log = lines[max(0, len(lines)-20):]
	e.translate()
}

func clean(text string) string {
	text = logPrefix.re().ReplaceAllString(text, "")
	return strings.TrimSpace(logError.re().ReplaceAllString(text, ""))
}

// words are what criu's errors mean.
var words = []struct {
	text expression
	what string // $1 … are the groups of the expression
	mend string
}{
	{expression{text: `Can't dump file (\d+) of that type.*io_uring`}, "descriptor $1 is an io_uring", "have the program use another way (nginx, PostgreSQL and libuv have a setting), or save the files only"},
	{expression{text: `Can't dump file (\d+) of that type.*userfaultfd`}, "descriptor $1 is a userfaultfd", "save the files only"},
	{expression{text: `Can't dump file (\d+) of that type \[\w+\] \((.*)\)`}, "descriptor $1 is a $2, which cannot be saved", "save the files only"},
	{expression{text: `Can't get rlimit`}, "it runs as another user, and msh lacks CAP_SYS_RESOURCE, without which its limits cannot be read", "run msh with CAP_SYS_RESOURCE, or make the machine with a uidspace()"},
	{expression{text: `Can't lookup mount=(-?\d+) for fd=(-?\d+) path=(.*)`}, "descriptor $2 ($3) is a file in a mount table outside", "close it before the program starts"},
	{expression{text: `(?i)Unsupported socket|unknown.*socket protocol|Unsupported proto`}, "a socket of a kind that cannot be saved", "close it, or save the files only"},
	{expression{text: `(?i)nested (\w+) namespace`}, "a process has a $1 namespace of its own inside", "save the files only, or end what made it"},
	{expression{text: `fsnotify:\s+Can't dump that handle`}, "it watches a file by inotify(7) that an overlay cannot tell the name of, and that is not in /etc or /var/log", "end the watch, or save the files only"},
	{expression{text: `Connected TCP socket`}, "a TCP connection is open", ""},
	{expression{text: `External socket is used|external (?:stream|dgram) unix`}, "a unix socket is connected with a process outside", "close it first"},
	{expression{text: `tty: Found dangling tty|Found slave peer index (\d+) without corresponding master`}, "a terminal's other side is outside", "end the shell that has it"},
	{expression{text: `A session leader of (\d+)\(\d+\) is outside of its pid namespace`}, "process $1 is of a session that was made outside", ""},
	{expression{text: `Can't dump ghost file (.*) of (\d+) size`}, "$1 has no name any more, is open, and with $2 bytes too large to be saved", "close it, or give it a name"},
	{expression{text: `No entry for reg-file-ID`}, "its program or a mapping of it is a file without a name (memfd)", ""},
	{expression{text: `Pid (\d+) do not match expected|Can't fork for (\d+): File exists`}, "its number $1$2 is another process's here", "wake it in a PID space of its own"},
	{expression{text: `(?i)cpu.*(capabilit|feature|xfeatures).*(mismatch|not supported)|Image.*CPU`}, "the processor here lacks something it had", "wake it on a host with the same kind of processor or a newer one"},
}

// busy is said of a process that is in the middle of vfork(2), until its child has
// executed its program: which it cannot, if that was stopped first.
var busy = expression{text: `Unseizable non-zombie (\d+) found, state D`}

func (e *Error) translate() {
	if m := busy.re().FindStringSubmatch(e.Text); m != nil {
		e.Busy, e.What, e.Mend = true, "process "+m[1]+" cannot be stopped: it waits for a child of its that is to execute a program (vfork), or for a device", "try again"
		return
	}
	for i := range words {
		w := &words[i]
		m := w.text.re().FindStringSubmatchIndex(e.Text)
		if m == nil {
			continue
		}
		e.What = string(w.text.re().ExpandString(nil, w.what, e.Text, m))
		e.Mend = w.mend
		return
	}
}

// look finds out what criu's words do not tell of the process it was at, which
// runs again.
func (e *Error) look(d *Dump) {
	if e.Pid == 0 || e.What != "" {
		return
	}
	b := Bounds{Files: d.Files}
	for _, m := range d.Mounts {
		b.Mounts = append(b.Mounts, m.Path)
	}
	for _, p := range Check([]int{d.Pid, e.Pid}, b) {
		if p.Pid == e.Pid {
			e.What, e.Mend = p.What, p.Mend
			return
		}
	}
}
