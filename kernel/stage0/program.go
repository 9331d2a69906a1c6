package stage0

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Flags say what stage0 makes of a step's result.
type Flags uint32

const (
	// MayFail goes on to the next step whatever the result.
	MayFail Flags = 1 << iota
	// SkipNext goes on as MayFail does, but over the step behind it when this one fails.
	SkipNext
	// Positive takes a result of 0 for a failure too: read(2) at end of file,
	// which means that the parent is gone.
	Positive
	fork
	become
	bits
	signals
)

// AtCwd is the directory descriptor that stands for the working directory.
const AtCwd = unix.AT_FDCWD

// The kinds of argument that Call takes beside integers, strings (a pointer to
// the NUL-terminated text), []byte (a pointer to a copy) and []string (a pointer
// to a NULL-terminated array of pointers, as execve wants).
type (
	// Ref is the number of a step, and as an argument stands for its result.
	Ref int
	// FD is the name of a descriptor that stage0 is started with.
	FD string
	// Buffer is a pointer to that many zero bytes.
	Buffer int
	// Words is a pointer to words of 8 bytes, each laid out as an argument is; a
	// Ref cannot be among them.
	Words []any
	// Bits is argument 1 of a step that is performed for each bit that is set, with its
	// number there, counted from 0. The result is the last one's.
	Bits uint64
	// Signals is argument 0 of such a step, counted from 1 as in a sigset_t.
	Signals uint64
	// Tail is a pointer into a step's own record, which ends in its arguments and
	// then its result: to the argument From. What the system call of that step does
	// not take makes, with the result, a struct for one that comes later.
	Tail struct {
		Step Ref
		From int
	}
)

// A Step is one system call of a Program.
type Step struct {
	Words string // what it does, as `msh -n` prints it
	Flags Flags
	Nr    int
	Args  []any
	over  int // fork: how many steps the new process, which gets 0, passes over
}

// A Program is a list of system calls being written. It is plain data: nothing
// is opened or allocated until Assemble.
type Program struct {
	steps []Step
	held  []FD
	spare [][2]int // from and to of those that may be passed over
}

// New returns an empty program, with room for a machine's.
func New() *Program { return &Program{steps: make([]Step, 0, 160)} }

// Call appends a step and returns the reference to its result.
func (p *Program) Call(words string, flags Flags, nr int, args ...any) Ref {
	if len(args) > 6 {
		panic("stage0: a system call takes six arguments")
	}
	p.steps = append(p.steps, Step{Words: words, Flags: flags, Nr: nr, Args: args})
	return Ref(len(p.steps) - 1)
}

// Fork appends a clone(2) without CLONE_VM. What parent appends is performed by
// the process at hand, and must end in exit; the new process goes on behind it.
func (p *Program) Fork(words string, cloneFlags uint64, pidfd any, parent func(p *Program, child Ref)) Ref {
	at := p.Call(words, fork, unix.SYS_CLONE, cloneFlags, 0, pidfd, 0, 0)
	parent(p, at)
	p.steps[at].over = len(p.steps) - int(at) - 1
	return at
}

// Spare appends steps that are not always needed, at most 256. The first one must
// return 0: it is made all the same.
func (p *Program) Spare(steps ...Step) {
	from := len(p.steps)
	p.steps = append(p.steps, steps...)
	p.spare = append(p.spare, [2]int{from, len(p.steps)})
}

// PassOver has the spare steps passed over. They keep their numbers: stage0 goes on
// behind them as the new process of a Fork does.
func (p *Program) PassOver() {
	for _, s := range p.spare {
		p.steps[s[0]].Flags |= fork
		p.steps[s[0]].over = s[1] - s[0] - 1
	}
}

// Become appends a last step, behind which the process is a machine's minimal init without
// executing it: it only gives the list's memory up, and closes all descriptors from 3 on,
// as execve(2) would.
func (p *Program) Become(words string, nr int, args ...any) { p.Call(words, become, nr, args...) }

