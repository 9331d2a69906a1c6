package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/netx"
	"msh/kernel/stage0"
)

// An ordinary user can put nothing into the host's network. There the way out of a
// vnet with nat is a process in the host's network that has the other end of an
// interface of the switch's, and makes of what comes out of it sockets of its own, as
// for any rootless container: pasta(1), or where that is missing slirp4netns(1).

// wayOut is one of those programs.
type wayOut struct {
	name, mend string
	argv       func(program, netns string, s *VNetSpec) []string
}

// outNet is the network between switch and program. Nobody else sees it.
var outNet = struct{ net, gateway, address netip.Prefix }{
	netip.MustParsePrefix("169.254.128.0/24"), netip.MustParsePrefix("169.254.128.2/24"), netip.MustParsePrefix("169.254.128.100/24"),
}

var waysOut = []wayOut{
	{"pasta", "passt", func(program, netns string, s *VNetSpec) []string {
		argv := []string{program, "--foreground", "--quiet", "--config-net", "--netns", netns, "--ns-ifname", legPort, "--mtu", strconv.Itoa(s.mtu()),
			// Nothing listens on the host for a machine, and the host's loopback is nobody's.
			"-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw"}
		v4, v6 := s.has(family4), s.has(family6)
		if v4 {
			argv = append(argv, "--address", outNet.address.Addr().String(), "--netmask", strconv.Itoa(outNet.net.Bits()), "--gateway", outNet.gateway.Addr().String())
		}
		switch {
		case !v6:
			argv = append(argv, "--ipv4-only")
		case !v4:
			argv = append(argv, "--ipv6-only")
		}
		return argv
	}},
	{"slirp4netns", "slirp4netns", func(program, netns string, s *VNetSpec) []string {
		argv := []string{program, "--configure", "--disable-host-loopback", "--netns-type=path", "--mtu=" + strconv.Itoa(s.mtu()), "--cidr=" + outNet.net.String()}
		if s.has(family6) {
			argv = append(argv, "--enable-ipv6")
		}
		return append(argv, netns, legPort)
	}},
}

func (s *VNetSpec) mtu() int {
	if s.MTU == 0 {
		return 1500
	}
	return s.MTU
}

// has tells whether the vnet has a subnet of that family.
func (s *VNetSpec) has(family int) bool {
	for _, f := range s.families() {
		if f == family {
			return true
		}
	}
	return false
}

// findWayOut finds the first of them that is installed.
func findWayOut() (*wayOut, string, error) {
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		return nil, "", unsupported("sudo modprobe tun; sudo chmod 666 /dev/net/tun, which gives nobody a right that the kernel does not check again; or run msh as root", "nat=True for an ordinary user without /dev/net/tun (%v)", err)
	}
	for i := range waysOut {
		if path, err := exec.LookPath(waysOut[i].name); err == nil {
			return &waysOut[i], path, nil
		}
	}
	return nil, "", unsupported("install pasta (Debian's package is passt) or slirp4netns, or run msh as root", "nat=True for an ordinary user without pasta or slirp4netns")
}

// overHost tells whether the vnet's parent is in the host's network, into which
// only the host's root can put something.
func (v *VNet) overHost() bool {
	return v.lab.host.space != nil && v.parent.inHostNetwork()
}

func (m *Machine) inHostNetwork() bool { return m.isHost() || m.space()&unix.CLONE_NEWNET == 0 }

