package netx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacy is what differs between the two families of iptables-legacy: the layout
// of <linux/netfilter_ipv4/ip_tables.h> and <linux/netfilter_ipv6/ip6_tables.h>.
type legacy struct {
	command string
	names   string // the tables in use in the namespace
	family  int
	level   int
	header  int // bytes of struct ipt_entry, before the matches
	inIface int // where in it the name of the interface is that packets come in by
	target  int // where in it the offset of the target is; that of the next entry follows
	ask     int // bytes of struct ipt_ip: what is asked for, if it is not all zero
}

var legacies = []legacy{
	{"iptables-legacy", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.SOL_IP, 112, 16, 88, 84},
	{"ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6, 168, 64, 140, 136},
}

const (
	soGetInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	soGetEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES

	legacyTarget = 32 // bytes of struct xt_entry_target; the verdict of a standard one follows
	legacyAccept = -verdictAccept - 1
	legacyDrop   = -verdictDrop - 1
)

// legacyInfo is struct ipt_getinfo, and struct ip6t_getinfo.
type legacyInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	numEntries uint32
	size       uint32
}

// legacyEntries is the head of struct ipt_get_entries, and ip6t_get_entries.
type legacyEntries struct {
	name [32]byte
	size uint32
	_    uint32
}

// checkLegacy looks for a filter of iptables-legacy that drops what is forwarded
// from the interface leg.
func (n *NS) checkLegacy(leg string, closed *Closed) error {
	return n.Do(func() error {
		for _, l := range legacies {
			shut, err := l.closes(leg)
			if err != nil {
				return fmt.Errorf("read the filter of %s: %w", l.command, err)
			}
			if shut {
				closed.add(l.command, fmt.Sprintf("%[1]s -I FORWARD -i %[2]s -j ACCEPT && %[1]s -I FORWARD -o %[2]s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", l.command, leg))
			}
		}
		return nil
	})
}

// closes reads the chain FORWARD of the calling thread's namespace. A namespace has
// the table only once somebody has used it, and to ask for it would make it: so the
// list of names is read first.
func (l *legacy) closes(leg string) (bool, error) {
	names, err := os.ReadFile(l.names)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if !slices.Contains(strings.Fields(string(names)), "filter") {
		return false, nil
	}
	info, entries, err := l.read("filter")
	if err != nil {
		return false, err
	}
	return l.chainCloses(entries, info.hookEntry[unix.NF_INET_FORWARD], info.underflow[unix.NF_INET_FORWARD], leg)
}

// read reads a table.
func (l *legacy) read(table string) (*legacyInfo, []byte, error) {
	fd, err := unix.Socket(l.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	info := &legacyInfo{}
	copy(info.name[:], table)
	if err := getsockopt(fd, l.level, soGetInfo, unsafe.Pointer(info), unsafe.Sizeof(*info)); err != nil {
		return nil, nil, err
	}
	head := legacyEntries{name: info.name, size: info.size}
	size := unsafe.Sizeof(head)
	b := make([]byte, size+uintptr(info.size))
	copy(b, unsafe.Slice((*byte)(unsafe.Pointer(&head)), size))
	if err := getsockopt(fd, l.level, soGetEntries, unsafe.Pointer(&b[0]), uintptr(len(b))); err != nil {
		return nil, nil, err
	}
	return info, b[size:], nil
}

// getsockopt passes a buffer that is read as well as written, which x/sys/unix has not.
func getsockopt(fd, level, option int, p unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(p), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// chainCloses goes through the entries of a chain, from the first to that of its
// policy. One that accepts all from leg opens it; the first that has a verdict for
// all decides. Chains it jumps to are not looked into.
func (l *legacy) chainCloses(entries []byte, first, policy uint32, leg string) (bool, error) {
	for at := int(first); at <= int(policy); {
		if at+l.header > len(entries) {
			return false, errors.New("got an entry beyond the table's end")
		}
		e := entries[at:]
		target, next := int(binary.NativeEndian.Uint16(e[l.target:])), int(binary.NativeEndian.Uint16(e[l.target+2:]))
		if target < l.header || next < target+legacyTarget || next > len(e) {
			return false, fmt.Errorf("got an entry of %d bytes with a target at %d", next, target)
		}
		verdict := l.verdict(e[target:next])
		simple := target == l.header // without matches
		switch {
		case !simple || verdict != legacyAccept && verdict != legacyDrop:
		case isZero(e[:l.ask]):
			return verdict == legacyDrop, nil
		case verdict == legacyAccept && l.only(e, leg):
			return false, nil
		}
		at += next
	}
	return false, nil
}

// verdict is that of a target; 0 is RETURN's or none.
func (l *legacy) verdict(target []byte) int {
	name, _, _ := bytes.Cut(target[2:legacyTarget-1], []byte{0})
	switch {
	case string(name) == "REJECT":
		return legacyDrop
	case len(name) == 0 && len(target) >= legacyTarget+4: // XT_STANDARD_TARGET
		return int(int32(binary.NativeEndian.Uint32(target[legacyTarget:])))
	}
	return 0
}

// only tells whether an entry asks for no more than that a packet came in by leg.
func (l *legacy) only(e []byte, leg string) bool {
	name := interfaceBytes(leg)
	ask := slices.Clone(e[:l.ask])
	mask := ask[l.inIface+2*unix.IFNAMSIZ:] // the masks follow both names
	if !bytes.Equal(ask[l.inIface:l.inIface+len(name)], name) || slices.Contains(mask[:len(name)], 0) {
		return false
	}
	clear(ask[l.inIface : l.inIface+unix.IFNAMSIZ])
	clear(mask[:unix.IFNAMSIZ])
	return isZero(ask)
}

func isZero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }
