package escape

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These are for machines that share the parent's universe: its network, its
// processes, its names.

func setMark(*Target) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 77); err != nil {
		return fmt.Errorf("SO_MARK: %w", err)
	}
	return nil
}

// addRule puts a rule before those that lead the machine's packets to its own routes.
func addRule(*Target) error {
	r := netlink.NewRule()
	r.Priority, r.Mark, r.Table = 4242, 77, 254
	if err := netlink.RuleAdd(r); err != nil {
		return fmt.Errorf("ip rule add: %w", err)
	}
	return netlink.RuleDel(r)
}

// forge sends from an address that is not its own.
func forge(*Target) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("a raw socket: %w", err)
	}
	defer unix.Close(fd)
	packet := make([]byte, 28)
	packet[0], packet[8], packet[9] = 0x45, 1, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	copy(packet[12:], []byte{127, 0, 0, 99})
	copy(packet[16:], []byte{127, 0, 0, 1})
	binary.BigEndian.PutUint16(packet[22:], 9)
	binary.BigEndian.PutUint16(packet[24:], 8)
	if err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// listenAll reads what others send, at an interface.
func listenAll(*Target) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("a packet socket: %w", err)
	}
	return unix.Close(fd)
}

func abstractSocket(t *Target) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: "@" + t.Socket}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// trace takes a process outside over.
func trace(t *Target) error {
	if t.Victim == 0 {
		return absent("no victim")
	}
	if err := call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(t.Victim), 0, 0); err != nil {
		return fmt.Errorf("ptrace: %w", err)
	}
	unix.PtraceDetach(t.Victim)
	return nil
}

func signalOthers(t *Target) error {
	if t.Victim == 0 {
		return absent("no victim")
	}
	if err := unix.Kill(t.Victim, unix.SIGWINCH); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	return nil
}

func readOthers(t *Target) error {
	if t.Victim == 0 {
		return absent("no victim")
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", t.Victim))
	if err != nil {
		return err
	}
	return f.Close()
}

// rename gives the host the name that it has.
func renameHost(t *Target) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	if name != t.Host {
		return errors.New("it has a name of its own")
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("sethostname: %w", err)
	}
	return nil
}