// Exit appends exit_group(code).
func (p *Program) Exit(code int) { p.Call(fmt.Sprintf("exit %d", code), 0, unix.SYS_EXIT_GROUP, code) }

// Exec appends the call that ends the program: argv[0] must be a path.
func (p *Program) Exec(argv, env []string) {
	p.Call("exec "+strings.Join(argv, " "), 0, unix.SYS_EXECVE, argv[0], argv, env)
}

// Steps returns the steps so far.
func (p *Program) Steps() []Step { return p.steps }

// Len is the number of steps so far.
func (p *Program) Len() int { return len(p.steps) }

// Hold has stage0 started with a descriptor that no step uses: it says by being
// closed that the program has been executed.
func (p *Program) Hold(fd FD) { p.held = append(p.held, fd) }

// FDs returns the names of the descriptors that the program is started with, each
// once: first those held, then the others in the order of their first use.
func (p *Program) FDs() []FD {
	names := slices.Clone(p.held)
	seen := map[FD]bool{}
	for _, name := range names {
		seen[name] = true
	}
	find := func(a any) {
		if name, ok := a.(FD); ok && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	for _, s := range p.steps {
		for _, a := range s.Args {
			find(a)
			if words, ok := a.(Words); ok {
				for _, w := range words {
					find(w)
				}
			}
		}
	}
	return names
}

const (
	headerSize = 64
	stepSize   = 64
)

// assembly is a program being laid out.
type assembly struct {
	b      []byte
	texts  map[string]uint64 // where each string is, once
	number map[FD]int
}

func (l *assembly) data(d []byte) uint64 {
	for len(l.b)%8 != 0 {
		l.b = append(l.b, 0)
	}
	at := uint64(Base + len(l.b))
	l.b = append(l.b, d...)
	return at
}

func (l *assembly) text(s string) uint64 {
	at, ok := l.texts[s]
	if !ok {
		at = uint64(Base + len(l.b))
		l.b = append(append(l.b, s...), 0)
		l.texts[s] = at
	}
	return at
}

// argument lays out the argument j of the step i. Of a Ref it is the number of the
// step, whose result stage0 puts in its place.
func (l *assembly) argument(s *Step, i, j int, a any) (uint64, error) {
	switch a := a.(type) {
	case int:
		return uint64(a), nil
	case uint64:
		return a, nil
	case uintptr:
		return uint64(a), nil
	case Bits:
		if a == 0 || j != 1 {
			return 0, fmt.Errorf("stage0: %s: argument %d: bits %#x, want some, as argument 1", s.Words, j, a)
		}
		return uint64(a), nil
	case Signals:
		if a == 0 || j != 0 {
			return 0, fmt.Errorf("stage0: %s: argument %d: signals %#x, want some, as argument 0", s.Words, j, a)
		}
		return uint64(a), nil
	case Ref:
		if a < 0 || int(a) >= i {
			return 0, fmt.Errorf("stage0: %s: argument %d: step %d is not before step %d", s.Words, j, a, i)
		}
		return uint64(a), nil
	case Tail:
		if a.Step < 0 || int(a.Step) >= i || a.From < 0 || a.From > 5 {
			return 0, fmt.Errorf("stage0: %s: argument %d: no argument %d of a step %d before step %d", s.Words, j, a.From, a.Step, i)
		}
		return Base + uint64(ArgOffset(a.Step, a.From)), nil
	case FD:
		n, ok := l.number[a]
		if !ok {
			return 0, fmt.Errorf("stage0: %s: no descriptor %q", s.Words, a)
		}
		return uint64(n), nil
	case string:
		if strings.IndexByte(a, 0) >= 0 {
			return 0, fmt.Errorf("%s: a NUL byte in %q", s.Words, a)
		}
		return l.text(a), nil
	case []byte:
		return l.data(a), nil
	case Buffer:
		if a < 0 || a > MaxSize {
			return 0, fmt.Errorf("stage0: %s: a buffer of %d bytes, want 0 to %d", s.Words, a, MaxSize)
		}
		return l.data(make([]byte, a)), nil
	case Words:
		list := make([]byte, 0, 8*len(a))
		for _, w := range a {
			if _, ok := w.(Ref); ok {
				return 0, fmt.Errorf("stage0: %s: argument %d: a step's result among words", s.Words, j)
			}
			v, err := l.argument(s, i, j, w)
			if err != nil {
				return 0, err
			}
			list = binary.NativeEndian.AppendUint64(list, v)
		}
		return l.data(list), nil
	case []string:
		list := make([]byte, 0, 8*len(a)+8)
		for _, s := range a {
			if strings.IndexByte(s, 0) >= 0 {
				return 0, fmt.Errorf("a NUL byte in %q", s)
			}
			list = binary.NativeEndian.AppendUint64(list, l.text(s))
		}
		return l.data(append(list, make([]byte, 8)...)), nil
	}
	return 0, fmt.Errorf("stage0: %s: argument %d is a %T", s.Words, j, a)
}

// Assemble lays the program out as stage0 reads it; number tells the descriptor
// that each FD has in the new process.
func (p *Program) Assemble(number map[FD]int) ([]byte, error) {
	l := assembly{make([]byte, headerSize+stepSize*len(p.steps), headerSize+stepSize*len(p.steps)+4096), map[string]uint64{}, number}
	for i := range p.steps {
		s := &p.steps[i]
		flags := uint32(s.Flags)
		if s.over > 0xff {
			return nil, fmt.Errorf("stage0: %s: %d steps to pass over, at most 255", s.Words, s.over)
		}
		flags |= uint32(s.over) << 24
		var args [6]uint64
		for j, a := range s.Args {
			v, err := l.argument(s, i, j, a)
			if err != nil {
				return nil, err
			}
			switch a.(type) {
			case Ref:
				flags |= 1 << (8 + j)
			case Bits:
				flags |= uint32(bits)
			case Signals:
				flags |= uint32(signals)
			}
			args[j] = v
		}
		at := l.b[headerSize+stepSize*i:]
		binary.NativeEndian.PutUint32(at[0:], uint32(s.Nr))
		binary.NativeEndian.PutUint32(at[4:], flags)
		for j, v := range args {
			binary.NativeEndian.PutUint64(at[8+8*j:], v)
		}
		if len(l.b) > MaxSize {
			return nil, fmt.Errorf("arguments and environment of %d bytes: at most %d: %w", len(l.b), MaxSize, unix.E2BIG)
		}
	}
	return l.b, nil
}

// Result is the result of a step, as found in the memory file.
func Result(blob []byte, step Ref) int64 {
	return int64(binary.NativeEndian.Uint64(blob[headerSize+stepSize*int(step)+56:]))
}

// Failed tells at which step the program gave up, and why; ok is false while it has not.
func Failed(blob []byte) (step Ref, errno unix.Errno, ok bool) {
	n := binary.NativeEndian.Uint64(blob[8:])
	if n == 0 {
		return 0, 0, false
	}
	return Ref(n - 1), unix.Errno(binary.NativeEndian.Uint64(blob[16:])), true
}

// ResultOffset is where a step's result is in the memory file; Int64 reads it.
func ResultOffset(step Ref) int64 { return headerSize + stepSize*int64(step) + 56 }

// Int64 reads a word as stage0 writes it.
func Int64(b []byte) int64 { return int64(binary.NativeEndian.Uint64(b)) }

// Sabotage makes a step fail whatever its flags: its number becomes that of no
// system call. For tests of what is left behind.
func Sabotage(blob []byte, step Ref) {
	at := headerSize + stepSize*int(step)
	binary.NativeEndian.PutUint32(blob[at:], 0xffff)
	binary.NativeEndian.PutUint32(blob[at+4:], 0)
}

// Int32 reads a 32-bit number that a system call has stored.
func Int32(b []byte) int32 { return int32(binary.NativeEndian.Uint32(b)) }

// ArgOffset is where a step's argument is in the memory file.
func ArgOffset(step Ref, arg int) int64 {
	return headerSize + stepSize*int64(step) + 8 + 8*int64(arg)
}
