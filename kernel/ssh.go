package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/handover"
)

// Remote is another host, as ssh(1) is told of it.
type Remote struct {
	User string
	Host string // a name, an address, or an alias of ~/.ssh/config
	Port int    // 0 leaves it to ssh
	// Command is msh there, with what goes before it: "sudo msh". "" is msh.
	Command string
}

const remoteWant = `"ssh://[USER@]HOST[:PORT]", or [USER@]HOST as ssh has it`

// ParseRemote reads ssh://[user@]host[:port], or [user@]host.
func ParseRemote(s string) (*Remote, error) {
	refuse := func(why string) error {
		return bad("migrate", "host", s, remoteWant+why)
	}
	r := &Remote{}
	if rest, ok := strings.CutPrefix(s, "ssh://"); ok {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" {
			return nil, refuse("")
		}
		if u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
			return nil, refuse(": nothing behind the host")
		}
		if _, ok := u.User.Password(); ok {
			return nil, refuse(": ssh takes no password from a script; give it a key")
		}
		r.User, r.Host = u.User.Username(), u.Hostname()
		if p := u.Port(); p != "" {
			if r.Port, err = strconv.Atoi(p); err != nil || r.Port < 1 || r.Port > 65535 {
				return nil, refuse(": a port of 1 to 65535")
			}
		} else if strings.HasSuffix(strings.TrimSuffix(rest, "/"), ":") {
			return nil, refuse(": a port behind the colon")
		}
	} else if i := strings.LastIndexByte(s, '@'); i >= 0 {
		r.User, r.Host = s[:i], s[i+1:]
		if r.User == "" {
			return nil, refuse("")
		}
	} else {
		r.Host = s
	}
	for _, part := range []string{r.User, r.Host} {
		// ssh would take one that begins with - for an option (CVE-2017-1000117).
		if strings.HasPrefix(part, "-") || strings.ContainsAny(part, " \t\n\r\x00'\"\\$`;&|<>(){}/") {
			return nil, refuse("")
		}
	}
	if r.Host == "" {
		return nil, refuse("")
	}
	return r, nil
}

// String is the remote as it can be parsed again.
func (r *Remote) String() string {
	s := r.Host
	if strings.Contains(s, ":") {
		s = "[" + s + "]"
	}
	if r.Port != 0 {
		s += fmt.Sprintf(":%d", r.Port)
	}
	if r.User != "" {
		s = r.User + "@" + s
	}
	return "ssh://" + s
}

// argv is the command line of ssh: its stock client, with the user's own settings.
func (r *Remote) argv() []string {
	ssh := os.Getenv("MSH_SSH") // as GIT_SSH and rsync's RSYNC_RSH
	if ssh == "" {
		ssh = "ssh"
	}
	// A host that is gone without a word is noticed after 15 s.
	argv := []string{ssh, "-T", "-oServerAliveInterval=5", "-oServerAliveCountMax=3"}
	if r.Port != 0 {
		argv = append(argv, "-p", strconv.Itoa(r.Port))
	}
	if r.User != "" {
		argv = append(argv, "-l", r.User)
	}
	msh := r.Command
	if msh == "" {
		msh = "msh"
	}
	return append(argv, "--", r.Host, msh+" receive")
}

// dial starts ssh, with msh receive at its other end.
func (r *Remote) dial(context.Context) (handover.Line, error) {
	argv := r.argv()
	cmd := exec.Command(argv[0], argv[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return handover.Line{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return handover.Line{}, err
	}
	said := &lastWords{}
	cmd.Stderr = said
	cmd.WaitDelay = time.Second // a ControlPersist of the user's keeps it open
	if err := cmd.Start(); err != nil {
		in.Close()
		if errors.Is(err, exec.ErrNotFound) {
			return handover.Line{}, withHint(fmt.Errorf("start ssh: %w", err), "install the package openssh-client")
		}
		return handover.Line{}, fmt.Errorf("start ssh: %w", err)
	}
	ended := make(chan error, 1)
	close := sync.OnceFunc(func() {
		// At the end of its input ssh has the other side end, and waits for that.
		in.Close()
		out.Close()
		go func() {
			slow := time.AfterFunc(closing, func() { cmd.Process.Signal(unix.SIGTERM) })
			defer slow.Stop()
			ended <- cmd.Wait()
		}()
	})
	return handover.Line{In: out, Out: in, Close: close, Why: func() error {
		close()
		select {
		case err := <-ended:
			ended <- err
			return r.explain(err, said.String())
		case <-time.After(2 * time.Second):
			return nil
		}
	}}, nil
}

// closing is how long ssh may take to end.
const closing = 10 * time.Second

// explain makes of how ssh has ended why there is no line.
func (r *Remote) explain(err error, said string) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return nil
	}
	text := strings.TrimSpace(said)
	if text == "" {
		text = err.Error()
	}
	switch exit.ExitCode() {
	case 126, 127: // the shell's there, for a command that it cannot start
		return withHint(fmt.Errorf("%s: no msh there: %s", r, Short(text)), "install msh there, in the PATH that a command by ssh has, or say where it is (msh=)")
	case 255, -1: // its own, or a signal's
		return fmt.Errorf("ssh to %s: %s", r, Short(text))
	}
	return fmt.Errorf("msh on %s: %s", r, Short(text))
}

// lastWords keeps the end of what is written to it.
type lastWords struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lastWords) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Write(b)
	if over := l.b.Len() - 4096; over > 0 {
		l.b.Next(over)
	}
	return len(b), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
