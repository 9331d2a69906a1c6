// Bench measures msh beside its peers, in one run on one machine, and prints how
// they compare. The numbers are only worth as ratios: the computer is whatever it
// is, and others may be using it.
//
//	make bench                       all of it
//	make bench ARGS='-n 20 -only 1,5'
//
// What is compared stands in one table, figures. The rows of a group are sampled
// together, round after round, each round in another order; so a slow moment
// falls on all alike, and nobody always runs in another's wake (the kernel goes
// on cleaning up a network namespace after its processes are gone). A goal missed
// is reported and is no failure. A command that fails, or prints what it should
// not, is.
//
// msh is measured as it is used: scripts run by the binary built from this tree.
// loop.star runs all the time and does one cycle when told; cold.star is a whole
// `msh -c`. Before anything is timed, the machine that msh makes and the container
// that crun makes are looked at from outside, and must have the same spaces,
// mounts and limits.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	rounds := flag.Int("n", 100, "how many rounds")
	quick := flag.Bool("quick", false, "10 rounds")
	only := flag.String("only", "", "only these figures, as 1,5")
	binary := flag.String("msh", "", "measure this msh; without it, one built from the tree")
	flag.Parse()
	if *quick {
		*rounds = 10
	}
	wanted, err := choose(*only)
	if err != nil || *rounds < 1 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: bench [-n ROUNDS] [-quick] [-only FIGURE,…] [-msh BINARY]", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, wanted, *rounds, *binary); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
