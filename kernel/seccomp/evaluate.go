package seccomp

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Evaluate runs a filter as the kernel would for a call of this machine's own ABI,
// and returns what seccomp(2) calls its return value.
func Evaluate(filter []byte, name string, args ...uint64) (uint32, error) {
	a := native()[0]
	nr, ok := a.number(name)
	if !ok {
		return 0, fmt.Errorf("no system call %q", name)
	}
	return evaluate(filter, a.audit, nr, args...)
}

func evaluate(filter []byte, audit, nr uint32, args ...uint64) (uint32, error) {
	var program []bpf.Instruction
	for f := filter; len(f) >= InstructionSize; f = f[InstructionSize:] {
		raw := bpf.RawInstruction{Op: binary.NativeEndian.Uint16(f), Jt: f[2], Jf: f[3], K: binary.NativeEndian.Uint32(f[4:])}
		program = append(program, raw.Disassemble())
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		return 0, err
	}
	// struct seccomp_data, each word as the network has it: that is how this machine reads.
	data := binary.BigEndian.AppendUint32(nil, nr)
	data = binary.BigEndian.AppendUint32(data, audit)
	data = append(data, make([]byte, 8)...) // the instruction pointer
	for i := range 6 {
		v := uint64(0)
		if i < len(args) {
			v = args[i]
		}
		data = binary.BigEndian.AppendUint32(data, uint32(v))
		data = binary.BigEndian.AppendUint32(data, uint32(v>>32))
	}
	n, err := vm.Run(data)
	return uint32(n), err
}

// Allows tells whether a filter's return value lets the call through.
func Allows(ret uint32) bool {
	ret &= unix.SECCOMP_RET_ACTION_FULL
	return ret == unix.SECCOMP_RET_ALLOW || ret == unix.SECCOMP_RET_LOG
}
