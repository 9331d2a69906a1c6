package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// stepper counts the effects of a transaction.
type stepper struct {
	ctx   context.Context
	fault Fault
	mu    sync.Mutex
	steps int // taken so far
}

// step stands before each effect of msh's own. It is where faults strike and
// cancellation is seen.
func (s *stepper) step(words string) error {
	if s.fault.Parent == s.count() {
		if s.fault.Kill {
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		if s.fault.Do != nil {
			s.fault.Do()
			return s.ctx.Err()
		}
		return fmt.Errorf("%s: %w", words, errFault)
	}
	return s.ctx.Err()
}

func (s *stepper) count() int {
	if s.fault.Whole != nil {
		return int(s.fault.Whole.Add(1))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps++
	return s.steps
}

// point stands where nothing can fail any more, but msh can be killed.
func (s *stepper) point() {
	if s.fault.Kill {
		s.step("")
	}
}

var errFault = errors.New("injected fault")
