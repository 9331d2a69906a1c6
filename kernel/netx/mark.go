package netx

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// MarkSockets has every inet socket that is made in a control group (v2, by its
// directory) carry a mark, for AddLookup. It is done by BPF programs, which go
// with the group and hold for the groups below it; one of those may have another
// mark. Sockets of other namespaces are let be.
//
// To take a mark off needs CAP_NET_ADMIN or CAP_NET_RAW over the namespace
// (socket(7), SO_MARK). A packet without any is dropped: it has gone another way.
func (n *NS) MarkSockets(dir string, mark uint32) error {
	cookie, err := n.Cookie()
	if err != nil {
		return err
	}
	m, err := foreign()
	if err != nil {
		return explainBPF(err, "make a map")
	}
	defer m.Close()
	all := []*groupProgram{marker(mark, cookie, m), markGuard(m)}
	for _, h := range []struct {
		name   string
		attach ebpf.AttachType
	}{
		{"msh_mark_bind4", ebpf.AttachCGroupInet4Bind}, {"msh_mark_bind6", ebpf.AttachCGroupInet6Bind},
		{"msh_mark_conn4", ebpf.AttachCGroupInet4Connect}, {"msh_mark_conn6", ebpf.AttachCGroupInet6Connect},
	} {
		all = append(all, lateMarker(h.name, h.attach, mark, cookie))
	}
	return attachGroup(dir, all)
}

const sockMark = 16 // in struct bpf_sock

// marker marks a socket that is being made. The programs of a group below have
// been run before (cgroup_bpf_attach in <linux/bpf-cgroup.h>): their mark stays.
func marker(mark uint32, cookie uint64, m *ebpf.Map) *groupProgram {
	p := newGroupProgram("msh_mark", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate)
	p.onlyHere(cookie)
	p.load(asm.R2, sockMark)
	p.add(asm.JNE.Imm(asm.R2, 0, allow))
	p.store(sockMark, int32(mark))
	p.goTo(allow)
	p.label(elsewhere)
	p.remember(m)
	p.end()
	return p
}

// lateMarker marks a socket when it is used, if it has no mark: those that the
// kernel makes for itself below another (MPTCP, which Go's listeners ask for) are
// not seen being made.
func lateMarker(name string, attach ebpf.AttachType, mark uint32, cookie uint64) *groupProgram {
	p := newGroupProgram(name, ebpf.CGroupSockAddr, attach)
	p.onlyHere(cookie)
	p.add(
		asm.LoadMem(asm.R8, asm.R6, addrSock, asm.DWord),
		asm.LoadMem(asm.R7, asm.R8, sockMark, asm.Word),
		asm.JNE.Imm(asm.R7, 0, allow),
		asm.StoreImm(asm.R10, -8, int64(int32(mark)), asm.Word),
		asm.Mov.Imm(asm.R2, unix.SOL_SOCKET),
		asm.Mov.Imm(asm.R3, unix.SO_MARK),
		asm.Mov.Reg(asm.R4, asm.R10),
		asm.Add.Imm(asm.R4, -8),
		asm.Mov.Imm(asm.R5, 4),
		asm.FnSetsockopt.Call(),
	)
	p.goTo(allow)
	p.label(elsewhere)
	p.end()
	return p
}

// markGuard drops what has no mark.
func markGuard(m *ebpf.Map) *groupProgram {
	p := newGroupProgram("msh_marked", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress)
	p.load(asm.R7, skbMark)
	p.add(asm.JNE.Imm(asm.R7, 0, allow))
	p.onlyForeign(m)
	p.end()
	return p
}
