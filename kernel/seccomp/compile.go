package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. Every machine that msh runs on is little-endian.
const (
	offNumber = 0
	offABI    = 4
	offArgs   = 16
)

// maxInstructions is BPF_MAXINSNS.
const maxInstructions = 4096

// InstructionSize is that of struct sock_filter, in bytes.
const InstructionSize = 8

// Compile makes a filter of a profile: the array of struct sock_filter.
func Compile(p *Profile) ([]byte, error) { return compile(p, native()) }

func compile(p *Profile, abis []*abi) ([]byte, error) {
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return nil, errors.New("listenerPath: nobody is there to answer")
	}
	if _, err := Flags(p); err != nil {
		return nil, err
	}
	rest, err := actionOf(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	rules := map[string][]alternative{}
	for i := range p.Syscalls {
		c := &p.Syscalls[i]
		if len(c.Names) == 0 {
			return nil, fmt.Errorf("syscalls[%d]: no names", i)
		}
		act, err := actionOf(c.Action, c.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		alts, err := alternatives(c, act)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		for _, name := range c.Names {
			// Where nothing else is allowed, a name that is wrong allows nothing.
			if rest.allows() && !act.allows() && !known(name) {
				return nil, fmt.Errorf("syscalls[%d]: no system call %q here: it would not be refused", i, name)
			}
			rules[name] = append(rules[name], alts...)
		}
	}
	whole, err := assemble(p, abis, rules, rest)
	if err != nil {
		return nil, err
	}
	if len(whole) > maxInstructions {
		return nil, fmt.Errorf("a filter of %d instructions: the kernel takes %d", len(whole), maxInstructions)
	}
	return raw(whole)
}

// raw lays instructions out as struct sock_filter.
func raw(c code) ([]byte, error) {
	all, err := bpf.Assemble(c)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, InstructionSize*len(all))
	for _, r := range all {
		b = binary.NativeEndian.AppendUint16(b, r.Op)
		b = append(b, r.Jt, r.Jf)
		b = binary.NativeEndian.AppendUint32(b, r.K)
	}
	return b, nil
}

// code is a piece of a filter that ends in returns, and is the same wherever it stands.
type code = []bpf.Instruction

func ret(v uint32) code { return code{bpf.RetConstant{Val: v}} }

// noSystemCall is what is said of a number that nobody has given a meaning when msh
// was written. Programs try what is new, and take this as the word to do without.
var noSystemCall = action{ret: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), strictly: 2}

// assemble joins the ABIs' parts. An ABI that the profile does not name is refused.
func assemble(p *Profile, abis []*abi, rules map[string][]alternative, rest action) (code, error) {
	has := func(a *abi) bool {
		return slices.Contains(p.Architectures, a.name) || len(p.Architectures) == 0 && a == abis[0]
	}
	part := func(a *abi) code {
		if !has(a) {
			return ret(noSystemCall.ret)
		}
		return tree(a.ranges(rules, rest))
	}
	if !slices.ContainsFunc(abis, has) {
		return nil, fmt.Errorf("architectures: got %v, want one of this machine's: %s", p.Architectures, abis[0].name)
	}
	whole := ret(noSystemCall.ret) // no ABI that is known
	for i := len(abis) - 1; i >= 0; i-- {
		a := abis[i]
		if a.bit != 0 {
			continue // stands with the one that it shares its audit number with
		}
		body := part(a)
		if i+1 < len(abis) && abis[i+1].bit != 0 {
			body = choose(bpf.JumpGreaterOrEqual, abis[i+1].bit, part(abis[i+1]), body)
		}
		body = append(code{bpf.LoadAbsolute{Off: offNumber, Size: 4}}, body...)
		whole = choose(bpf.JumpEqual, a.audit, body, whole)
	}
	return append(code{bpf.LoadAbsolute{Off: offABI, Size: 4}}, whole...), nil
}

// choose goes to yes where the loaded word stands to v as the test says, else to no.
// A conditional jump reaches 255 instructions, the other kind any number.
func choose(test bpf.JumpTest, v uint32, yes, no code) code {
	if len(no) <= 255 {
		return slices.Concat(code{bpf.JumpIf{Cond: test, Val: v, SkipTrue: uint8(len(no))}}, no, yes)
	}
	return slices.Concat(code{bpf.JumpIf{Cond: test, Val: v, SkipFalse: 1}, bpf.Jump{Skip: uint32(len(no))}}, no, yes)
}

// span is the numbers from first up to the next span's, all treated alike.
type span struct {
	first uint32
	do    code
}

