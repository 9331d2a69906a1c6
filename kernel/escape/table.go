package escape

// Attacks are those on a machine that has everything of its own: root, processes,
// network, names, control group.
func Attacks() []Attack {
	const (
		rights = "its root has the rights of the host's: give it uidspace() or a level"
		ids    = "the ids are the host's own: give it uidspace()"
		kernel = "the kernel is asked as by any process of the host"
		own    = "what it makes is its own"
	)
	at := func(plain, mapped int) [2]int { return [2]int{plain, mapped} }
	return []Attack{
		{"fds", "finds descriptors of the caller's (CVE-2024-21626)", at(0, 0), "", "", false, false, leakedFiles},
		{"cwd", "finds itself in the caller's directory (CVE-2024-21626)", at(0, 0), "", "", false, false, leakedDirectory},
		{"environment", "finds the caller's environment", at(0, 0), "", "", false, false, leakedEnvironment},
		{"session keyring", "finds a key of the caller's session", at(0, 0), "", "", false, false, leakedKeys},
		{"session", "is of the caller's session", at(0, 0), "", "", false, false, leakedSession},
		{"terminal", "types into the caller's terminal: TIOCSTI, TIOCLINUX (CVE-2017-5226)", at(0, 0), "", "", false, false, leakedTerminal},
		{"null", "changes the host's /dev/null by a stream that is it (CVE-2025-31133)", at(0, 0), "", "", false, false, leakedNull},
		{"user keyring", "finds a key of the host's root", at(2, 0), ids, "", false, false, userKeys},

		{"chroot", "climbs out of its root", at(0, 0), "", "chroot", false, true, climb},
		{"proc root", "goes through /proc/PID/root, cwd and fd", at(0, 0), "", "chroot", false, false, byProcess},
		{"file handle", "opens a file outside by its number (\"Shocker\")", at(1, 0), rights, "", false, false, byHandle},
		{"setns", "joins namespaces of others", at(0, 0), "", "", false, true, joinOthers},

		{"core_pattern", "sets the program that the host runs on a crash", at(2, 0), rights, "", false, false, setting("proc", "/proc/sys/kernel/core_pattern")},
		{"modprobe", "sets the program that the host loads modules by", at(2, 0), rights, "", false, false, setting("proc", "/proc/sys/kernel/modprobe")},
		{"vm", "sets how the host uses its memory", at(2, 0), rights, "", false, false, setting("proc", "/proc/sys/vm/drop_caches")},
		{"sysrq", "reboots the host by /proc/sysrq-trigger", at(2, 0), rights, "", false, false, setting("proc", "/proc/sysrq-trigger")},
		{"irq", "moves the host's interrupts", at(2, 0), rights, "", false, false, setting("proc", "/proc/irq/default_smp_affinity")},
		{"sysfs", "writes to the host's /sys", at(2, 0), rights, "", false, false, setting("sysfs", "/sys/kernel/mm/ksm/run")},
		{"uevent_helper", "sets the program that the host runs on a device's coming", at(2, 0), rights, "", false, false, setting("sysfs", "/sys/kernel/uevent_helper")},
		{"binfmt_misc", "registers an interpreter for the host's programs", at(2, 0), rights, "", false, false, binfmt},
		{"release_agent", "sets the program that the host runs when a group empties (CVE-2022-0492)", at(2, 0), rights, "", false, false, releaseAgent},
		{"raise limit", "raises a limit of its own control group", at(2, 0), rights, "", false, false, raiseLimit},
		{"leave group", "moves itself out of its control group", at(2, 0), rights, "", false, true, leaveGroup},

		{"masks", "reads what is covered in /proc (CVE-2025-31133)", at(2, 2), kernel, "", false, false, masked},
		{"remount", "writes to a file that it was given to read", at(2, 0), rights, "", false, false, writable},

		{"modules", "loads a kernel module", at(1, 0), rights, "", false, false, loadModule},
		{"kexec", "loads another kernel", at(1, 0), rights, "", false, false, loadKernel},
		{"clock", "sets the host's clock", at(1, 0), rights, "", false, false, setClock},
		{"ports", "reads and writes I/O ports", at(1, 0), rights, "", false, false, rawPorts},
		{"memory", "reads /proc/kcore or /dev/mem", at(1, 0), rights, "", false, false, memoryOfAll},
		{"disk", "makes a node for the host's disk", at(1, 0), rights, "", true, false, disk},
		{"console", "makes a node for the host's console (CVE-2025-52565)", at(1, 0), rights, "", false, false, console},
		{"set-user-ID", "becomes root by a program of root's", at(1, 1), own, "", true, false, gain},
		{"bpf", "loads into the kernel", at(1, 1), kernel, "", false, false, loadProgram},
		{"perf", "watches everybody on a CPU", at(1, 0), rights, "", false, false, watchCPU},
		{"userfaultfd", "holds the kernel in a page fault", at(2, 2), kernel, "", false, false, holdFaults},
		{"io_uring", "makes calls that no filter sees", at(2, 2), kernel, "", false, false, ring},
		{"kernel log", "reads the kernel's messages", at(2, 2), kernel, "", false, false, kernelLog},
		{"new user space", "has every right in a space of its own making", at(2, 2), own, "", false, false, newRights},
		{"int 0x80", "makes 32-bit calls, to get by a filter", at(2, 2), kernel, "", false, true, by32bit},
		{"x32", "makes x32 calls, to get by a filter", at(2, 2), kernel, "", false, true, byX32},
		{"real-time", "takes a CPU from everybody", at(2, 0), rights, "", true, false, realTime},

		{"uid_map", "maps its ids again", at(0, 0), "", "userns", false, false, mapAgain},
		{"setgroups", "takes a group that is not its own", at(3, 0), ids, "", false, false, foreignGroup},

		{"fork bomb", "starts processes beyond its limit", at(0, 0), "", "", false, true, forkBomb},
		{"many fds", "opens files beyond its limit, by raising that", at(2, 0), rights, "", false, true, manyFiles},
		{"many inodes", "makes empty files beyond the size of its root", at(0, 0), "", "", false, false, emptyFiles},
		{"fill", "writes more than the size of its root", at(0, 0), "", "", false, false, fill},
	}
}

