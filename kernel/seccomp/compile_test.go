package seccomp

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	allowed = uint32(unix.SECCOMP_RET_ALLOW)
	eperm   = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	enosys  = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
)

func mustCompile(t *testing.T, p *Profile, on []*abi) []byte {
	t.Helper()
	f, err := compile(p, on)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func check(t *testing.T, what string, f []byte, audit, nr, want uint32, args ...uint64) {
	t.Helper()
	got, err := evaluate(f, audit, nr, args...)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("%s: %#x, want %#x", what, got, want)
	}
}

// The engines' profile, on every ABI of both processors.
func TestDefault(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		on := abis(arch)
		p, err := Default(nil)
		if err != nil {
			t.Fatal(err)
		}
		p.Architectures = nil
		for _, a := range on {
			p.Architectures = append(p.Architectures, a.name)
		}
		f := mustCompile(t, p, on)
		for _, a := range on {
			for name, want := range map[string]uint32{"openat": allowed, "write": allowed, "uname": allowed, "mount": eperm, "kexec_load": eperm, "keyctl": eperm, "clone3": enosys} {
				if nr, ok := a.number(name); ok {
					check(t, fmt.Sprintf("%s of %s", name, a.name), f, a.audit, nr, want)
				}
			}
			clone, _ := a.number("clone")
			check(t, "clone of a thread, "+string(a.name), f, a.audit, clone, allowed, unix.CLONE_THREAD)
			check(t, "clone of a space, "+string(a.name), f, a.audit, clone, eperm, unix.CLONE_NEWUSER)
			check(t, "a number nobody has, "+string(a.name), f, a.audit, 4000|a.bit, enosys)
		}
		check(t, "no ABI at all", f, 0x12345678, 1, enosys)
	}
}

// Each number of each table gets what its rule says, and its neighbours what theirs do.
func TestEveryNumber(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		on := abis(arch)
		p := &Profile{DefaultAction: specs.ActErrno}
		for _, a := range on {
			p.Architectures = append(p.Architectures, a.name)
		}
		odd := map[string]bool{}
		for _, a := range on {
			for i, c := range a.calls() {
				if _, ok := odd[c.name]; !ok {
					odd[c.name] = i%3 == 0
				}
			}
		}
		rule := specs.LinuxSyscall{Action: specs.ActAllow}
		for name, yes := range odd {
			if yes {
				rule.Names = append(rule.Names, name)
			}
		}
		p.Syscalls = []specs.LinuxSyscall{rule}
		f := mustCompile(t, p, on)
		for _, a := range on {
			for _, c := range a.calls() {
				want := eperm
				if odd[c.name] {
					want = allowed
				}
				check(t, fmt.Sprintf("%s of %s", c.name, a.name), f, a.audit, c.number|a.bit, want)
			}
		}
	}
}

// Conditions are on 64 bits, of which the filter sees 32 at a time.
func TestConditions(t *testing.T) {
	const big = 5<<32 | 7
	values := []uint64{0, 1, 6, 7, 8, 1 << 32, 4<<32 | 7, 5<<32 | 6, big, 5<<32 | 8, 6 << 32, 1<<64 - 1}
	for op, holds := range map[specs.LinuxSeccompOperator]func(v, at uint64) bool{
		specs.OpEqualTo: func(v, at uint64) bool { return v == at }, specs.OpNotEqual: func(v, at uint64) bool { return v != at },
		specs.OpLessThan: func(v, at uint64) bool { return v < at }, specs.OpLessEqual: func(v, at uint64) bool { return v <= at },
		specs.OpGreaterThan: func(v, at uint64) bool { return v > at }, specs.OpGreaterEqual: func(v, at uint64) bool { return v >= at },
		specs.OpMaskedEqual: func(v, at uint64) bool { return v&at == at },
	} {
		for _, at := range []uint64{7, big, 1 << 32, 1<<64 - 1} {
			for index := range uint(6) {
				arg := specs.LinuxSeccompArg{Index: index, Value: at, ValueTwo: at, Op: op}
				f := mustCompile(t, Refusing(Refuse(unix.EPERM, []string{"ioctl"}, arg)), native())
				for _, v := range values {
					args := make([]uint64, 6)
					args[index] = v
					want := allowed
					if holds(v, at) {
						want = eperm
					}
					nr, _ := native()[0].number("ioctl")
					check(t, fmt.Sprintf("%s %#x of argument %d, %#x", op, at, index, v), f, native()[0].audit, nr, want, args...)
				}
			}
		}
	}
	// All conditions of a rule must hold; several on one argument are rules each.
	nr, _ := native()[0].number("ioctl")
	both := mustCompile(t, Refusing(Refuse(unix.EPERM, []string{"ioctl"}, Low32(0, 1), Low32(1, 2))), native())
	check(t, "both", both, native()[0].audit, nr, eperm, 1, 2)
	check(t, "one of two", both, native()[0].audit, nr, allowed, 1, 3)
	any := mustCompile(t, Refusing(Refuse(unix.EPERM, []string{"ioctl"}, AnyOf(1, 1, 4)...)), native())
	check(t, "one bit", any, native()[0].audit, nr, eperm, 0, 4)
	check(t, "neither bit", any, native()[0].audit, nr, allowed, 0, 2)
	check(t, "the upper half of an int", mustCompile(t, Refusing(Refuse(unix.EPERM, []string{"ioctl"}, Low32(1, unix.TIOCSTI))), native()), native()[0].audit, nr, eperm, 0, 0xffff_ffff<<32|unix.TIOCSTI)
}

