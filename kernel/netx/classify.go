package netx

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The hooks of an interface (clsact), where filters see each frame: as it comes in,
// before a bridge or IP does, and before it is queued to leave. To add or to remove
// them empties the interface's queue (dev_deactivate in qdisc_graft), so an interface
// has them from when it is first shaped, and keeps them as long as it has a filter or
// a queue of msh's.
const (
	ingress = netlink.HANDLE_MIN_INGRESS
	egress  = netlink.HANDLE_MIN_EGRESS

	clsact       = 0xfffffff1 // TC_H_CLSACT
	clsactHandle = 0xffff0000
)

// The filters' priorities, the smaller one first. They are their mark too.
const (
	prioLoss   = 0x6d73 + iota // loses some
	prioDetour                 // the rest goes through the ifb
	prioPatch                  // or out of the patch's other end

	prioHold = prioLoss - 1 // keeps all
)

// hooks is held from the look whether anybody needs the hooks to their end.
var hooks sync.Mutex

// hookLoss loses frames at a hook: chance of 2^32. It takes the place of an earlier
// one in one step. Who sends from the interface itself is not told: TC_ACT_SHOT would
// be an error to him, and TCP would know at once.
func (n *NS) hookLoss(link int, where uint32, chance uint64) error {
	return n.hookProgram(link, where, prioLoss, "loss", asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.LoadImm(asm.R1, int64(chance), asm.DWord),
		asm.JLT.Reg(asm.R0, asm.R1, "lose"),
		asm.Mov.Imm(asm.R0, -1), // TC_ACT_UNSPEC: on to the next filter
		asm.Return(),
		asm.Mov.Imm(asm.R0, 4).WithSymbol("lose"), // TC_ACT_STOLEN
		asm.Return(),
	})
}

// hookPatch sends all that comes in out through another interface. bpf_redirect's
// own answer, TC_ACT_REDIRECT, is the program's. An ordinary user may load none, and
// has mirred do the same.
func (n *NS) hookPatch(link, to int) error {
	if OneWay {
		return n.hookRedirect(link, to, prioPatch, "redirection out of another interface")
	}
	return n.hookProgram(link, ingress, prioPatch, "patch", asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(to)),
		asm.Mov.Imm(asm.R2, 0), // leave, rather than come in
		asm.FnRedirect.Call(),
		asm.Return(),
	})
}

// hookProgram puts a program at a hook, or in the place of the one that is there.
func (n *NS) hookProgram(link int, where uint32, prio uint16, name string, code asm.Instructions) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: code})
	if errors.Is(err, unix.EPERM) { // cilium/ebpf suspects RLIMIT_MEMLOCK, which programs do not count to since Linux 5.11
		if OneWay {
			return &Missing{"netem, by which alone an ordinary user can have " + name, "sudo modprobe sch_netem (CONFIG_NET_SCH_NETEM), or run msh as root", errors.New("BPF programs, the other way, it takes from root alone")}
		}
		return fmt.Errorf("load the BPF program: %w: it needs CAP_BPF and CAP_NET_ADMIN on the host", unix.EPERM)
	}
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ENOSYS) {
		return &Missing{"BPF programs for traffic", bpfMend, err}
	} else if err != nil {
		return fmt.Errorf("load the BPF program: %w", err)
	}
	defer p.Close() // the filter keeps it
	hooks.Lock()
	defer hooks.Unlock()
	if err := n.addHooks(link); err != nil {
		return err
	}
	req := filterRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE, link, where, 1, prio)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_FD, nl.Uint32Attr(uint32(p.FD())))
	options.AddRtAttr(nl.TCA_BPF_NAME, nl.ZeroTerminated("msh-"+name))
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	req.AddData(options)
	switch err := n.execute(req); err {
	case nil:
		return nil
	case unix.ENOENT:
		return errors.Join(&Missing{"BPF filters", bpfMend, err}, n.dropHooks(link))
	default:
		return errors.Join(fmt.Errorf("add a BPF filter: %w", err), n.dropHooks(link))
	}
}

const bpfMend = "a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS (modprobe cls_bpf sch_ingress)"

