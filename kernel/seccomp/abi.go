package seccomp

import (
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// abi is a way to make system calls: a number of AUDIT_ARCH_*, and the numbers
// that the calls have there.
type abi struct {
	name  specs.Arch
	audit uint32
	bit   uint32 // that every number has set: x32's, which shares the audit number of x86-64
	calls func() []call
}

// call is a system call and its number. x32 has two numbers for some: those of x86-64,
// which old kernels took there as well, and its own.
type call struct {
	number uint32
	name   string
}

// x32Bit is __X32_SYSCALL_BIT.
const x32Bit = 1 << 30

var (
	x86_64  = &abi{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, 0, sync.OnceValue(func() []call { return calls(callsX86_64) })}
	x32     = &abi{specs.ArchX32, unix.AUDIT_ARCH_X86_64, x32Bit, sync.OnceValue(func() []call { return calls(callsX32) })}
	i386    = &abi{specs.ArchX86, unix.AUDIT_ARCH_I386, 0, sync.OnceValue(func() []call { return calls(callsI386) })}
	aarch64 = &abi{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, 0, sync.OnceValue(func() []call { return calls(callsAARCH64) })}
	arm     = &abi{specs.ArchARM, unix.AUDIT_ARCH_ARM, 0, sync.OnceValue(func() []call { return calls(callsARM) })}
)

// abis are those of a kernel for a GOARCH, its own first.
func abis(goarch string) []*abi {
	switch goarch {
	case "amd64":
		return []*abi{x86_64, x32, i386}
	case "arm64":
		return []*abi{aarch64, arm}
	}
	panic("seccomp: no table of system calls for " + goarch)
}

// native are those of this kernel, which need not have been built with all of them.
var native = sync.OnceValue(func() []*abi {
	return slices.DeleteFunc(abis(runtime.GOARCH), func(a *abi) bool { return a == x32 && !haveX32() })
})

// haveX32 asks by a call. Without a part for x32 a filter is a third shorter, and
// takes as much less time to install.
func haveX32() bool {
	_, _, errno := unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	return errno == 0
}

// calls reads a table of tables.go: names in the order of their numbers, "=N" where
// one is not the number after the last.
func calls(table string) []call {
	all := make([]call, 0, 512)
	next := uint32(0)
	for word := range strings.FieldsSeq(table) {
		if text, ok := strings.CutPrefix(word, "="); ok {
			n, err := strconv.ParseUint(text, 10, 31)
			if err != nil {
				panic("seccomp: " + err.Error()) // a table of our own, which a test reads
			}
			next = uint32(n)
			continue
		}
		all = append(all, call{next, word})
		next++
	}
	return all
}

// number is that of a system call, the last where there are two.
func (a *abi) number(name string) (uint32, bool) {
	for _, c := range slices.Backward(a.calls()) {
		if c.name == name {
			return c.number | a.bit, true
		}
	}
	return 0, false
}

// known tells whether any ABI here has a system call of that name.
func known(name string) bool {
	return slices.ContainsFunc(native(), func(a *abi) bool { _, ok := a.number(name); return ok })
}
