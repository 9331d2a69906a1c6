package netx

import (
	"encoding/binary"
	"math"
	"slices"
	"sync"
)

// Distributions are the names that a delay's distribution can have.
var Distributions = []string{"uniform", "normal", "pareto", "paretonormal"}

// netem draws a delay from a table: an entry, chosen evenly, times the jitter, over
// distScale, is added to the delay (tabledist in net/sched/sch_netem.c; 16384
// entries at most). The values below are in units of the jitter.
const (
	distScale = 8192    // NETEM_DIST_SCALE
	distSize  = 64 * 64 // a square, for paretonormal
)

// distribution is the table of a distribution, as TCA_NETEM_DELAY_DIST has it.
// Every entry stands for a chance of 1/distSize, so a table of quantiles has the
// distribution's shape. uniform has one too: a netem that was given a table has no
// other way back.
func distribution(name string) []byte {
	distMu.Lock()
	defer distMu.Unlock()
	if b, ok := distTables[name]; ok {
		return b
	}
	var v []float64
	switch name {
	case "normal":
		v = standard(quantiles(distSize, normal))
	case "pareto":
		v = standard(quantiles(distSize, pareto))
	case "paretonormal":
		// The sum of a quarter of the one and three quarters of the other: all
		// pairs of their quantiles. The kernel does not ask for an order.
		root := int(math.Sqrt(distSize))
		ps := quantiles(root, pareto)
		for _, a := range quantiles(root, normal) {
			for _, b := range ps {
				v = append(v, a/4+b*3/4)
			}
		}
		v = standard(v)
	default:
		v = quantiles(distSize, func(p float64) float64 { return 2*p - 1 })
	}
	b := make([]byte, 0, 2*distSize)
	for _, x := range v {
		b = binary.NativeEndian.AppendUint16(b, uint16(int16(math.Round(x*distScale))))
	}
	distTables[name] = b
	return b
}

var (
	distMu     sync.Mutex
	distTables = map[string][]byte{}
)

// quantiles are n values at evenly spread probabilities.
func quantiles(n int, at func(p float64) float64) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = at((float64(i) + 0.5) / float64(n))
	}
	return v
}

func normal(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }

// pareto has the shape 3: most delays a little below the mean, few far above; with
// 2 or less it would have no standard deviation.
func pareto(p float64) float64 { return math.Pow(1-p, -1.0/3) }

// standard moves and stretches values until their mean is 0 and their standard
// deviation 1, with what does not fit into 16 bits cut off: the long tail of pareto
// ends at four jitters, and cutting it moves both again.
func standard(v []float64) []float64 {
	const most = math.MaxInt16 / float64(distScale)
	v = slices.Clone(v)
	for range 100 {
		var sum, squares float64
		for _, x := range v {
			sum += x
		}
		mean := sum / float64(len(v))
		for _, x := range v {
			squares += (x - mean) * (x - mean)
		}
		deviation := math.Sqrt(squares / float64(len(v)))
		for i, x := range v {
			v[i] = min((x-mean)/deviation, most)
		}
	}
	return v
}
