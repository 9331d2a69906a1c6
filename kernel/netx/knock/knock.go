// Package knock makes socket calls that a test names, in a process of its own:
// one that can be in a control group, a network namespace, a machine. The test
// binary is that process when it is started again with Env set:
//
//	func TestMain(m *testing.M) { knock.Main(); … }
//	cmd.Env = append(cmd.Env, knock.Env+"=1")
//	cmd.Args = []string{"knock", "tcp4", "bind 0.0.0.0:80", "name"}
//
// The first argument is the kind of socket, and each of the others a call; each
// says one line, what has come of it or the error's name.
package knock

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Env is the variable that makes a test binary knock.
const Env = "MSH_TEST_KNOCK"

// Main knocks and exits, if it is asked to.
func Main() {
	if os.Getenv(Env) == "" {
		return
	}
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	for _, line := range Calls(os.Args[1], os.Args[2:]...) {
		fmt.Println(line)
	}
	os.Exit(0)
}

// protoMPTCP is IPPROTO_MPTCP.
const protoMPTCP = 262

var kinds = map[string][3]int{
	"tcp4":   {unix.AF_INET, unix.SOCK_STREAM, 0},
	"tcp6":   {unix.AF_INET6, unix.SOCK_STREAM, 0},
	"mptcp4": {unix.AF_INET, unix.SOCK_STREAM, protoMPTCP},
	"mptcp6": {unix.AF_INET6, unix.SOCK_STREAM, protoMPTCP},
	"udp4":   {unix.AF_INET, unix.SOCK_DGRAM, 0},
	"udp6":   {unix.AF_INET6, unix.SOCK_DGRAM, 0},
	"ping4":  {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
	"raw4":   {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
	"raw6":   {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW},
}

// Calls makes a socket and calls on it, and returns what came of each call.
func Calls(kind string, calls ...string) []string {
	k, ok := kinds[kind]
	if !ok {
		return []string{"no such kind of socket: " + kind}
	}
	fd, err := unix.Socket(k[0], k[1], k[2])
	if err != nil {
		return []string{"socket: " + name(err)}
	}
	s := &socket{fd, k[0]}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &unix.Timeval{Sec: 5})
	}
	var said []string
	for _, c := range calls {
		said = append(said, s.call(strings.Fields(c)))
	}
	unix.Close(s.fd)
	return said
}

type socket struct{ fd, family int }

func name(err error) string {
	if e, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(e)
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}

func (s *socket) call(w []string) string {
	arg := func(i int) string {
		if i < len(w) {
			return w[i]
		}
		return ""
	}
	var buf [200]byte
	switch w[0] {
	case "bind":
		return name(unix.Bind(s.fd, address(arg(1))))
	case "connect":
		return name(unix.Connect(s.fd, address(arg(1))))
	case "listen":
		return name(unix.Listen(s.fd, 5))
	case "accept":
		fd, from, err := unix.Accept(s.fd)
		for err == unix.EINTR { // as with recv
			fd, from, err = unix.Accept(s.fd)
		}
		if err != nil {
			return name(err)
		}
		s.fd = fd
		return "from " + host(from)
	case "name":
		a, err := unix.Getsockname(s.fd)
		if err != nil {
			return name(err)
		}
		return host(a)
	case "port":
		a, err := unix.Getsockname(s.fd)
		if err != nil {
			return name(err)
		}
		return strconv.Itoa(int(text(a).Port()))
	case "peer":
		a, err := unix.Getpeername(s.fd)
		if err != nil {
			return name(err)
		}
		return host(a)
	case "v6only":
		return name(unix.SetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1))
	case "mark":
		n, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK)
		if err != nil {
			return name(err)
		}
		return fmt.Sprint(uint32(n))
	case "setmark":
		n, _ := strconv.Atoi(arg(1))
		return name(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, n))
	case "send":
		_, err := unix.Write(s.fd, []byte(arg(1)))
		return name(err)
	case "sendto":
		return name(unix.Sendto(s.fd, []byte("hello"), 0, address(arg(1))))
	case "sendfrom": // SOURCE DESTINATION, by IP_PKTINFO
		return name(unix.Sendmsg(s.fd, []byte("hello"), s.source(arg(1)), address(arg(2)), 0))
	case "recv":
		n, from, err := unix.Recvfrom(s.fd, buf[:], 0)
		for err == unix.EINTR { // stopped and started: with a time limit the kernel does not go on by itself
			n, from, err = unix.Recvfrom(s.fd, buf[:], 0)
		}
		if err != nil {
			return name(err)
		}
		if from == nil {
			return string(buf[:n])
		}
		return string(buf[:n]) + " from " + host(from)
	case "ping": // an echo request
		return name(unix.Sendto(s.fd, []byte{8, 0, 0xf7, 0xfe, 0, 1, 0, 0}, 0, address(arg(1)+":0")))
	case "packet": // SOURCE DESTINATION: a whole packet, header and all
		return name(unix.Sendto(s.fd, packet(arg(1), arg(2)), 0, address(bracket(arg(2))+":0")))
	}
	return "no such call: " + w[0]
}

func bracket(a string) string {
	if strings.Contains(a, ":") {
		return "[" + a + "]"
	}
	return a
}

func address(text string) unix.Sockaddr {
	a := netip.MustParseAddrPort(text)
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func text(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func host(a unix.Sockaddr) string { return text(a).Addr().String() }

func (s *socket) source(text string) []byte {
	a := netip.MustParseAddr(text)
	if a.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a.As16()})
}

// packet is an empty UDP datagram to port 9.
func packet(from, to string) []byte {
	src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
	udp := []byte{0, 9, 0, 9, 0, 8, 0, 0}
	if src.Is4() {
		b := make([]byte, 20)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		return append(b, udp...)
	}
	b := make([]byte, 40)
	b[0], b[6], b[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(b[4:], 8)
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, udp...)
}
