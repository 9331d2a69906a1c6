package seccomp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
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
	return assemble(p, abis, rules, rest)
}

// noSystemCall is what is said of a number that nobody has given a meaning when msh
// was written. Programs try what is new, and take this as the word to do without.
var noSystemCall = action{ret: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), strictly: 2}

// assemble joins the ABIs' parts. An ABI that the profile does not name is refused.
func assemble(p *Profile, abis []*abi, rules map[string][]alternative, rest action) ([]byte, error) {
	has := func(a *abi) bool {
		return slices.Contains(p.Architectures, a.name) || len(p.Architectures) == 0 && a == abis[0]
	}
	if !slices.ContainsFunc(abis, has) {
		return nil, fmt.Errorf("architectures: got %v, want one of this machine's: %s", p.Architectures, abis[0].name)
	}
	w := newWriter()
	none := place{ret: noSystemCall.ret}
	part := func(a *abi) place {
		if !has(a) {
			return none
		}
		return w.tree(a.ranges(w, rules, rest))
	}
	whole := none // no ABI that is known
	for i, a := range slices.Backward(abis) {
		if a.bit != 0 {
			continue // stands with the one that it shares its audit number with
		}
		body := part(a)
		if i+1 < len(abis) && abis[i+1].bit != 0 {
			body = w.jump(jumpGreaterOrEqual, abis[i+1].bit, part(abis[i+1]), body)
		}
		whole = w.jump(jumpEqual, a.audit, w.load(offNumber, body), whole)
	}
	w.load(offABI, whole)
	if len(w.code) > maxInstructions {
		return nil, fmt.Errorf("a filter of %d instructions: the kernel takes %d", len(w.code), maxInstructions)
	}
	return w.bytes(), nil
}

// span is the numbers from first up to the next span's, all treated alike.
type span struct {
	first uint32
	do    place
}

// ranges says for all numbers of an ABI what is done.
func (a *abi) ranges(w *writer, rules map[string][]alternative, rest action) []span {
	unnamed := place{ret: noSystemCall.ret}
	if rest.allows() {
		unnamed = place{ret: rest.ret}
	}
	var spans []span
	add := func(first uint32, do place) {
		if n := len(spans); n == 0 || spans[n-1].do != do {
			spans = append(spans, span{first, do})
		}
	}
	next := a.bit
	for _, c := range a.calls() {
		n := c.number | a.bit
		if n > next {
			add(next, unnamed)
		}
		add(n, w.decideOnce(c.name, rules[c.name], rest))
		next = n + 1
	}
	add(next, unnamed)
	return spans
}

// A stretch is numbers that are treated alike but for some single ones.
type stretch struct {
	span
	but []span
}

// mostBut is how many those are at most: they are tried one after the other.
const mostBut = 4

func stretches(spans []span) []stretch {
	var all []stretch
	for i := 0; i < len(spans); i++ {
		s := stretch{span: spans[i]}
		for len(s.but) < mostBut && i+2 < len(spans) && spans[i+2].do == s.do && spans[i+2].first == spans[i+1].first+1 {
			s.but = append(s.but, spans[i+1])
			i += 2
		}
		all = append(all, s)
	}
	return all
}

// tree finds the stretch that the number is in by halving.
func (w *writer) tree(spans []span) place {
	var search func(all []stretch) place
	search = func(all []stretch) place {
		if half := len(all) / 2; half > 0 {
			above := search(all[half:])
			return w.jump(jumpGreaterOrEqual, all[half].first, above, search(all[:half]))
		}
		at := all[0].do
		for _, but := range slices.Backward(all[0].but) {
			at = w.jump(jumpEqual, but.first, but.do, at)
		}
		return at
	}
	return search(stretches(spans))
}

// decideOnce is decide for a name: what is decided by arguments is so on every ABI.
func (w *writer) decideOnce(name string, alts []alternative, rest action) place {
	at, ok := w.decided[name]
	if !ok {
		if at = w.decide(alts, rest); at.at > 0 {
			w.decided[name] = at
		}
	}
	return at
}

