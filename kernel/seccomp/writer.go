package seccomp

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// A filter is written from its end to its beginning: a jump leads forward only, so
// that what it leads to is there already, and its distance known. What many ways end
// in is there once, as long as they reach it.
type writer struct {
	code    []instruction    // the last one first
	ends    map[uint32]int   // where a return of that value was written last
	decided map[string]place // by system calls, where what depends on their arguments is
}

// instruction is a struct sock_filter.
type instruction struct {
	op     uint16
	jt, jf uint8
	k      uint32
}

// place is where to go on: an instruction, counted from the end, the last being 1;
// or with 0 any return of the value.
type place struct {
	at  int
	ret uint32
}

const (
	jumpEqual          = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jumpGreater        = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	jumpGreaterOrEqual = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
)

// reach is how far a conditional jump leads at most, less what may come between it
// and one of its ends when the other is too far.
const reach = 255 - 1

func newWriter() *writer { return &writer{ends: map[uint32]int{}, decided: map[string]place{}} }

func (w *writer) put(i instruction) place {
	w.code = append(w.code, i)
	return place{at: len(w.code)}
}

// near is a place that a jump can reach which is written next.
func (w *writer) near(p place) place {
	if p.at == 0 {
		if at, ok := w.ends[p.ret]; ok && len(w.code)-at <= reach {
			return place{at: at}
		}
		end := w.put(instruction{op: unix.BPF_RET | unix.BPF_K, k: p.ret})
		w.ends[p.ret] = end.at
		return end
	}
	if far := len(w.code) - p.at; far > reach {
		return w.put(instruction{op: unix.BPF_JMP | unix.BPF_JA, k: uint32(far)})
	}
	return p
}

// jump goes to yes where the loaded word stands to v as op says, else to no.
func (w *writer) jump(op uint16, v uint32, yes, no place) place {
	if yes == no {
		return yes
	}
	yes, no = w.near(yes), w.near(no)
	n := len(w.code)
	return w.put(instruction{op, uint8(n - yes.at), uint8(n - no.at), v})
}

// load loads a word of struct seccomp_data and goes on.
func (w *writer) load(off uint32, p place) place {
	w.next(p)
	return w.put(instruction{op: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, k: off})
}

// and keeps those bits of the word and goes on.
func (w *writer) and(bits uint32, p place) place {
	w.next(p)
	return w.put(instruction{op: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, k: bits})
}

// next has the place come right behind what is written next.
func (w *writer) next(p place) {
	if p = w.near(p); p.at != len(w.code) {
		w.put(instruction{op: unix.BPF_JMP | unix.BPF_JA, k: uint32(len(w.code) - p.at)})
	}
}

// bytes lays it out, from its beginning.
func (w *writer) bytes() []byte {
	b := make([]byte, 0, InstructionSize*len(w.code))
	for _, i := range slices.Backward(w.code) {
		b = binary.NativeEndian.AppendUint16(b, i.op)
		b = append(b, i.jt, i.jf)
		b = binary.NativeEndian.AppendUint32(b, i.k)
	}
	return b
}
