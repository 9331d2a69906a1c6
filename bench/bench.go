package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// bench holds what the samplers share, and how to take it back.
type bench struct {
	ctx   context.Context
	dir   string // for everything the bench makes
	lower string // the root directory that all of them put an overlay on
	undo  []func() error

	binary  string // msh; "" until it is built
	script  *script
	series  map[string]*series
	ociLive map[string]*container
	pairs   map[string]*both
}

// series are the samples of one thing.
type series struct {
	name   string
	sample func() (float64, error)
	values []float64
	absent error // a peer that is not installed
}

// errAbsent is what a sampler of a peer that is not installed returns.
var errAbsent = errors.New("not installed")

// run measures the figures and prints the report. It leaves nothing behind, also
// when ctx ends.
func run(ctx context.Context, wanted []figure, rounds int, binary string) (err error) {
	if os.Getuid() != 0 {
		return errors.New("namespaces and mounts are made here: run it as root (make bench does)")
	}
	if err := goPrivate(); err != nil {
		return err
	}
	b := &bench{ctx: ctx, binary: binary, series: map[string]*series{}, ociLive: map[string]*container{}}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	if err := b.setUp(); err != nil {
		return err
	}
	var groups []string
	members := map[string][]*series{}
	for _, f := range wanted {
		if !slices.Contains(groups, f.group) {
			groups = append(groups, f.group)
		}
		for _, name := range []string{f.ours, f.peer} {
			if name == "" || b.series[name] != nil {
				continue
			}
			s, err := b.prepare(name, f.group != "lab") // which has no caches to fill, and takes minutes
			if err != nil {
				return err
			}
			members[f.group] = append(members[f.group], s)
		}
	}
	for _, g := range groups {
		n := rounds
		if most, slow := slowGroups[g]; slow {
			n = min(n, most)
		}
		fmt.Fprintf(os.Stderr, "bench: %s: %d rounds\n", g, n)
		if err := sampleAll(ctx, members[g], n); err != nil {
			return err
		}
	}
	report(os.Stdout, wanted, b.series, rounds)
	return nil
}

func (b *bench) setUp() error {
	dir, err := os.MkdirTemp("", "msh-bench-")
	if err != nil {
		return err
	}
	b.dir = dir
	b.onCleanUp(func() error { return os.RemoveAll(dir) })
	b.lower = filepath.Join(dir, "lower")
	// A state directory of its own, where the usual one is: what others run, or
	// have left, is none of the bench's business. msh removes it when it is done.
	state := fmt.Sprintf("/run/msh-bench-%d", os.Getpid())
	b.onCleanUp(func() error {
		if left, err := filepath.Glob(state + "/*"); err != nil || len(left) > 0 {
			return errors.Join(fmt.Errorf("msh has left %v", left), err)
		}
		return os.RemoveAll(state)
	})
	if err := os.Setenv("MSH_STATE", state); err != nil {
		return err
	}
	return makeRoot(b.lower)
}

func (b *bench) onCleanUp(f func() error) { b.undo = append(b.undo, f) }

// cleanUp takes back everything, the last thing first, and goes on past errors.
func (b *bench) cleanUp() error {
	var errs []error
	for _, f := range slices.Backward(b.undo) {
		if err := f(); err != nil {
			errs = append(errs, fmt.Errorf("clean up: %w", err))
		}
	}
	return errors.Join(errs...)
}

// prepare gets a sampler ready. With warm the first sample is thrown away: it fills
// caches.
func (b *bench) prepare(name string, warm bool) (*series, error) {
	if b.ctx.Err() != nil {
		return nil, context.Cause(b.ctx)
	}
	s := &series{name: name}
	b.series[name] = s
	sample, err := samplers[name](b)
	if errors.Is(err, errAbsent) {
		s.absent = err
		return s, nil
	}
	if err == nil {
		s.sample = sample
		if warm {
			_, err = sample()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// sampleAll takes one sample of each, round after round, each round in another
// order. A signal is heeded between two samples, so that none is cut short.
func sampleAll(ctx context.Context, all []*series, rounds int) error {
	all = slices.DeleteFunc(slices.Clone(all), func(s *series) bool { return s.absent != nil })
	order := rand.New(rand.NewPCG(1, 2)) // the same in every run
	for range rounds {
		order.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, s := range all {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			v, err := s.sample()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			s.values = append(s.values, v)
		}
	}
	return nil
}

// quantile returns the value that a share q of the samples does not exceed.
func (s *series) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s.values))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func (s *series) median() float64 { return s.quantile(0.5) }
func (s *series) p90() float64    { return s.quantile(0.9) }