// decide tries the alternatives for a system call, the strictest first.
func (w *writer) decide(alts []alternative, rest action) place {
	alts = slices.Clone(alts)
	slices.SortStableFunc(alts, func(x, y alternative) int { return y.strictly - x.strictly })
	end := rest
	for i, a := range alts {
		if len(a.args) == 0 {
			alts, end = alts[:i], a.action
			break
		}
	}
	at := place{ret: end.ret}
	for n := len(alts); n > 0; n = len(alts) {
		last := alts[n-1]
		yes := place{ret: last.ret}
		values := oneOf(alts)
		switch alts = alts[:n-max(1, len(values))]; {
		case at == yes: // a condition for what is done anyway
		case values != nil:
			at = w.equal(last.args[0].Index, values, yes, at)
		default:
			for _, arg := range slices.Backward(last.args) {
				yes = w.condition(arg, yes, at)
			}
			at = yes
		}
	}
	return at
}

// oneOf are the values of the last alternatives which say the same of an argument
// being equal to one of them, and which have their upper words in common.
func oneOf(alts []alternative) (values []uint64) {
	last := alts[len(alts)-1]
	for _, a := range slices.Backward(alts) {
		if len(a.args) != 1 || a.args[0].Op != specs.OpEqualTo || a.ret != last.ret || a.args[0].Index != last.args[0].Index || a.args[0].Value>>32 != last.args[0].Value>>32 {
			break
		}
		values = append(values, a.args[0].Value)
	}
	return values
}

// An argument is two words; the filter has registers of one.
func words(arg uint) (low, high uint32) { return offArgs + 8*uint32(arg), offArgs + 8*uint32(arg) + 4 }

// equal goes to yes where an argument is one of the values, which have their upper
// words in common.
func (w *writer) equal(arg uint, values []uint64, yes, no place) place {
	low, high := words(arg)
	at := no
	for _, v := range values {
		at = w.jump(jumpEqual, uint32(v), yes, at)
	}
	return w.load(high, w.jump(jumpEqual, uint32(values[0]>>32), w.load(low, at), no))
}

// compare goes to yes where an argument stands to a value as op says: the upper words
// tell, and where they are the same the lower ones.
func (w *writer) compare(op uint16, arg uint, value uint64, yes, no place) place {
	low, high := words(arg)
	at := w.load(low, w.jump(op, uint32(value), yes, no))
	hi := uint32(value >> 32)
	return w.load(high, w.jump(jumpGreater, hi, yes, w.jump(jumpEqual, hi, at, no)))
}

// masked goes to yes where the bits of an argument that are in the mask are as in want.
func (w *writer) masked(arg uint, mask, want uint64, yes, no place) place {
	low, high := words(arg)
	at := w.load(low, w.and(uint32(mask), w.jump(jumpEqual, uint32(want), yes, no)))
	if mask>>32 == 0 && want>>32 == 0 {
		return at
	}
	return w.load(high, w.and(uint32(mask>>32), w.jump(jumpEqual, uint32(want>>32), at, no)))
}

// condition goes to yes where it holds, else to no.
func (w *writer) condition(arg specs.LinuxSeccompArg, yes, no place) place {
	switch arg.Op {
	case specs.OpEqualTo:
		return w.equal(arg.Index, []uint64{arg.Value}, yes, no)
	case specs.OpNotEqual:
		return w.equal(arg.Index, []uint64{arg.Value}, no, yes)
	case specs.OpGreaterThan:
		return w.compare(jumpGreater, arg.Index, arg.Value, yes, no)
	case specs.OpGreaterEqual:
		return w.compare(jumpGreaterOrEqual, arg.Index, arg.Value, yes, no)
	case specs.OpLessThan:
		return w.compare(jumpGreaterOrEqual, arg.Index, arg.Value, no, yes)
	case specs.OpLessEqual:
		return w.compare(jumpGreater, arg.Index, arg.Value, no, yes)
	}
	return w.masked(arg.Index, arg.Value, arg.ValueTwo, yes, no) // OpMaskedEqual: Value is the mask
}

// Asking is a filter that lets all calls through, but has those of the names wait for
// who holds its listener (SECCOMP_RET_USER_NOTIF). A filter answers for an ABI that the
// kernel lacks all the same: of those it has no part.
func Asking(names ...string) ([]byte, error) {
	ask := action{ret: unix.SECCOMP_RET_USER_NOTIF, strictly: 2}
	rules := map[string][]alternative{}
	for _, name := range names {
		rules[name] = []alternative{{action: ask}}
	}
	return assemble(Refusing(), native(), rules, action{ret: unix.SECCOMP_RET_ALLOW})
}
