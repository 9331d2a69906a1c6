package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"msh/kernel"
)

func (a *app) migrateCommand() *cobra.Command {
	var o kernel.MigrateOptions
	var command string
	var back bool
	c := &cobra.Command{
		Use:   "migrate MACHINE|LAB HOST",
		Short: "move a running machine to another host",
		Long: `Moves a machine, or all machines of a lab at one instant, to another host, where msh and
criu have to be. HOST is ssh://[USER@]HOST[:PORT], or as ssh(1) has it; the line is the stock
ssh client's (MSH_SSH names another). Whatever breaks, it runs on exactly one of the two hosts.

Where the line broke at the very end and the other host could not be asked whether it has got
the machine, it stands still here: the same command asks again. If that host will never come
back, --take-back lets it go on here.`,
		Example: "  msh migrate web ssh://root@b.example.org\n  msh migrate shop b --msh 'sudo msh'\n  msh migrate --take-back web",
		Args: func(c *cobra.Command, args []string) error {
			if back {
				return takes(1, 1, "MACHINE")(c, args)
			}
			return takes(2, 2, "MACHINE|LAB and HOST")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if back {
				return a.takeBack(c, args[0])
			}
			to, err := kernel.ParseRemote(args[1])
			if err != nil {
				return err
			}
			to.Command = command
			return a.migrate(c, args[0], to, o)
		},
	}
	c.Flags().IntVar(&o.Rounds, "rounds", -1, "send memory ahead at most `N` times; 0 for not at all, -1 for as often as it helps")
	c.Flags().StringVar(&command, "msh", "msh", "the `COMMAND` there")
	c.Flags().DurationVar(&o.Patience, "patience", kernel.DefaultPatience, "ask so `LONG` whether the other host has it, when the line broke at the end")
	c.Flags().BoolVar(&back, "take-back", false, "let a machine go on here of which it is not known whether it has moved")
	return c
}

func (a *app) migrate(c *cobra.Command, name string, to *kernel.Remote, o kernel.MigrateOptions) error {
	h, err := a.rootHost(c)
	if err != nil {
		return err
	}
	ctx, signals := watchSignals(a.stderr, false)
	defer signals.stop()
	<-signals.ready
	machines, whole, err := h.FindAll(name)
	if err != nil {
		return err
	}
	defer func() {
		for _, m := range machines {
			m.Close()
		}
	}()
	o.Whole = whole
	r, err := kernel.Migrate(ctx, machines, to, o)
	if err != nil {
		return signals.ended(err, "") // it tells where they are
	}
	_, err = fmt.Fprintln(a.stdout, migrated(r))
	for _, left := range r.Left {
		fmt.Fprintln(a.stderr, "msh: not taken along:", left)
	}
	return err
}

// migrated tells how it went, in a line.
func migrated(r *kernel.MigrateReport) string {
	var ids []string
	for _, m := range r.Machines {
		ids = append(ids, r.Lab+"/"+m)
	}
	what := fmt.Sprintf("%s runs on %s: ", strings.Join(ids, " "), r.Host)
	if len(ids) > 1 {
		what = fmt.Sprintf("%s run on %s: ", strings.Join(ids, " "), r.Host)
	}
	if r.Settled {
		return what + "it had moved before"
	}
	how := r.Mode
	if r.Rounds > 0 {
		how += ", " + count(r.Rounds, "round")
	} else if r.Why != "" {
		how += " (" + r.Why + ")"
	}
	for _, l := range r.Layers {
		how += ", with its root " + l
	}
	return fmt.Sprintf("%s%s, stood still for %v, %d bytes sent", what, how, r.Frozen.Round(time.Millisecond), r.Sent)
}

func (a *app) takeBack(c *cobra.Command, name string) error {
	h, err := a.rootHost(c)
	if err != nil {
		return err
	}
	m, err := h.Find(name)
	if err != nil {
		return err
	}
	defer m.Close()
	names, err := m.TakeBack(c.Context())
	for _, name := range names {
		fmt.Fprintf(a.stdout, "%s/%s goes on here\n", m.LabName(), name)
	}
	return err
}
