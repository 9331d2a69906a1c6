package escape

import (
	"strings"
	"testing"
	"time"

	"msh/kernel"
)

// TestJoiner has a machine's root lie in wait for the processes that msh sends in.
func TestJoiner(t *testing.T) {
	needRoot(t)
	var columns []*column
	for ids := range idsOf {
		for _, level := range levels {
			c := &column{ids, level, map[string]map[string]Result{}}
			columns = append(columns, c)
			target := *outside
			target.Only, target.Self = []string{"joiner"}, self
			l := newLab(t)
			m := fork(t, l, l.Host(), &kernel.Spec{Resources: alone(ids, level)})
			p, err := m.Spawn(t.Context(), &kernel.Command{Argv: attacking(target.Arguments())}, "", kernel.RestartNo)
			if err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(long); p.Alive() && time.Now().Before(end); {
				if _, err := m.Run(t.Context(), &kernel.Command{Argv: []string{"true"}}, nil, long); err != nil && !strings.Contains(err.Error(), "killed") {
					t.Error(err)
				}
			}
			log, err := p.Log()
			if err != nil {
				t.Error(err)
			}
			c.take(t, "run", string(log))
		}
	}
	// Its control is level 0 with the host's ids: there has to be somebody to lie in wait for.
	judge(t, "A process on its way into a machine", Joiners(), map[string]Result{"joiner": {Held, "there is nobody outside"}}, columns)
}
