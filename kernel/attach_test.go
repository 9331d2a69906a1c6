package kernel

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A command gets a pipe for a terminal of the caller's, and what it says comes out
// there all the same, in its order.
func TestAttachTerminal(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, space("pidspace"), overlay())
	term, err := l.Host().OpenTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	said := make(chan string)
	go func() {
		var lines []string
		for s := bufio.NewScanner(term.Master); s.Scan() && s.Text() != "end"; {
			lines = append(lines, s.Text())
		}
		said <- strings.Join(lines, " ")
	}()
	if _, err := term.Master.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	code, err := m.Attach(t.Context(), &Command{Argv: []string{"sh", "-c", "read a; for i in 0 1 2; do [ -t $i ] && echo is a terminal; done; echo $a; echo err >&2; echo more; sleep 100 & exit 7"}},
		[3]int{term.slave, term.slave, term.slave}, nil)
	want(t, "code", 7, code)
	if err != nil {
		t.Fatal(err)
	}
	unix.Write(term.slave, []byte("end\n"))
	select {
	case got := <-said:
		want(t, "what it said", "typed typed err more", got) // the terminal echoes
	case <-time.After(long):
		t.Fatal("nothing came out")
	}
}

// A stream that is /dev/null is the machine's, whatever it has put there.
func TestNullIsItsOwn(t *testing.T) {
	l := newLab(t)
	var host unix.Stat_t
	if err := unix.Stat("/dev/null", &host); err != nil {
		t.Fatal(err)
	}
	m := fork(t, l, space("pidspace"), overlay())
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, step := range []struct{ change, want string }{
		{"true", "char"}, {"rm /dev/null", "empty"}, {"mkfifo /dev/null", "fifo"}, {"rm /dev/null; ln -s /etc/passwd /dev/null", "empty"}, {"rm /dev/null; mknod -m 666 /dev/null c 1 3", "char"},
	} {
		sh(t, m, step.change)
		const look = `f=/proc/self/fd/0; [ -c $f ] && echo char; [ -p $f ] && echo fifo; [ -f $f ] && [ -z "$(cat)" ] && echo empty; true`
		want(t, "after "+step.change, step.want, sh(t, m, look))
	}
	var inside, init unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/%s", m.Pid(), "root/dev/null"), &inside); err != nil {
		t.Fatal(err)
	}
	if inside.Dev == host.Dev && inside.Ino == host.Ino {
		t.Error("its /dev/null is the host's")
	}
	for _, fd := range []string{"fd/0", "fd/1", "fd/2"} {
		if err := unix.Stat(fmt.Sprintf("/proc/%d/%s", m.Pid(), fd), &init); err != nil || init.Dev == host.Dev {
			t.Errorf("init's %s is of the host's /dev: %v", fd, err)
		}
	}
}