// Of two rules for a call the stricter one counts, in whatever order they stand.
func TestStricter(t *testing.T) {
	deny, allow := Refuse(unix.EPERM, []string{"read"}), specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow}
	for _, rules := range [][]specs.LinuxSyscall{{deny, allow}, {allow, deny}} {
		f := mustCompile(t, Refusing(rules...), native())
		nr, _ := native()[0].number("read")
		check(t, "read", f, native()[0].audit, nr, eperm)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		``: "no JSON object", `[]`: "no JSON object", `{} {}`: "more than one", `{}`: "no defaultAction",
		`{"default":"x"}`: `a field "default"`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`:                                                                                 "syscalls[0]: got null, want an object",
		`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[null]}`:                                                                                  "archMap[0]: got null, want an object",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[null]}]}`:                           "syscalls[0].args[0]: got null, want an object",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","arg":[]}]}`:                                `syscalls[0]: a field "arg": want action args comment`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","includes":{"cap":["x"]}}]}`:                `syscalls[0].includes: a field "cap": want arches caps minKernel`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errno":"EFOO"}]}`:                          `syscalls[0].errno: got "EFOO", want the name of an error`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"value":1,"op":"SCMP_CMP_EQ"}]}]}`: "syscalls[0].args[0]: no index",
		`{"defaultAction":3}`:                              "defaultAction: got number, want a string",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":{}}`: "syscalls: got object, want a list",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":"read","action":"SCMP_ACT_ERRNO"}]}`:                 "syscalls.names: got string, want a list",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":-1}]}`: "syscalls.errnoRet: got number -1, want a whole number",
		`{"defaultAction":"SCMP_ACT_NO"}`:                                                                                                                `action "SCMP_ACT_NO"`,
		`{"defaultAction":"SCMP_ACT_TRACE"}`:                                                                                                             "nobody is there to answer",
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}`:                                                                                      "errnoRet 5000",
		`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`:                                                                                         "listenerPath",
		`{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT"]}`:                                                                        "flag",
		`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_S390X"]}`:                                                                         "want one of this machine's",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_ERRNO"}]}`:                                                         "no names",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["nope"],"action":"SCMP_ACT_ERRNO"}]}`:                                                   `no system call "nope"`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}`: "argument 6",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP"}]}]}`:    `op "SCMP_CMP"`,
	} {
		p, err := Parse([]byte(text), nil)
		if err == nil {
			_, err = Compile(p)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// Podman's profiles have the names of errors, which count before the numbers.
func TestErrorNames(t *testing.T) {
	p, err := Parse([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"defaultErrno":"ENOSYS","syscalls":[
		{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":1,"errno":"EACCES","args":[],"comment":"","includes":{},"excludes":{}},
		{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	f := mustCompile(t, p, native())
	for name, want := range map[string]uint32{"mkdir": unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES), "rmdir": enosys, "read": allowed} {
		nr, _ := native()[0].number(name)
		check(t, name, f, native()[0].audit, nr, want)
	}
}

// FuzzCompile reads profiles: a filter that is made can be run, and returns an action.
func FuzzCompile(f *testing.F) {
	p, err := Default(nil)
	if err != nil {
		f.Fatal(err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":1,"op":"SCMP_CMP_NE"},{"index":0,"value":2,"op":"SCMP_CMP_GE"}]}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":[null]}],"syscalls":[{"names":[null],"action":"SCMP_ACT_ERRNO","errno":"EPERM","includes":{"minKernel":"4.8"}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text, nil)
		if err != nil {
			return
		}
		code, err := Compile(p)
		if err != nil {
			return
		}
		for _, name := range []string{"read", "ioctl", "clone"} {
			if _, err := Evaluate(code, name, 1, 2, 3); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		p, err := Default(nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}

// The kernel translates a filter anew for each process that it is installed for: the
// engines' is to stay short. It is some tenth shorter than this, with every ABI.
func TestLength(t *testing.T) {
	on := abis("amd64")
	p, err := Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	p.Architectures = []specs.Arch{x86_64.name, x32.name, i386.name}
	const most = 270
	if n := len(mustCompile(t, p, on)) / InstructionSize; n > most {
		t.Errorf("%d instructions, want at most %d", n, most)
	}
}
