package netx

import (
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
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

// DeviceGuard confines control groups (v2) to some devices: their processes can
// open no other, by whatever name and through whatever mount. Making a node is let
// be, as using it is what counts. It is a BPF program, which v2 has in the place of
// v1's devices controller. Loading it is most of what it costs, so one guard serves
// all groups with the same rules.
type DeviceGuard struct{ prog *ebpf.Program }

// NewDeviceGuard loads one. The caller closes it.
func NewDeviceGuard(rules []DeviceRule) (*DeviceGuard, error) {
	prog, err := deviceProgram(rules).loaded()
	if err != nil {
		return nil, fmt.Errorf("BPF program msh_device: %w", err)
	}
	return &DeviceGuard{prog}, nil
}

// Guard confines a group, by its directory, and those below it, until it ends.
func (g *DeviceGuard) Guard(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return attachProgram(fd, g.prog, ebpf.AttachCGroupDevice)
}

// Close gives the guard up; groups that it confines stay so.
func (g *DeviceGuard) Close() error { return g.prog.Close() }

func deviceProgram(rules []DeviceRule) *groupProgram {
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
	return p
}