// ranges says for all numbers of an ABI what is done.
func (a *abi) ranges(rules map[string][]alternative, rest action) []span {
	unnamed := rest
	if !rest.allows() {
		unnamed = noSystemCall
	}
	var spans []span
	add := func(first uint32, do code) {
		if n := len(spans); n > 0 && same(spans[n-1].do, do) {
			return
		}
		spans = append(spans, span{first, do})
	}
	next := a.bit
	for _, c := range a.calls() {
		n := c.number | a.bit
		if n > next {
			add(next, ret(unnamed.ret))
		}
		add(n, decide(rules[c.name], rest))
		next = n + 1
	}
	add(next, ret(unnamed.ret))
	return spans
}

// same tells whether two pieces are one and the same answer.
func same(x, y code) bool { return len(x) == 1 && len(y) == 1 && x[0] == y[0] }

// tree finds the span that the number is in by halving.
func tree(spans []span) code {
	if len(spans) == 1 {
		return spans[0].do
	}
	half := len(spans) / 2
	return choose(bpf.JumpGreaterOrEqual, spans[half].first, tree(spans[half:]), tree(spans[:half]))
}

// decide tries the alternatives for a system call, the strictest first.
func decide(alts []alternative, rest action) code {
	alts = slices.Clone(alts)
	slices.SortStableFunc(alts, func(x, y alternative) int { return y.strictly - x.strictly })
	end := rest
	for i, a := range alts {
		if len(a.args) == 0 {
			alts, end = alts[:i], a.action
			break
		}
	}
	for len(alts) > 0 && alts[len(alts)-1].ret == end.ret {
		alts = alts[:len(alts)-1] // a condition for what is done anyway
	}
	do := ret(end.ret)
	for _, a := range slices.Backward(alts) {
		yes := ret(a.ret)
		for _, arg := range slices.Backward(a.args) {
			yes = condition(arg, yes)
		}
		do = append(yes, do...)
	}
	return do
}

// condition puts a test in front of yes, which if it fails goes on behind that. An
// argument is two words; the filter has registers of one.
func condition(arg specs.LinuxSeccompArg, yes code) code {
	at := uint32(offArgs + 8*arg.Index)
	low, high := bpf.LoadAbsolute{Off: at, Size: 4}, bpf.LoadAbsolute{Off: at + 4, Size: 4}
	lo, hi := uint32(arg.Value), uint32(arg.Value>>32)
	n := uint8(len(yes)) // at most six conditions of seven instructions, and a return
	jump := func(test bpf.JumpTest, v uint32, t, f uint8) bpf.Instruction {
		return bpf.JumpIf{Cond: test, Val: v, SkipTrue: t, SkipFalse: f}
	}
	var test code
	switch arg.Op {
	case specs.OpEqualTo:
		test = code{high, jump(bpf.JumpEqual, hi, 0, 2+n), low, jump(bpf.JumpEqual, lo, 0, n)}
	case specs.OpNotEqual:
		test = code{high, jump(bpf.JumpEqual, hi, 0, 2), low, jump(bpf.JumpEqual, lo, n, 0)}
	case specs.OpGreaterThan:
		test = code{high, jump(bpf.JumpGreaterThan, hi, 3, 0), jump(bpf.JumpEqual, hi, 0, 2+n), low, jump(bpf.JumpGreaterThan, lo, 0, n)}
	case specs.OpGreaterEqual:
		test = code{high, jump(bpf.JumpGreaterThan, hi, 3, 0), jump(bpf.JumpEqual, hi, 0, 2+n), low, jump(bpf.JumpGreaterOrEqual, lo, 0, n)}
	case specs.OpLessThan:
		test = code{high, jump(bpf.JumpGreaterThan, hi, 3+n, 0), jump(bpf.JumpEqual, hi, 0, 2), low, jump(bpf.JumpGreaterOrEqual, lo, n, 0)}
	case specs.OpLessEqual:
		test = code{high, jump(bpf.JumpGreaterThan, hi, 3+n, 0), jump(bpf.JumpEqual, hi, 0, 2), low, jump(bpf.JumpGreaterThan, lo, n, 0)}
	case specs.OpMaskedEqual: // Value is the mask
		want := arg.ValueTwo
		test = code{high, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: hi}, jump(bpf.JumpEqual, uint32(want>>32), 0, 3+n),
			low, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: lo}, jump(bpf.JumpEqual, uint32(want), 0, n)}
		if hi == 0 && want>>32 == 0 {
			test = test[3:]
		}
	}
	return append(test, yes...)
}

// Asking is a filter that lets all calls through, but has those of the names wait for
// who holds its listener (SECCOMP_RET_USER_NOTIF). With x32 it is so for that ABI too.
func Asking(withX32 bool, names ...string) ([]byte, error) {
	ask := action{ret: unix.SECCOMP_RET_USER_NOTIF, strictly: 2}
	rules := map[string][]alternative{}
	for _, name := range names {
		rules[name] = []alternative{{action: ask}}
	}
	p := Refusing()
	if !withX32 {
		p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	}
	whole, err := assemble(p, native(), rules, action{ret: unix.SECCOMP_RET_ALLOW})
	if err != nil {
		return nil, err
	}
	return raw(whole)
}