// makeUserNAT makes the switch a router whose way out is a process. That is written
// down while it is parked, and so ends with the vnet whatever happens.
func (v *VNet) makeUserNAT(s *stepper, w *wiring) error {
	way, path, err := findWayOut()
	if err != nil {
		return err
	}
	// A switch has no IPv6; a router has, and its leg is to come with it.
	const coming = "default"
	for _, f := range v.spec.families() {
		if err := w.ns.RouterOn(f == family6, "switch", coming); err != nil {
			return explainShape(err)
		}
		for _, p := range v.spec.Subnets {
			if p.Overlaps(outNet.net) {
				return bad("vnet", "subnet", p.String(), "for nat=True of an ordinary user's another one than "+outNet.net.String())
			}
			if p.Addr().Is6() == (f == family6) {
				if err := w.ns.AddAddress(netx.BridgeIndex, netip.PrefixFrom(p.Addr().Next(), p.Bits())); err != nil {
					return fmt.Errorf("give the gateway its address: %w", err)
				}
			}
		}
	}
	logFile := filepath.Join(w.dir, way.name+".log")
	p, err := v.startWayOut(s, w, way.argv(path, filepath.Join(w.dir, pinFile), v.spec), logFile)
	if err != nil {
		return fmt.Errorf("start %s: %w", way.name, err)
	}
	if err := v.awaitWayOut(s.ctx, w, p); err != nil {
		p.kill()
		p.close()
		said, _ := os.ReadFile(logFile)
		return fmt.Errorf("%s: %w: %s", way.name, err, strings.TrimSpace(tail(said)))
	}
	go func() { // it is msh's child, if msh lives to see its end
		reap(p.pidfd)
		p.close()
	}()
	if v.spec.has(family6) { // and no port that comes after
		if err := w.ns.Do(func() error { return netx.WriteSysctl("net/ipv6/conf/"+coming+"/disable_ipv6", "1") }); err != nil {
			return err
		}
	}
	return explainShape(w.ns.Masquerade(natTable, v.spec.Subnets, legPort))
}

// startWayOut starts the program by way of stage0.
func (v *VNet) startWayOut(s *stepper, w *wiring, argv []string, logFile string) (*process, error) {
	line, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(line[0])
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(line[1])
		return nil, err
	}
	defer unix.Close(null)
	log, err := openLog(logFile)
	if err != nil {
		unix.Close(line[1])
		return nil, err
	}
	defer unix.Close(log)
	program := &Steps{Program: stage0.New(), Plan: &Plan{}}
	program.Hold(syncFD)
	program.Call("wait for msh", stage0.Positive, unix.SYS_READ, syncFD, stage0.Buffer(8), 1)
	program.Call("become a session leader", stage0.MayFail, unix.SYS_SETSID)
	program.Call("go to /", 0, unix.SYS_CHDIR, "/")
	program.clean()
	program.Exec(argv, DefaultEnv(nil))
	b := &birth{program: program.Program, stdio: [3]int{null, log, log}, files: map[stage0.FD]int{syncFD: line[1]}, cgroup: -1, pidns: -1}
	p, err := b.start()
	unix.Close(line[1])
	if err != nil {
		return nil, err
	}
	err = s.step("write the way out down")
	if err == nil {
		err = w.ledger.Write("supervisor", watchman{p.pid, startTime(p.pid)})
	}
	if err == nil {
		err = s.step("let it start")
	}
	if err == nil {
		_, err = unix.Write(line[0], []byte("g"))
	}
	if err != nil {
		p.kill()
		p.close()
		return nil, err
	}
	return p, nil
}

// awaitWayOut waits until the switch has its way out.
func (v *VNet) awaitWayOut(ctx context.Context, w *wiring, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, teardown)
	defer cancel()
	return poll(ctx, func() (bool, error) {
		if ended(p.pidfd) {
			err := p.failure()
			if err == nil {
				err = errors.New("it ended at once")
			}
			return false, err
		}
		if !w.ns.Has(legPort) {
			return false, nil
		}
		for _, f := range v.spec.families() {
			routes, err := w.ns.DefaultRoutes(f)
			if err != nil {
				return false, err
			}
			// Of IPv6 there may be none: the host has none then either.
			if len(routes) == 0 && (f == family4 || !v.spec.has(family4)) {
				return false, nil
			}
		}
		return true, nil
	})
}
