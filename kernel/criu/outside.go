package criu

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// An Outside is a file, not a pipe or a socket, that processes of a tree have
// open and that is in no mount of theirs: a log that was handed in, the /dev/null
// of whoever started them.
type Outside struct {
	Key   string // for Dump.Files and Restore.Inherit
	Path  string // of the file, as its own mount table has it
	Pid   int    // the first process that has it
	Name  string
	FD    int // the descriptor in it
	Flags int // that it was opened with, open(2)
}

// FilesOutside lists them; pids are the tree's processes, the root first.
func FilesOutside(pids []int) []Outside { return readTree(pids).files() }

func (t *tree) files() (all []Outside) {
	seen := map[string]bool{}
	for _, p := range t.all {
		for _, d := range p.fds {
			number := d.info["mnt_id"]
			if _, inside := t.mounts[number]; inside || number == "" || !strings.HasPrefix(d.link, "/") || memory(d.link) {
				continue
			}
			var st unix.Stat_t
			if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", p.pid, d.number), &st) != nil {
				continue
			}
			var id, flags int
			fmt.Sscan(number, &id)
			fmt.Sscanf(d.info["flags"], "%o", &flags)
			key := fmt.Sprintf("file[%x:%x]", id, st.Ino)
			if !seen[key] {
				seen[key] = true
				all = append(all, Outside{key, d.link, p.pid, p.name, d.number, flags})
			}
		}
	}
	return all
}

// memory tells a link to a file that has no name because it is memory.
func memory(link string) bool {
	for _, prefix := range []string{"/memfd:", "/dev/zero (deleted)", "/SYSV", "/anon_hugepage"} {
		if strings.HasPrefix(link, prefix) {
			return true
		}
	}
	return false
}

// outsiders looks for files in mounts that are not the tree's.
func (t *tree) outsiders(b Bounds) (found []Problem) {
	for _, f := range t.files() {
		if slices.Contains(b.Files, f.Key) {
			continue
		}
		what, mend := fmt.Sprintf("has %s of the outside open (descriptor %d)", f.Path, f.FD), "have the program close it"
		if strings.HasPrefix(f.Path, "/dev/pts/") || strings.HasPrefix(f.Path, "/dev/tty") || f.Path == "/dev/console" {
			what, mend = fmt.Sprintf("has a terminal of the outside, %s (descriptor %d)", f.Path, f.FD), "end the session on it"
		}
		found = append(found, Problem{f.Pid, f.Name, what, mend})
	}
	return found
}

// fileSystems are those that criu can mount anew, with what was in them.
var fileSystems = []string{"proc", "sysfs", "devtmpfs", "binfmt_misc", "tmpfs", "devpts", "mqueue", "securityfs", "fusectl", "debugfs", "tracefs", "cgroup", "cgroup2", "overlay"}

// mounted looks for mounts that somebody inside has made.
func (t *tree) mounted(b Bounds) (found []Problem) {
	var places []string
	for _, m := range t.mounts {
		if m.at != "/" && !slices.Contains(b.Mounts, m.at) && !slices.Contains(fileSystems, m.fstype) {
			places = append(places, fmt.Sprintf("a file system of type %s is mounted on %s", m.fstype, m.at))
		}
	}
	slices.Sort(places)
	for _, what := range places {
		found = append(found, Problem{What: what, Mend: "have it mounted by msh, or unmount it first"})
	}
	return found
}

// terminals looks for those that somebody outside is at: criu would need the
// other side of the line.
func terminals(t *tree, p *process) (found []Problem) {
	for _, d := range p.fds {
		index, ok := strings.CutPrefix(d.link, "/dev/pts/")
		if _, inside := t.mounts[d.info["mnt_id"]]; !ok || !inside || index == "ptmx" || t.masters[index] {
			continue
		}
		return p.problem("end the session on it", "is on a terminal whose other side is outside (%s)", d.link)
	}
	return nil
}

// socket is the inode of a socket that a link of /proc/PID/fd names.
func socket(link string) (ino uint64, ok bool) {
	_, err := fmt.Sscanf(link, "socket:[%d]", &ino)
	return ino, err == nil
}

// protocols are those whose sockets criu saves, as the kernel calls them.
var protocols = []string{"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "RAW", "RAWv6", "PING", "PINGv6", "UNIX", "UNIX-STREAM", "UNIX-DGRAM", "NETLINK", "PACKET"}

// sockets looks for those of other protocols, and those that are joined with
// somebody outside.
func sockets(t *tree, p *process) (found []Problem) {
	var local map[uint64]uint64 // peers of the unix sockets in the process's network
	for _, d := range p.fds {
		ino, ok := socket(d.link)
		if !ok {
			continue
		}
		protocol := protocolOf(p.pid, d.number)
		switch {
		case protocol == "" || protocol == "PACKET":
		case !slices.Contains(protocols, protocol):
			mend := "close it, or save the files only"
			if protocol == "MPTCP" || protocol == "MPTCPv6" {
				mend = "have the program use plain TCP (Go: GODEBUG=multipathtcp=0)"
			}
			found = append(found, p.problem(mend, "has a socket of protocol %s (descriptor %d)", protocol, d.number)...)
		case strings.HasPrefix(protocol, "UNIX"):
			if local == nil {
				if local = unixPeers(p.pid); local == nil {
					continue
				}
			}
			peer, known := local[ino]
			if !known || peer != 0 && !t.unix[peer] {
				found = append(found, p.problem("close it first", "has a unix socket joined with a process outside (descriptor %d)", d.number)...)
			}
		}
	}
	return found
}

// protocolOf asks the kernel for the name of a socket's protocol, which it shows
// as an extended attribute (net/socket.c, sockfs_xattr_get).
func protocolOf(pid, fd int) string {
	b := make([]byte, 64)
	n, err := unix.Getxattr(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), "system.sockprotoname", b)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(b[:n]), "\x00")
}
