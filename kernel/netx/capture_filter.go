package netx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Instructions of classic BPF, which the kernel runs for each packet: Documentation/
// networking/filter.rst. A program answers how many bytes of the packet to keep.
const (
	bpfLoadWord  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfJumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bpfReturn    = unix.BPF_RET | unix.BPF_K
	bpfMaxLen    = 4096 // BPF_MAXINSNS
)

// ifindexOffset is where a program finds the interface's index: SKF_AD_OFF +
// SKF_AD_IFINDEX.
const ifindexOffset = 0xfffff000 + 8

// filterNone keeps nothing.
var filterNone = []unix.SockFilter{{Code: bpfReturn, K: 0}}

// captureFilter makes the program for the socket. tcpdump compiles the expression
// for the interface l, as it would for itself: there, unlike in a file, VLAN tags
// stand beside the packet.
func (n *NS) captureFilter(l netlink.Link, all bool, o CaptureOptions) ([]unix.SockFilter, error) {
	program := []unix.SockFilter{{Code: bpfReturn, K: uint32(o.Snaplen)}}
	if strings.TrimSpace(o.Filter) != "" {
		var err error
		if program, err = n.compileFilter(l.Attrs().Name, o.Filter, o.Snaplen); err != nil {
			return nil, fmt.Errorf("filter %q: %w", o.Filter, err)
		}
	}
	if all && o.Except != 0 { // jumps are relative: a program can be put before another
		program = append([]unix.SockFilter{
			{Code: bpfLoadWord, K: ifindexOffset}, {Code: bpfJumpEqual, Jf: 1, K: uint32(o.Except)}, {Code: bpfReturn, K: 0},
		}, program...)
	}
	return program, nil
}

// compileTime bounds tcpdump, which may look names up.
const compileTime = 20 * time.Second

func (n *NS) compileFilter(link, expression string, snaplen int) ([]unix.SockFilter, error) {
	if strings.ContainsRune(expression, 0) {
		return nil, errors.New("has a NUL byte")
	}
	ctx, cancel := context.WithTimeout(context.Background(), compileTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "tcpdump", "-p", "-i", link, "-y", "EN10MB", "-s", fmt.Sprint(snaplen), "-ddd", "--", expression)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	err := n.Do(cmd.Run) // a child is born into the namespace of the thread that makes it
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("tcpdump, which compiles filters, is not there; install the package tcpdump, or capture all and filter later")
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("tcpdump has not compiled it within %v; it looks up names, so write addresses", compileTime)
	}
	if err != nil {
		for line := range strings.Lines(said.String()) { // it also tells the link type there
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "tcpdump: ") && !strings.HasPrefix(line, "tcpdump: data link type") {
				return nil, errors.New(strings.TrimPrefix(line, "tcpdump: "))
			}
		}
		return nil, fmt.Errorf("tcpdump: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return parseFilter(out.String())
}

// parseFilter reads what tcpdump -ddd prints: the number of instructions, then each
// as four decimal numbers.
func parseFilter(text string) ([]unix.SockFilter, error) {
	in := strings.NewReader(text)
	var length int
	if _, err := fmt.Fscan(in, &length); err != nil || length < 1 || length > bpfMaxLen {
		return nil, fmt.Errorf("tcpdump -ddd printed %q, want the program's length first", text[:min(len(text), 40)])
	}
	program := make([]unix.SockFilter, length)
	for i := range program {
		f := &program[i]
		if _, err := fmt.Fscan(in, &f.Code, &f.Jt, &f.Jf, &f.K); err != nil {
			return nil, fmt.Errorf("tcpdump -ddd printed an instruction %d of %d that is none: %w", i+1, length, err)
		}
	}
	return program, nil
}

// attachFilter gives the socket a program, in the place of the one it has.
func attachFilter(fd int, program []unix.SockFilter) error {
	f := unix.SockFprog{Len: uint16(len(program)), Filter: unsafe.SliceData(program)}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &f)
	if errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("attach a filter of %d instructions: %w: more than net.core.optmem_max has room for; write it shorter", len(program), err)
	}
	if err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	return nil
}