// Neighbours are attacks on the parent, by a machine that shares its network, its
// processes and its names.
func Neighbours() []Attack {
	const (
		rights = "its root has the rights of the host's, and shares its universe"
		shares = "the universe is shared: give it one of its own"
	)
	at := func(plain, mapped int) [2]int { return [2]int{plain, mapped} }
	return []Attack{
		{"ptrace", "traces a process of the parent's", at(1, 0), rights, "", false, false, trace},
		{"read memory", "reads the memory of a process of the parent's", at(1, 0), rights, "", false, false, readOthers},
		{"signal", "signals a process of the parent's", at(3, 0), shares, "", false, false, signalOthers},
		{"setns", "joins the parent's namespaces", at(1, 0), rights, "", false, true, joinOthers},
		{"proc root", "goes through /proc/PID/root, cwd and fd", at(1, 0), rights, "chroot", false, false, byProcess},
		{"SO_MARK", "marks its packets for other routes than its own", at(2, 0), rights, "", false, false, setMark},
		{"ip rule", "leads its packets by other routes than its own", at(2, 0), rights, "", false, false, addRule},
		{"raw socket", "sends from an address that is not its own", at(2, 0), rights, "", false, false, forge},
		{"packet socket", "reads what others send", at(2, 0), rights, "", false, false, listenAll},
		{"abstract socket", "speaks to a server of the parent's", at(3, 3), shares, "", false, false, abstractSocket},
		{"host name", "sets the host's name", at(2, 0), rights, "", false, false, renameHost},
	}
}
