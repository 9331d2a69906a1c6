package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A figure is one line of the report: something msh does, what it is held
// against, and the goal.
type figure struct {
	number int
	group  string // figures of a group are sampled together
	what   string
	ours   string // of samplers
	peer   string // of samplers; "" where the goal is not a ratio to another
	goal   float64
	kind   kind
}

type kind int

const (
	ratio kind = iota // median ours ÷ median theirs
	tail              // p90 ÷ median of ours
	size              // median of ours, KiB
	scale             // no goal: only told, to know where the others stand
)

// figures are the goals of issue 2, in its order.
var figures = []figure{
	{1, "life", "machine, run true, destroy", "script: life", "crun run", 0.3, ratio},
	{2, "life", "machine with true as its init", "script: init", "crun run", 0.2, ratio},
	{3, "pause", "1 after 100 ms of quiet, p90 : median", "script: pause", "", 1.5, tail},
	{4, "life", "1 by a cold msh -c", "msh -c", "crun run", 0.45, ratio},
	{4, "life", "1 by a cold msh -c", "msh -c", "bwrap", 1.2, ratio},
	{5, "exec", "run true in a live machine", "script: run", "crun exec", 0.2, ratio},
	{5, "exec", "run true in a live machine", "script: run", "nsenter", 0.55, ratio},
	{6, "idle", "PSS of an idle machine's init", "init PSS", "", 24, size},
	{7, "start", "msh -c pass", "msh -c pass", "go hello", 3, ratio},
	{8, "life", "for scale", "script: life", "runc run", 0, scale},
	{8, "life", "for scale", "script: life", "unshare", 0, scale},
}

// samplers are what can be measured. Each prepares what it needs, once, and
// returns a function that measures once: milliseconds, or KiB.
var samplers = map[string]func(*bench) (func() (float64, error), error){
	"script: life":  scriptCycle("life"),
	"script: init":  scriptCycle("init"),
	"script: pause": scriptCycle("pause"),
	"script: run":   scriptCycle("run"),
	"init PSS":      (*bench).initPSS,
	"msh -c":        (*bench).coldScript,
	"msh -c pass":   (*bench).coldPass,
	"crun run":      ociRun("crun"),
	"crun exec":     ociExec("crun"),
	"runc run":      ociRun("runc"),
	"bwrap":         (*bench).bwrap,
	"nsenter":       (*bench).nsenter,
	"unshare":       (*bench).unshare,
	"go hello":      (*bench).goHello,
}

// choose picks the figures that -only names; all where it is empty.
func choose(only string) ([]figure, error) {
	if only == "" {
		return figures, nil
	}
	var picked []figure
	for word := range strings.SplitSeq(only, ",") {
		number, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || !slices.ContainsFunc(figures, func(f figure) bool { return f.number == number }) {
			return nil, fmt.Errorf("-only: %q is no figure, want numbers up to %d", word, figures[len(figures)-1].number)
		}
		for _, f := range figures {
			if f.number == number {
				picked = append(picked, f)
			}
		}
	}
	return picked, nil
}
