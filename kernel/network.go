package kernel

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
	"msh/kernel/stage0"
)

// A machine's own network is prepared before anything is in it. Its loopback is up.
// MPTCP is off: no checkpoint can hold its sockets, and Go's listeners ask for it.
// IPv6 is off where nothing asks for it: on a large switch it is most of the traffic.

// netSetting is a parameter of a new network; one that the kernel lacks is left out.
type netSetting struct{ key, value, words string }

func (p *Plan) netSettings() []netSetting {
	all := []netSetting{{"net/mptcp/enabled", "0", "turn MPTCP off"}}
	if !p.IPv6 {
		return append(all, netSetting{"net/ipv6/conf/all/disable_ipv6", "1", "turn IPv6 off"})
	}
	// Nobody waits for another to object to an address (RFC 4862, 5.4): msh
	// hands each out once, as it does the MACs of link-local ones.
	return append(all, netSetting{"net/ipv6/conf/default/accept_dad", "0", "use IPv6 addresses at once"})
}

const (
	loopback = "lo"
	loWords  = "take lo up"
)

// netAhead tells whether msh makes the network, on a thread of its own while it makes
// other things, and the child only enters it: for a machine that is cloned by msh
// itself and whose root is the host's. Else clone(2) makes it, in the user namespace
// and by the process that must have made it.
func (p *Plan) netAhead() bool { return p.Spec.netAhead(p.Under) }

func (s *Spec) netAhead(under Under) bool {
	return s.ownsNetwork() && !s.Has("uidspace") && !s.Has("timespace") && under.Space == 0 && !under.User
}

// startedNet is a network that is being made, from before the machine is planned: the
// kernel takes longer for it than for all else that comes before the clone.
type startedNet struct {
	made <-chan netx.Made
	plan chan *Plan // tells how it is to be set, or by its end that nobody will want it
}

func startNetwork() *startedNet {
	n := &startedNet{plan: make(chan *Plan, 1)}
	n.made = netx.MakeAhead(func() error {
		p := <-n.plan
		if p == nil {
			return nil
		}
		for _, s := range p.netSettings() {
			netx.WriteSysctl(s.key, s.value) // as far as the kernel has it
		}
		return netx.TakeUp(loopback)
	})
	return n
}

// drop ends one that nobody has taken, as soon as it is made.
func (n *startedNet) drop() {
	if n.made == nil {
		return
	}
	close(n.plan)
	if made := <-n.made; made.Err == nil {
		made.NS.Close()
	}
}

// giveNetwork waits for it and hands it to the child, which is started before it is there:
// that takes some time as well.
func (t *Txn) giveNetwork(c *Child) error {
	if err := t.step("make the machine's network"); err != nil {
		return err
	}
	made := <-t.network.made
	t.network.made = nil
	if made.Err != nil {
		return explainClone(made.Err, unix.CLONE_NEWNET)
	}
	t.net = made.NS
	if err := t.step("give the child its network"); err != nil {
		return err
	}
	// EPIPE: it has ended, and its list tells why.
	if err := unix.Sendmsg(c.sync, []byte("n"), unix.UnixRights(t.net.FD()), nil, unix.MSG_NOSIGNAL); err != nil && err != unix.EPIPE {
		return fmt.Errorf("give the child its network: %w", err)
	}
	return nil
}

// takeNetwork enters it. The kernel gives what is handed over the lowest number that is
// free: that of its place, which is right behind the line to msh and held until then.
func (s *Steps) takeNetwork() {
	s.Call("make room for its network", 0, unix.SYS_CLOSE, netFD)
	room := unix.CmsgSpace(4)
	message := stage0.Words{0, 0, stage0.Words{stage0.Buffer(1), 1}, 1, stage0.Buffer(room), room, 0} // struct msghdr
	s.Call("take it from msh", stage0.Positive, unix.SYS_RECVMSG, syncFD, message, unix.MSG_CMSG_CLOEXEC)
	s.Call("enter its network", 0, unix.SYS_SETNS, netFD, unix.CLONE_NEWNET)
}

// newNetwork has the child do it itself.
func (s *Steps) newNetwork() {
	for _, set := range s.Plan.netSettings() {
		fd := s.Call("open "+set.key, stage0.SkipNext, unix.SYS_OPENAT, stage0.AtCwd, "/proc/sys/"+set.key, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		s.Call(set.words, stage0.MayFail, unix.SYS_WRITE, fd, set.value, len(set.value))
	}
	fd := s.Call("open a socket", 0, unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	ifreq := make([]byte, 40) // struct ifreq: the name, then the flags
	copy(ifreq, loopback)
	binary.NativeEndian.PutUint16(ifreq[unix.IFNAMSIZ:], unix.IFF_UP|unix.IFF_RUNNING)
	s.Call(loWords, 0, unix.SYS_IOCTL, fd, unix.SIOCSIFFLAGS, ifreq)
	s.Call("close it", 0, unix.SYS_CLOSE, fd)
}
