package netx

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// DeviceRule lets a control group's processes open device nodes.
type DeviceRule struct {
	Block       bool // else a character device
	Major       uint32
	Minor       uint32
	EveryMinor  bool
	Read, Write bool
}

// Fields of struct bpf_cgroup_dev_ctx, and its numbers.
const (
	devAccess = 0 // the access, shifted by 16, and the type
	devMajor  = 4
	devMinor  = 8

	devBlock, devChar          = 1, 2
	devMknod, devRead, devWrit = 1, 2, 4
)

// GuardDevices confines a control group (v2, by its directory) to some devices: it
// can open no other, by whatever name and through whatever mount. Making a node is
// let be, as using it is what counts. It is done by a BPF program, which v2 has in
// the place of v1's devices controller; it goes with the group, and holds for those below it.
func GuardDevices(dir string, rules []DeviceRule) error {
	p := newGroupProgram("msh_device", ebpf.CGroupDevice, ebpf.AttachCGroupDevice)
	p.load(asm.R2, devAccess)
	p.add(asm.Mov.Reg(asm.R3, asm.R2), asm.And.Imm(asm.R2, 0xffff), asm.RSh.Imm(asm.R3, 16), asm.JEq.Imm(asm.R3, devMknod, allow))
	p.load(asm.R4, devMajor)
	p.load(asm.R5, devMinor)
	for _, r := range rules {
		next := p.unique()
		kind, refused := int32(devChar), int32(devMknod|devRead|devWrit)
		if r.Block {
			kind = devBlock
		}
		if r.Read {
			refused &^= devRead
		}
		if r.Write {
			refused &^= devWrit
		}
		p.add(asm.JNE.Imm(asm.R2, kind, next), asm.JNE.Imm(asm.R4, int32(r.Major), next))
		if !r.EveryMinor {
			p.add(asm.JNE.Imm(asm.R5, int32(r.Minor), next))
		}
		p.add(asm.Mov.Reg(asm.R1, asm.R3), asm.And.Imm(asm.R1, refused), asm.JEq.Imm(asm.R1, 0, allow))
		p.label(next)
	}
	p.goTo(deny)
	p.end()
	return attachGroup(dir, []*groupProgram{p})
}
