package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// stepper counts the effects of a transaction.
type stepper struct {
	ctx   context.Context
	fault Fault
	steps int // taken so far
}

// step stands before each effect of msh's own. It is where faults strike and
// cancellation is seen.
func (s *stepper) step(words string) error {
	s.steps++
	if s.fault.Parent == s.steps {
		if s.fault.Kill {
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return fmt.Errorf("%s: %w", words, errFault)
	}
	return s.ctx.Err()
}

var errFault = errors.New("injected fault")
