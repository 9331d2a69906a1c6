package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"msh/kernel"
	"msh/kernel/checkpoint"
	"msh/kernel/criu"
)

func (a *app) hibernateCommand() *cobra.Command {
	var filesOnly, running bool
	c := &cobra.Command{
		Use:   "hibernate MACHINE|LAB FILE",
		Short: "save a machine, or a lab, in a file, and end it until msh wake",
		Long: `Saves a kept machine in one file: its processes with their memory, its files, sockets,
addresses and limits. Then it is gone, until msh wake FILE, here or on another host.
Of a lab all machines are saved, at one instant.`,
		Example: "  msh hibernate db db.msh\n  msh wake db.msh",
		Args:    takes(2, 2, "MACHINE, LAB/MACHINE or LAB, and FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.rootHost(c)
			if err != nil {
				return err
			}
			ctx, signals := watchSignals(a.stderr, false)
			defer signals.stop()
			machines, whole, err := h.FindAll(args[0])
			if err != nil {
				return err
			}
			for _, m := range machines {
				defer m.Close()
			}
			id := machines[0].ID()
			if whole {
				id = fmt.Sprintf("lab %s, %s", machines[0].LabName(), count(len(machines), "machine"))
			}
			r, err := kernel.SnapshotFile(ctx, args[1], machines, kernel.SnapshotOptions{FilesOnly: filesOnly, Hibernate: !running, Whole: whole})
			if err != nil {
				return signals.ended(err, id+" runs on as before, and nothing is saved")
			}
			_, err = fmt.Fprintf(a.stdout, "%s: %s in %s, stood still for %v\n", id, sizeOf(uint64(r.Info.Size)), args[1], r.Frozen.Round(time.Millisecond))
			return err
		},
	}
	c.Flags().BoolVar(&filesOnly, "files-only", false, "leave memory and processes out")
	c.Flags().BoolVar(&running, "keep-running", false, "let it run on: a snapshot")
	return c
}

func (a *app) wakeCommand() *cobra.Command {
	var name, tcp string
	var fresh bool
	var addresses []string
	c := &cobra.Command{
		Use:   "wake [--lab NAME] FILE",
		Short: "wake the machines that a file holds",
		Long: `Wakes a machine, or a lab, that msh hibernate or snapshot has saved, here or on another
host. What is woken is kept, until msh down LAB. The networks it needs are made with it.`,
		Example: "  msh wake db.msh\n  msh wake db.msh --lab second --name db2 --tcp close --new-address",
		Args:    takes(1, 1, "FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			o := kernel.WakeOptions{Name: name, Keep: true, Pos: "msh wake", Fresh: fresh}
			switch tcp {
			case "established":
			case "close":
				o.TCP = criu.TCPClose
			default:
				return usage(c, `--tcp: got %q, want "established" or "close"`, tcp)
			}
			for _, text := range addresses {
				n, err := kernel.ParseAddress(text)
				if err != nil {
					return usage(c, "--address: %v", err)
				}
				o.Addresses = append(o.Addresses, []kernel.Address{n})
			}
			h, err := a.rootHost(c)
			if err != nil {
				return err
			}
			return a.wake(h, args[0], o)
		},
	}
	c.Flags().StringVar(&a.lab, "lab", "", "the lab's `NAME` (default: the one it was in)")
	c.Flags().StringVar(&name, "name", "", "another `NAME` for the machine")
	c.Flags().StringVar(&tcp, "tcp", "established", "what becomes of its connections: established or close")
	c.Flags().BoolVar(&fresh, "new-address", false, "new addresses and MACs, as its networks hand them out")
	c.Flags().StringArrayVar(&addresses, "address", nil, "another `ADDRESS`, of its first interface; again for the next")
	return c
}

func (a *app) wake(h *kernel.Host, file string, o kernel.WakeOptions) (err error) {
	ctx, signals := watchSignals(a.stderr, false)
	defer signals.stop()
	a.sweep(ctx, h)
	r, err := checkpoint.Open(file)
	if err != nil {
		return err
	}
	defer r.Close()
	lab := a.lab
	if lab == "" {
		lab = r.Manifest().Lab
	}
	l, err := h.NewLab(lab, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close(context.WithoutCancel(ctx))) }()
	all, err := l.Wake(ctx, r, o)
	if err != nil {
		return signals.ended(fmt.Errorf("wake %s: %w", filepath.Base(file), err), "nothing of "+file+" is awake")
	}
	for _, m := range all {
		fmt.Fprintf(a.stdout, "%s is awake\n", m.ID())
	}
	return nil
}

func sizeOf(n uint64) string { return size(&n) }

// isSnapshot tells a file from a machine's name.
func isSnapshot(arg string) bool {
	st, err := os.Stat(arg)
	return err == nil && !st.IsDir() || strings.HasSuffix(arg, ".msh")
}

// inspectFile tells what is in a file without unpacking it.
func (a *app) inspectFile(file string, asJSON bool) error {
	info, err := checkpoint.Inspect(file)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(a.stdout, map[string]any{"digest": info.Digest, "size": info.Size, "sections": info.Sections, "manifest": info.Manifest})
	}
	m := info.Manifest
	table := [][]string{
		{"file", fmt.Sprintf("%s, %s", sizeOf(uint64(info.Size)), info.Digest)},
		{"made", fmt.Sprintf("%s by msh %s, format %d", m.Created.Format(time.RFC3339), m.Msh, m.Format)},
		{"on", fmt.Sprintf("%s, Linux %s, %s, cgroup v%d", m.Host.Arch, m.Host.Kernel, m.Host.CPU, m.Host.Cgroup)},
		{"lab", m.Lab},
	}
	var nets []*kernel.VNetSpec
	if m.Networks != nil {
		if err := json.Unmarshal(m.Networks, &nets); err != nil {
			return fmt.Errorf("networks: %w", err)
		}
	}
	for _, n := range nets {
		text := n.Name
		for _, p := range n.Subnets {
			text += " " + p.String()
		}
		table = append(table, []string{"vnet", text})
	}
	for _, c := range m.Machines {
		spec := &kernel.Spec{}
		if err := json.Unmarshal(c.Spec, spec); err != nil {
			return fmt.Errorf("machine %s: %w", c.Name, err)
		}
		table = append(table, []string{"machine", fmt.Sprintf("%s: %s", c.Name, c.Mode)})
		for _, b := range c.Needs.Bases {
			table = append(table, []string{"", "needs the root " + b.Path})
		}
		if c.Needs.CRIU != "" {
			table = append(table, []string{"", "needs CRIU " + c.Needs.CRIU})
		}
		for _, r := range spec.Resources {
			if n, ok := r.(*kernel.Netif); ok {
				table = append(table, []string{"", "interface " + n.Words() + ", " + n.HardwareAddr})
			}
		}
		for _, s := range info.Sections {
			if s.Machine == c.Name {
				table = append(table, []string{"", fmt.Sprintf("%s: %s, in %s", s.Name, sizeOf(uint64(s.Size)), sizeOf(uint64(s.Stored)))})
			}
		}
	}
	return tabulate(a.stdout, table)
}
