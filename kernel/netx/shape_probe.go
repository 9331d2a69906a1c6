package netx

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

const netemMend = "a kernel with CONFIG_NET_SCH_NETEM (modprobe sch_netem; Debian's linux-image-amd64 and linux-image-cloud-amd64 have it)"

var errNoNetem = errors.New("netem, the kernel's network emulator, is missing")

// Shaping is what the kernel has for shaping: nil, or why it cannot be had, a
// *Missing where the kernel lacks it.
type Shaping struct {
	Netem error // all that a link can do
	TBF   error // rates
	IFB   error // what comes in
	BPF   error // loss without netem, and patches
}

// ProbeShaping finds out by trying, in a namespace that goes with it.
func ProbeShaping() Shaping {
	var s Shaping
	n, err := Make(nil)
	if err != nil {
		return Shaping{err, err, err, err}
	}
	defer n.Close()
	const lo = 1
	s.Netem = n.tryNetem(lo)
	try := &shaping{Impair: Impair{Rate: minRate}, link: lo, mtu: math.MaxUint16}
	try.bucket = newBucket(try.Impair, try.mtu)
	s.TBF = errors.Join(n.deleteQueue(lo), n.setQueue(lo, try))
	if s.IFB = n.addIFB(lo, 1500); s.IFB == nil {
		s.IFB = n.hookDetour(lo)
	}
	s.BPF = n.hookLoss(lo, egress, 0)
	return s
}

// tryNetem makes one.
func (n *NS) tryNetem(dev int) error {
	switch err := n.execute(netemRequest(dev, Impair{})); err {
	case nil:
		return nil
	case unix.ENOENT:
		return &Missing{"netem, the network emulator", netemMend, err}
	default:
		return fmt.Errorf("try netem: %w", err)
	}
}

var netem struct {
	sync.Mutex
	known, there bool
}

// haveNetem tells whether the kernel has it. A no is not taken for granted where it
// would be an error: the module may have been loaded since.
func haveNetem(needed bool) (bool, error) {
	netem.Lock()
	defer netem.Unlock()
	if netem.known && (netem.there || !needed) {
		return netem.there, nil
	}
	n, err := Make(nil)
	if err != nil {
		return false, fmt.Errorf("try netem: %w", err)
	}
	defer n.Close()
	err = n.tryNetem(1)
	if err != nil && !errors.As(err, new(*Missing)) {
		return false, err
	}
	netem.known, netem.there = true, err == nil
	return netem.there, nil
}
