package kernel

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
	"msh/kernel/stage0"
)

// capabilities are the names of capabilities(7), at the places of their numbers.
var capabilities = [...]string{"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
	"setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
	"sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
	"sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
	"mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore"}

// capSet is a set of capabilities, a bit for each.
type capSet uint64

const everyCap = ^capSet(0) // those of a newer kernel too

func capsNamed(names ...string) capSet {
	var set capSet
	for _, name := range names {
		n := capNumber(name)
		if n < 0 {
			panic("kernel: no capability " + name)
		}
		set |= 1 << n
	}
	return set
}

// capNumber finds a capability by its name, "net_raw" or "CAP_NET_RAW"; -1 where
// there is none.
func capNumber(name string) int {
	name = strings.TrimPrefix(strings.ToLower(name), "cap_")
	for i, c := range capabilities {
		if c == name {
			return i
		}
	}
	return -1
}

// names are the set's, of those that have one.
func (c capSet) names() []string {
	names := []string{}
	for i, name := range capabilities {
		if c>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return names
}

// engineNames are the names as profiles of container engines have them.
func (c capSet) engineNames() []string {
	names := c.names()
	for i := range names {
		names[i] = "CAP_" + strings.ToUpper(names[i])
	}
	return names
}

func (c capSet) String() string {
	if names := c.names(); len(names) > 0 {
		return strings.Join(names, " ")
	}
	return "none"
}

// ownCaps are those that a program started by msh has as root: what is in neither
// set execve(2) gives nobody.
var ownCaps = sync.OnceValues(func() (capSet, error) {
	b, err := rawfile.Read("/proc/self/status")
	if err != nil {
		return 0, err
	}
	var all capSet
	for line := range strings.Lines(string(b)) {
		name, v, _ := strings.Cut(line, ":")
		if name != "CapBnd" && name != "CapInh" {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/self/status: %s %q: %w", name, v, err)
		}
		all |= capSet(n)
	}
	return all, nil
})

// bound takes capabilities out of the bounding set: no program that is executed
// from now on gets them. That takes CAP_SETPCAP, so it comes before a change of user.
func (s *Steps) bound(kept capSet) {
	if gone := (1<<knownCaps() - 1) &^ stage0.Bits(kept); gone != 0 {
		s.Call("bound capabilities to "+kept.String(), 0, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, gone, 0, 0, 0)
	}
}

// knownCaps is how many capabilities this kernel has: all with a number below it. A newer
// one may have more than have a name here.
var knownCaps = sync.OnceValue(func() int {
	n := len(capabilities)
	has := func(i int) bool {
		_, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0)
		return err == nil
	}
	for has(n) {
		n++
	}
	for n > 0 && !has(n-1) {
		n--
	}
	return n
})

// keepCaps gives up what is had of other capabilities, and all that would be
// inherited. A process that is not root has lost its own with the change of user.
func (s *Steps) keepCaps(kept capSet) {
	s.Call("keep of them "+kept.String(), 0, unix.SYS_CAPSET, capHeader(), capData(kept))
}

// capHeader and capData are what capset(2) wants for this process: effective and
// permitted those kept, inheritable none.
func capHeader() []byte {
	header := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	return binary.NativeEndian.AppendUint32(header, 0)
}

func capData(kept capSet) (data []byte) { // two of struct __user_cap_data_struct
	for _, word := range []uint32{uint32(kept), uint32(kept >> 32)} {
		for _, v := range []uint32{word, word, 0} {
			data = binary.NativeEndian.AppendUint32(data, v)
		}
	}
	return data
}
