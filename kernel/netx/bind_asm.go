package netx

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// groupProgram is a BPF program being written, that the kernel runs for what the
// sockets of a control group do. It has its context in R6, and ends at the label
// allow or deny.
type groupProgram struct {
	name    string
	kind    ebpf.ProgramType
	attach  ebpf.AttachType
	ins     asm.Instructions
	pending string // label of the next instruction
	labels  int
}

const (
	allow     = "allow"
	deny      = "deny"
	elsewhere = "elsewhere" // the socket is one of another network namespace
)

func newGroupProgram(name string, kind ebpf.ProgramType, attach ebpf.AttachType) *groupProgram {
	p := &groupProgram{name: name, kind: kind, attach: attach}
	p.add(asm.Mov.Reg(asm.R6, asm.R1))
	return p
}

func (p *groupProgram) add(ins ...asm.Instruction) {
	for _, i := range ins {
		if p.pending != "" {
			i = i.WithSymbol(p.pending)
			p.pending = ""
		}
		p.ins = append(p.ins, i)
	}
}

func (p *groupProgram) label(name string) {
	if p.pending != "" { // an instruction has one label
		p.add(asm.Ja.Label(name))
	}
	p.pending = name
}

func (p *groupProgram) unique() string {
	p.labels++
	return fmt.Sprintf("l%d", p.labels)
}

func (p *groupProgram) goTo(label string) { p.add(asm.Ja.Label(label)) }

// load reads a word of the context, store writes one: constants only since Linux
// 6.4, so by way of a register.
func (p *groupProgram) load(r asm.Register, off int16) { p.add(asm.LoadMem(r, asm.R6, off, asm.Word)) }

func (p *groupProgram) store(off int16, word int32) {
	p.add(asm.Mov.Imm32(asm.R7, word), asm.StoreMem(asm.R6, off, asm.R7, asm.Word))
}

// onlyHere goes elsewhere unless the socket is one of the network namespace of
// that cookie: a machine inside has the programs too, and may have a network of
// its own.
func (p *groupProgram) onlyHere(cookie uint64) {
	p.add(asm.FnGetNetnsCookie.Call(), asm.LoadImm(asm.R1, int64(cookie), asm.DWord), asm.JNE.Reg(asm.R0, asm.R1, elsewhere))
	p.add(asm.Mov.Reg(asm.R1, asm.R6))
}

// end appends the two ends and drops what nothing leads to, which the kernel
// refuses.
func (p *groupProgram) end() {
	p.goTo(allow)
	for _, l := range []struct {
		name   string
		result int32
	}{{allow, 1}, {deny, 0}} {
		p.label(l.name)
		p.add(asm.Mov.Imm(asm.R0, l.result), asm.Return())
	}
	at := map[string]int{}
	for i, ins := range p.ins {
		if s := ins.Symbol(); s != "" {
			at[s] = i
		}
	}
	reached := make([]bool, len(p.ins))
	var walk func(i int)
	walk = func(i int) {
		for ; i < len(p.ins) && !reached[i]; i++ {
			reached[i] = true
			op := p.ins[i].OpCode.JumpOp()
			if to, ok := at[p.ins[i].Reference()]; ok && op != asm.Call {
				walk(to)
			}
			if op == asm.Exit || op == asm.Ja {
				return
			}
		}
	}
	walk(0)
	var kept asm.Instructions
	for i, ins := range p.ins {
		if reached[i] {
			kept = append(kept, ins)
		}
	}
	p.ins = kept
}

// foreign is a map that remembers of sockets that they are not of the namespace a
// program is for. A program that sees packets only cannot ask (bpf_get_netns_cookie
// is theirs since Linux 6.15), so the one that sees sockets being made writes it down.
func foreign() (*ebpf.Map, error) {
	integer := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	return ebpf.NewMap(&ebpf.MapSpec{
		Name: "msh_foreign", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Key: integer, Value: integer,
		Flags: unix.BPF_F_NO_PREALLOC | unix.BPF_F_CLONE, // accept(2) copies it
	})
}

// remember writes the socket in the context down as foreign, and lets it be.
func (p *groupProgram) remember(m *ebpf.Map) {
	p.add(asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.R6), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, 1), // BPF_SK_STORAGE_GET_F_CREATE
		asm.FnSkStorageGet.Call())
	p.goTo(allow)
}

// onlyForeign lets the packet pass if its socket is foreign, and drops it otherwise.
func (p *groupProgram) onlyForeign(m *ebpf.Map) {
	p.add(
		asm.LoadMem(asm.R1, asm.R6, skbSock, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, deny),
		asm.FnSkFullsock.Call(),
		asm.JEq.Imm(asm.R0, 0, deny),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, deny),
	)
	p.goTo(allow)
}

// attachGroup loads programs and attaches them to a control group of v2, beside
// what it and those above have. They go with it.
func attachGroup(dir string, programs []*groupProgram) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	for _, p := range programs {
		if err := p.attachTo(fd); err != nil {
			return fmt.Errorf("BPF program %s: %w", p.name, err)
		}
	}
	return nil
}

const groupBPF = "Linux 5.14 or later with CONFIG_CGROUP_BPF, CONFIG_BPF_SYSCALL and CONFIG_SOCK_CGROUP_DATA"

func (p *groupProgram) attachTo(dir int) error {
	prog, err := p.loaded()
	if err != nil {
		return err
	}
	defer prog.Close()
	return attachProgram(dir, prog, p.attach)
}

// loaded gives the program to the kernel. The caller closes it.
func (p *groupProgram) loaded() (*ebpf.Program, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: p.name, Type: p.kind, AttachType: p.attach, Instructions: slices.Clone(p.ins), License: "GPL"})
	return prog, explainBPF(err, "load")
}

// attachProgram attaches it to an opened group, which keeps it from then on.
func attachProgram(dir int, prog *ebpf.Program, as ebpf.AttachType) error {
	return explainBPF(link.RawAttachProgram(link.RawAttachProgramOptions{Target: dir, Program: prog, Attach: as, Flags: unix.BPF_F_ALLOW_MULTI}), "attach")
}

func explainBPF(err error, what string) error {
	var wrong *ebpf.VerifierError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM) && what == "attach":
		return fmt.Errorf("attach: %w: a group above has a program that lets no other be beside it (BPF_F_ALLOW_MULTI)", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w: it needs CAP_BPF and CAP_NET_ADMIN on the host", what, unix.EPERM) // and has nothing to do with RLIMIT_MEMLOCK
	case errors.As(err, &wrong), errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL):
		return &Missing{"BPF programs for control groups", groupBPF, err}
	}
	return fmt.Errorf("%s: %w", what, err)
}
