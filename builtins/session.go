package builtins

import (
	"context"
	"io"
	"sync"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
	"msh/kernel/checkpoint"
)

// Options say for whom the words work.
type Options struct {
	Host   *kernel.Host
	Lab    string    // the name of the lab that a script makes
	Up     bool      // its machines are kept, as `msh up` wants it
	Dry    bool      // print plans, do nothing
	Stdout io.Writer // where plans go
}

// Session is one script's, or one REPL's, lab.
type Session struct {
	lab *kernel.Lab
	up  bool
	dry bool
	out io.Writer

	mu       sync.Mutex
	machines map[*kernel.Machine]*Machine // one value for each
	vnets    map[*kernel.VNet]*VNet
	links    map[*kernel.Link]*Link
	planned  map[string]*checkpoint.Manifest // snapshots that stand in a plan only, by path
	host     *Machine
	self     *Lab

	methods func() []*interp.Word
}

// New prepares a session. It has no effect on the host.
func New(o Options) (*Session, error) {
	lab, err := o.Host.NewLab(o.Lab, o.Up)
	if err != nil {
		return nil, err
	}
	s := &Session{lab: lab, up: o.Up, dry: o.Dry, out: o.Stdout, machines: map[*kernel.Machine]*Machine{}, vnets: map[*kernel.VNet]*VNet{}, links: map[*kernel.Link]*Link{}, planned: map[string]*checkpoint.Manifest{}}
	s.host, s.self = s.value(lab.Host()), &Lab{s}
	s.methods = sync.OnceValue(s.methodWords)
	return s, nil
}

// Lab is the session's lab.
func (s *Session) Lab() *kernel.Lab { return s.lab }

// Words lists the words that are functions; those of values are in their docs.
func (s *Session) Words() []*interp.Word {
	return append([]*interp.Word{s.rforkWord("machine_rfork"), s.resourcesWord("resources"), s.vnetWord("vnet"), s.linkWord(), s.snapshotWord(), s.wakeWord()},
		append(pure(append(resourceWords(), routeWord)), s.methods()...)...)
}

// Values are the predeclared values: host and lab.
func (s *Session) Values() starlark.StringDict {
	return starlark.StringDict{"host": s.host, "lab": s.self}
}

// Close destroys what the script made and did not keep.
func (s *Session) Close(ctx context.Context) error { return s.lab.Close(ctx) }

// value is the Starlark value of a machine, always the same one.
func (s *Session) value(m *kernel.Machine) *Machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.machines[m]
	if !ok {
		v = &Machine{s: s, m: m}
		s.machines[m] = v
	}
	return v
}
