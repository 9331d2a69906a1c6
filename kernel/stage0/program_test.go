package stage0

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAssembleErrors(t *testing.T) {
	many := func(p *Program, n int) {
		for range n {
			p.Call("x", 0, unix.SYS_GETPID)
		}
	}
	tests := []struct {
		name string
		call func(p *Program)
		want string
	}{
		{"good", func(p *Program) { p.Call("x", 0, 1, 1, uint64(1), uintptr(1), "s", []byte("b"), Buffer(0)) }, ""},
		{"FD", func(p *Program) { p.Call("x", 0, 1, FD("none")) }, `no descriptor "none"`},
		{"type", func(p *Program) { p.Call("x", 0, 1, 0, 1.5) }, "argument 1 is a float64"},
		{"nil", func(p *Program) { p.Call("x", 0, 1, nil) }, "argument 0 is a <nil>"},
		{"NUL", func(p *Program) { p.Call("x", 0, 1, "a\x00b") }, "a NUL byte"},
		{"NUL in a list", func(p *Program) { p.Exec([]string{"a", "b\x00"}, nil) }, "a NUL byte"},
		{"Ref to itself", func(p *Program) { p.Call("x", 0, 1, Ref(0)) }, "step 0 is not before"},
		{"Ref below 0", func(p *Program) { p.Call("x", 0, 1, Ref(-1)) }, "step -1 is not before"},
		{"Buffer below 0", func(p *Program) { p.Call("x", 0, 1, Buffer(-1)) }, "a buffer of -1 bytes"},
		{"Buffer too big", func(p *Program) { p.Call("x", 0, 1, Buffer(MaxSize+1)) }, "a buffer of 16777217 bytes"},
		{"big", func(p *Program) { p.Call("x", 0, 1, Buffer(MaxSize-headerSize-stepSize)) }, ""},
		{"too big", func(p *Program) { p.Call("x", 0, 1, Buffer(MaxSize-headerSize-stepSize+1)) }, "at most 16777216"},
		{"words", func(p *Program) { p.Call("x", 0, 1, Words{1, "s", []byte("b"), Words{uint64(2)}}) }, ""},
		{"words with what they cannot have", func(p *Program) { p.Call("x", 0, 1); p.Call("x", 0, 1, Words{Ref(0)}) }, "a step's result among words"},
		{"words of a type", func(p *Program) { p.Call("x", 0, 1, Words{1.5}) }, "argument 0 is a float64"},
		{"tail", func(p *Program) { p.Call("x", 0, 1); p.Call("x", 0, 1, Tail{0, 5}) }, ""},
		{"tail of itself", func(p *Program) { p.Call("x", 0, 1, Tail{0, 5}) }, "no argument 5 of a step 0 before step 0"},
		{"tail of no argument", func(p *Program) { p.Call("x", 0, 1); p.Call("x", 0, 1, Tail{0, 6}) }, "no argument 6 of a step 0"},
		{"bits", func(p *Program) { p.Call("x", 0, 1, 0, Bits(1)); p.Call("x", 0, 1, Signals(1)) }, ""},
		{"no bits", func(p *Program) { p.Call("x", 0, 1, 0, Bits(0)) }, "argument 1: bits 0x0, want some, as argument 1"},
		{"bits elsewhere", func(p *Program) { p.Call("x", 0, 1, Bits(1)) }, "argument 0: bits 0x1, want some, as argument 1"},
		{"no signals", func(p *Program) { p.Call("x", 0, 1, Signals(0)) }, "argument 0: signals 0x0, want some, as argument 0"},
		{"signals elsewhere", func(p *Program) { p.Call("x", 0, 1, 0, Signals(1)) }, "argument 1: signals 0x1, want some, as argument 0"},
		{"255 over", func(p *Program) { p.Fork("x", 0, 0, func(p *Program, _ Ref) { many(p, 255) }) }, ""},
		{"256 over", func(p *Program) { p.Fork("x", 0, 0, func(p *Program, _ Ref) { many(p, 256) }) }, "256 steps to pass over"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := New()
			tt.call(p)
			_, err := p.Assemble(nil)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
	p := New()
	p.Exec([]string{"/bin/true", strings.Repeat("x", MaxSize)}, nil)
	if _, err := p.Assemble(nil); !errors.Is(err, unix.E2BIG) {
		t.Errorf("a long argument: %v, want E2BIG", err)
	}
}

func TestFDs(t *testing.T) {
	p := New()
	p.Call("x", 0, 1, FD("b"), 1, FD("a"))
	p.Call("x", 0, 1, FD("a"), FD("c"), FD("b"))
	if got, want := p.FDs(), []FD{"b", "a", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzAssemble writes programs from bytes: a result must be whole, and every
// pointer lead to the argument it stands for.
func FuzzAssemble(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x06\x00\x00\x00\x01\x02\x03\x05\x04text\x06\x03abc\x05\x04text"))
	f.Add([]byte("\x05\x08\x02\x03one\x05three\x07\x10\x00\x00\x00\x00\x00\x00\x00\x09\x03"))
	f.Add([]byte("\x01\x07\xff\xff\xff\xff\xff\xff\xff\xff\x01\x07\xff\xff\xff\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, in []byte) {
		p := New()
		write(p, &source{in})
		b, err := p.Assemble(map[FD]int{"a": 4, "b": 5})
		if err != nil {
			return
		}
		if least := headerSize + stepSize*p.Len(); len(b) < least || len(b) > MaxSize {
			t.Fatalf("%d bytes, want %d to %d", len(b), least, MaxSize)
		}
		if _, _, failed := Failed(b); failed {
			t.Error("failed before it was performed")
		}
		for i, s := range p.Steps() {
			flags := binary.NativeEndian.Uint32(b[headerSize+stepSize*i+4:])
			if Result(b, Ref(i)) != 0 {
				t.Errorf("step %d has a result", i)
			}
			if over := int(flags >> 24); i+over >= p.Len() {
				t.Errorf("step %d of %d passes over %d", i, p.Len(), over)
			}
			for j, a := range s.Args {
				value := binary.NativeEndian.Uint64(b[headerSize+stepSize*i+8+8*j:])
				_, isRef := a.(Ref)
				if marked := flags>>(8+j)&1 != 0; marked != isRef || isRef && value >= uint64(i) {
					t.Errorf("step %d, argument %d: %T %d, flags %#x", i, j, a, value, flags)
				}
				at := func() []byte { // what the argument points to
					if off := dataOffset(b, Ref(i), j); off >= headerSize+stepSize*p.Len() && off <= len(b) {
						return b[off:]
					}
					t.Fatalf("step %d, argument %d points to %#x, the data ends at %#x", i, j, value, Base+len(b))
					return nil
				}
				switch a := a.(type) {
				case string:
					wantText(t, at(), a)
				case []byte:
					if got := string(at()); !strings.HasPrefix(got, string(a)) {
						t.Errorf("step %d, argument %d: other bytes", i, j)
					}
				case Buffer:
					if zeros := at()[:a]; strings.Trim(string(zeros), "\x00") != "" {
						t.Errorf("step %d, argument %d: no zeros", i, j)
					}
				case []string:
					list := at()
					if value%8 != 0 {
						t.Errorf("step %d, argument %d: pointers at %#x", i, j, value)
					}
					for k, s := range a {
						off := binary.NativeEndian.Uint64(list[8*k:]) - Base
						if off > uint64(len(b)) {
							t.Fatalf("step %d, argument %d, element %d points to %#x", i, j, k, off+Base)
						}
						wantText(t, b[off:], s)
					}
					if end := binary.NativeEndian.Uint64(list[8*len(a):]); end != 0 {
						t.Errorf("step %d, argument %d ends in %#x, want NULL", i, j, end)
					}
				}
			}
		}
	})
}

func wantText(t *testing.T, at []byte, want string) {
	t.Helper()
	if got, _, ok := strings.Cut(string(at), "\x00"); !ok || got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

// write appends what the source says until it is empty.
func write(p *Program, in *source) {
	for len(in.b) > 0 {
		args := make([]any, in.byte()%8)
		if len(args) == 7 { // no call takes that many
			p.Fork("fork", uint64(in.byte()), in.argument(), func(p *Program, _ Ref) { write(p, &source{in.bytes()}) })
			continue
		}
		flags := Flags(in.byte() & byte(MayFail|SkipNext|Positive))
		nr := int(in.byte())
		for i := range args {
			args[i] = in.argument()
		}
		p.Call("call", flags, nr, args...)
	}
}

// A source gives out bytes, and zeros behind its end.
type source struct{ b []byte }

func (in *source) take(n int) []byte {
	n = min(n, len(in.b))
	got := in.b[:n]
	in.b = in.b[n:]
	return got
}

func (in *source) byte() byte {
	if b := in.take(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (in *source) bytes() []byte { return in.take(int(in.byte())) }

func (in *source) number() uint64 {
	var b [8]byte
	copy(b[:], in.take(8))
	return binary.LittleEndian.Uint64(b[:])
}

func (in *source) argument() any {
	switch in.byte() % 11 {
	case 0:
		return int(in.number())
	case 1:
		return in.number()
	case 2:
		return uintptr(in.number())
	case 3:
		return Ref(int8(in.byte()))
	case 4:
		return []FD{"a", "b", "c"}[in.byte()%3] // c is not open
	case 5:
		return string(in.bytes())
	case 6:
		return in.bytes()
	case 7:
		return Buffer(in.number())
	case 8:
		list := make([]string, in.byte()%8)
		for i := range list {
			list[i] = string(in.bytes())
		}
		return list
	case 9:
		return Buffer(in.byte())
	}
	return nil
}
