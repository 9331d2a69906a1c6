package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
)

// counted tells what the clock was running for.
const counted = `
Milliseconds, median and p90. What is counted:
  script     inside a running script, from before machine_rfork (or run) to after destroy (or run); the init's end is awaited
  creation   the same, but of machine_rfork alone
  msh -c     the whole process, which makes a machine, runs true in it and ends
  crun, runc the whole process ` + "`run`" + `, and before and after it the mount and unmount of the overlay (2 mounts, made by the bench
             with bare system calls: a tmpfs for the changes, the overlay), since a bundle's root has to be there
  bwrap      the same two mounts and the whole process (--unshare-all --bind --proc --dev); it has no limits to set
  others     the whole process
  lab        up: inside the script, from before the first vnet to after the last machine; down: from the script's last line to msh's end
  hibernate  inside the script, from before m.hibernate to after wake, of a file on the disk, synced; criu: two whole commands, nothing synced
  TCP gap    the longest time that a machine gets nothing from another one, which sends a number every millisecond and is saved meanwhile
  frozen     as lab.snapshot and m.snapshot tell it: 15 machines of 8 MiB and one of 64
  mininet    up: building the net and net.start(), down: net.stop(), inside its script; a tree of Linux bridges, no controller
All of them: the same busybox as /bin/true in an overlay with its upper layer on a tmpfs. msh, crun and runc: new PID, mount, UTS, IPC and net
namespaces, /proc /sys /dev /dev/pts /dev/shm /dev/mqueue, cpu 50 %, memory 256 MiB, 32 pids. unshare has neither root nor limits.
nsenter enters msh's machine, without joining its control groups.
/run is a fresh tmpfs for all of them. Where cgroup v1 and v2 are both mounted, v2's list of controllers is hidden in the bench's mount table, or crun would refuse to work.
`

func report(w io.Writer, wanted []figure, all map[string]*series, rounds int) {
	fmt.Fprintf(w, "%s, %d CPUs, load %s, %d rounds\n", kernelVersion(), runtime.NumCPU(), load(), rounds)
	for _, peer := range []string{"crun", "runc", "bwrap", "nsenter"} {
		path, err := lookPath(peer)
		if err != nil {
			continue
		}
		if out, err := exec.Command(path, "--version").Output(); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			fmt.Fprintf(w, "%s; ", first)
		}
	}
	fmt.Fprint(w, runtime.Version(), "\n\n")

	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\twhat\tmsh\tp90\tpeer\t\tp90\tratio\tgoal\t")
	for _, f := range wanted {
		fmt.Fprintln(t, f.row(all))
	}
	t.Flush()
	fmt.Fprint(w, counted)
}

// row is the figure's line, its cells ended by tabs.
func (f figure) row(all map[string]*series) string {
	ours := all[f.ours]
	cells := []string{fmt.Sprint(f.number), f.what, number(ours.median()), number(ours.p90()), "", "", "", "", "", ""}
	var value float64
	switch f.kind {
	case size:
		value = ours.median()
		cells[8] = fmt.Sprintf("≤ %v KiB", f.goal)
	case each:
		value = ours.median()
		cells[8] = fmt.Sprintf("≤ %v ms", f.goal)
	case tail:
		value = ours.p90() / ours.median()
		cells[7], cells[8] = fmt.Sprintf("%.2f", value), fmt.Sprintf("≤ %v", f.goal)
	default:
		peer := all[f.peer]
		cells[4] = f.peer
		switch f.kind {
		case ratio:
			cells[8] = fmt.Sprintf("≤ %v", f.goal)
		case extra:
			cells[8] = fmt.Sprintf("≤ +%v ms", f.goal)
		case least:
			cells[8] = fmt.Sprintf("≥ %v", f.goal)
		}
		if peer.absent != nil {
			cells[9] = peer.absent.Error()
			return strings.Join(cells, "\t")
		}
		value = ours.median() / peer.median()
		cells[5], cells[6], cells[7] = number(peer.median()), number(peer.p90()), fmt.Sprintf("%.2f", value)
		if f.kind == extra {
			value = ours.median() - peer.median()
			cells[7] = fmt.Sprintf("%+.2f", value)
		}
	}
	switch {
	case f.kind == scale:
	case f.kind == least && value >= f.goal || f.kind != least && value <= f.goal:
		cells[9] = "met"
	default:
		cells[9] = "NOT MET"
	}
	return strings.Join(cells, "\t")
}

func number(v float64) string { return fmt.Sprintf("%.2f", v) }

func kernelVersion() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return "Linux " + strings.TrimSpace(string(b))
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