// hookDetour sends all that comes in through the interface's ifb. That is mirred's
// work: an ifb drops what a BPF program has redirected (skb->redirected in ifb_xmit).
func (n *NS) hookDetour(link int) error {
	return n.hookRedirect(link, ifbIndex(link), prioDetour, "redirection to an ifb")
}

func (n *NS) hookRedirect(link, to int, prio uint16, what string) error {
	h, err := n.Route()
	if err != nil {
		return err
	}
	hooks.Lock()
	defer hooks.Unlock()
	if err := n.addHooks(link); err != nil {
		return err
	}
	err = h.FilterAdd(&netlink.U32{ // without a selector it matches all
		FilterAttrs: netlink.FilterAttrs{LinkIndex: link, Parent: ingress, Handle: 0x80000800, Priority: prio, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(to)},
	})
	switch {
	case err == nil || errors.Is(err, unix.EEXIST): // where it leads never changes
		return nil
	case errors.Is(err, unix.ENOENT):
		err = &Missing{what, "a kernel with CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED (modprobe cls_u32 act_mirred)", err}
	default:
		err = fmt.Errorf("add a filter: %w", err)
	}
	return errors.Join(err, n.dropHooks(link))
}

// unhook takes a filter away. One that is not there is no error, nor is an interface
// that is gone.
func (n *NS) unhook(link int, where uint32, prio uint16) error {
	hooks.Lock()
	defer hooks.Unlock()
	err := n.execute(filterRequest(unix.RTM_DELTFILTER, 0, link, where, 0, prio))
	switch err {
	case unix.EINVAL, unix.ENODEV: // no hooks
		return nil
	case nil, unix.ENOENT:
		return n.dropHooks(link)
	default:
		return fmt.Errorf("delete a filter: %w", err)
	}
}

// hooked tells whether an interface has a filter of msh's.
func (n *NS) hooked(link int, where uint32, prio uint16) (bool, error) {
	all, err := n.filters(link, where)
	if err != nil {
		return false, err
	}
	for _, f := range all {
		if f.Attrs().Priority == prio {
			return true, nil
		}
	}
	return false, nil
}

// filters lists those at a hook, msh's and others.
func (n *NS) filters(link int, where uint32) ([]netlink.Filter, error) {
	h, err := n.Route()
	if err != nil {
		return nil, err
	}
	all, err := h.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: link}}, where)
	if err != nil && !errors.Is(err, unix.EINVAL) { // no hooks
		return nil, fmt.Errorf("list the filters: %w", err)
	}
	return all, nil
}

// addHooks gives an interface its hooks, if it has none. The caller holds hooks.
func (n *NS) addHooks(link int) error {
	err := n.execute(qdiscRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, link, clsact, clsactHandle, "clsact"))
	switch err {
	case nil, unix.EEXIST:
		return nil
	case unix.ENOENT:
		return &Missing{"hooks for filters (clsact)", bpfMend, err}
	default:
		return fmt.Errorf("add the hooks for filters: %w", err)
	}
}

// prepareHooks is for an interface that is about to get a queue, and may get a
// filter later. A kernel without hooks will say so then.
func (n *NS) prepareHooks(link int) error {
	hooks.Lock()
	defer hooks.Unlock()
	err := n.addHooks(link)
	if errors.As(err, new(*Missing)) {
		return nil
	}
	return err
}

// dropHooks takes the hooks away if no filter is left at either, and no queue. The
// caller holds hooks.
func (n *NS) dropHooks(link int) error {
	for _, where := range []uint32{ingress, egress} {
		if all, err := n.filters(link, where); len(all) > 0 || err != nil {
			return err
		}
	}
	if has, err := n.hasQueue(link); has || err != nil {
		return err
	}
	err := n.execute(qdiscRequest(unix.RTM_DELQDISC, 0, link, clsact, clsactHandle, ""))
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("delete the hooks for filters: %w", err)
	}
	return nil
}

// filterRequest is for filters that see all protocols.
func filterRequest(proto, flags, link int, where, handle uint32, prio uint16) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(proto, flags|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(link), Parent: where, Handle: handle,
		Info: netlink.MakeHandle(prio, htons(unix.ETH_P_ALL)),
	})
	return req
}
