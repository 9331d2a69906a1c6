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
	least             // median ours ÷ median theirs, of which more is better
	extra             // median ours − median theirs, milliseconds
	each              // median of ours, milliseconds
	scale             // no goal: only told, to know where the others stand
)

// slowGroups are those of which a round takes long, and how many they get at most.
var slowGroups = map[string]int{"lab": 3, "wire": 11, "snapshot": 11, "frozen": 5}

// figures are what msh is held to.
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
	{13, "guard", "creation at security level 2: what it adds", "script: made 2", "script: made", 0.5, extra},
	{13, "life", "1 at security level 2, for scale", "script: guarded", "script: life", 0, scale},
	{14, "guard", "400000 system calls at level 2", "script: calls 2", "script: calls", 1.05, ratio},
	{15, "guard", "uname(2), answered by msh", "script: uname", "", 0.06, each},
	{9, "lab", "1024 machines on 33 switches, up", "lab 1024: up", "mininet: up", 0.12, ratio},
	{9, "lab", "the same, down", "lab 1024: down", "mininet: down", 0.05, ratio},
	{10, "lab", "a machine of 1024 : of 16", "lab 1024: each", "lab 16: each", 1.5, ratio},
	{11, "lab", "9 with IPv6, up", "lab 1024 v6: up", "mininet: up", 0, scale},
	{11, "lab", "9 with IPv6, down", "lab 1024 v6: down", "mininet: down", 0, scale},
	{12, "wire", "TCP between two machines, Gbit/s", "wire", "veth + bridge by hand", 0.97, least},
	{16, "snapshot", "hibernate and wake 256 MiB", "hibernate 256", "criu dump, restore", 1.1, ratio},
	{17, "snapshot", "clone of 64 MiB", "clone 64", "", 100, each},
	{18, "snapshot", "TCP gap, 64 MiB, over a snapshot", "gap snapshot", "", 150, each},
	{18, "snapshot", "the same, over hibernate and wake", "gap hibernate", "", 150, each},
	{19, "frozen", "16 machines frozen : the slowest alone", "lab 16: frozen", "slowest alone", 2, ratio},
}

// samplers are what can be measured. Each prepares what it needs, once, and
// returns a function that measures once: milliseconds, or KiB.
var samplers = map[string]func(*bench) (func() (float64, error), error){
	"script: life":    scriptCycle("life"),
	"script: init":    scriptCycle("init"),
	"script: pause":   scriptCycle("pause"),
	"script: run":     scriptCycle("run"),
	"script: guarded": scriptCycle("guarded"),
	"script: made":    scriptCycle("made"),
	"script: made 2":  scriptCycle("made 2"),
	"script: calls":   scriptCycle("calls"),
	"script: calls 2": scriptCycle("calls 2"),
	"script: uname":   scriptCycle("uname"),
	"init PSS":        (*bench).initPSS,
	"msh -c":          (*bench).coldScript,
	"msh -c pass":     (*bench).coldPass,
	"crun run":        ociRun("crun"),
	"crun exec":       ociExec("crun"),
	"runc run":        ociRun("runc"),
	"bwrap":           (*bench).bwrap,
	"nsenter":         (*bench).nsenter,
	"unshare":         (*bench).unshare,
	"go hello":        (*bench).goHello,

	"lab 1024: up":      ourLab(up, 32, 32, "v4", 1),
	"lab 1024: down":    ourLab(down, 32, 32, "v4", 1),
	"lab 1024 v6: up":   ourLab(up, 32, 32, "v6", 1),
	"lab 1024 v6: down": ourLab(down, 32, 32, "v6", 1),
	"lab 1024: each":    ourLab(up, 32, 32, "v4", 1024),
	"lab 16: each":      ourLab(up, 4, 4, "v4", 16),
	"mininet: up":       mininetLab(up, 32),
	"mininet: down":     mininetLab(down, 32),

	"hibernate 256":      ourSnapshot("hibernate", 256),
	"clone 64":           ourSnapshot("clone", 64),
	"gap snapshot":       ourSnapshot("gap: snapshot", 64),
	"gap hibernate":      ourSnapshot("gap: hibernate", 64),
	"lab 16: frozen":     frozenLab(together, 64),
	"slowest alone":      frozenLab(slowest, 64),
	"criu dump, restore": bareCriu(256),

	"wire":                  (*bench).ourWire,
	"veth + bridge by hand": (*bench).wireHandMade,
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
			return nil, fmt.Errorf("-only: %q is no figure, want numbers up to %d", word, slices.MaxFunc(figures, func(a, b figure) int { return a.number - b.number }).number)
		}
		for _, f := range figures {
			if f.number == number {
				picked = append(picked, f)
			}
		}
	}
	return picked, nil
}
