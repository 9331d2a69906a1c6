package seccomp

import (
	"errors"
	"fmt"
	"slices"

	engines "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Profile is linux.seccomp of the OCI runtime specification.
type Profile = specs.LinuxSeccomp

// Parse reads a profile: JSON of the OCI runtime specification, or that of container
// engines. Rules of the latter that depend on capabilities are kept or left out by
// what the process will have, as "CAP_NET_RAW".
func Parse(text []byte, caps []string) (*Profile, error) {
	text, err := strict(text)
	if err != nil {
		return nil, err
	}
	p, err := engines.LoadProfile(string(text), having(caps))
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, errors.New("no defaultAction and no syscalls")
	}
	return p, nil
}

// Default is the profile that container engines ship, for processes with those
// capabilities: a list of what is allowed.
func Default(caps []string) (*Profile, error) { return engines.GetDefaultProfile(having(caps)) }

func having(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}

// Refusing is a profile that allows all but what the rules refuse, on every ABI.
func Refusing(rules ...specs.LinuxSyscall) *Profile {
	p := &Profile{DefaultAction: specs.ActAllow, Syscalls: rules}
	for _, a := range native() {
		p.Architectures = append(p.Architectures, a.name)
	}
	return p
}

// Refuse is a rule that refuses calls with that error: always, or where every
// condition holds.
func Refuse(errno unix.Errno, names []string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	n := uint(errno)
	return specs.LinuxSyscall{Names: names, Action: specs.ActErrno, ErrnoRet: &n, Args: args}
}

// Low32 is a condition on the lower half of an argument, which is all that the
// kernel looks at where a parameter is an int.
func Low32(arg uint, value uint32) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: arg, Value: 1<<32 - 1, ValueTwo: uint64(value), Op: specs.OpMaskedEqual}
}

// AnyOf is a condition that some of those bits are set: one condition for each,
// which each make a rule of their own.
func AnyOf(arg uint, bits ...uint64) []specs.LinuxSeccompArg {
	var args []specs.LinuxSeccompArg
	for _, bit := range bits {
		args = append(args, specs.LinuxSeccompArg{Index: arg, Value: bit, ValueTwo: bit, Op: specs.OpMaskedEqual})
	}
	return args
}

// Flags are the flags of seccomp(2) that a profile asks for.
func Flags(p *Profile) (flags int, err error) {
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // there is one thread
		default:
			return 0, fmt.Errorf("flag %q: want SECCOMP_FILTER_FLAG_LOG or SECCOMP_FILTER_FLAG_SPEC_ALLOW", f)
		}
	}
	return flags, nil
}

// action is what a filter returns. Of two that match the stricter one counts, which
// is the kernel's own order between filters (seccomp(2)).
type action struct {
	ret      uint32
	strictly int
}

func actionOf(a specs.LinuxSeccompAction, errnoRet *uint) (action, error) {
	errno := uint32(unix.EPERM)
	if errnoRet != nil {
		if *errnoRet > 4095 { // MAX_ERRNO
			return action{}, fmt.Errorf("errnoRet %d: want at most 4095", *errnoRet)
		}
		errno = uint32(*errnoRet)
	}
	switch a {
	case specs.ActKillProcess:
		return action{unix.SECCOMP_RET_KILL_PROCESS, 5}, nil
	case specs.ActKill, specs.ActKillThread:
		return action{unix.SECCOMP_RET_KILL_THREAD, 4}, nil
	case specs.ActTrap:
		return action{unix.SECCOMP_RET_TRAP, 3}, nil
	case specs.ActErrno:
		return action{unix.SECCOMP_RET_ERRNO | errno, 2}, nil
	case specs.ActLog:
		return action{unix.SECCOMP_RET_LOG, 1}, nil
	case specs.ActAllow:
		return action{unix.SECCOMP_RET_ALLOW, 0}, nil
	case specs.ActTrace, specs.ActNotify:
		return action{}, fmt.Errorf("action %s: nobody is there to answer", a)
	}
	return action{}, fmt.Errorf("action %q: want SCMP_ACT_ALLOW, _ERRNO, _KILL, _KILL_PROCESS, _KILL_THREAD, _TRAP or _LOG", a)
}

// allows tells whether calls that no rule names are let through.
func (a action) allows() bool { return a.strictly < 2 }

// alternative is an action under conditions on the arguments, all of which must hold.
type alternative struct {
	args []specs.LinuxSeccompArg
	action
}

// alternatives are a rule's. Several conditions on one argument are each a rule of
// their own, as in other runtimes: no call could meet all of them.
func alternatives(c *specs.LinuxSyscall, act action) ([]alternative, error) {
	seen := map[uint]bool{}
	each := false
	for _, a := range c.Args {
		if a.Index > 5 {
			return nil, fmt.Errorf("argument %d: a system call has 0 to 5", a.Index)
		}
		if !slices.Contains(operators, a.Op) {
			return nil, fmt.Errorf("op %q: want one of %v", a.Op, operators)
		}
		each = each || seen[a.Index]
		seen[a.Index] = true
	}
	if !each {
		return []alternative{{c.Args, act}}, nil
	}
	var all []alternative
	for i := range c.Args {
		all = append(all, alternative{c.Args[i : i+1], act})
	}
	return all, nil
}

var operators = []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
