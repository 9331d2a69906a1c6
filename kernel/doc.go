// Package kernel makes machines out of Linux's own parts. It knows no Starlark
// and runs no daemon.
//
// A machine is a transaction over resources:
//
//	Spec ──NewPlan──> Plan ──Txn──> Machine
//	what is asked     what the      a live handle: pidfd, control group,
//	for: plain data   kernel will   ledger
//	                  be asked
//
// A resource is one file (cpu.go, root.go, …): its parameters and those of the
// phases it has. The phases go through resources in the order of the table in
// kinds.go:
//
//	Validate   of its parameters alone
//	Plan       which namespaces, limits, claims and trees; pure
//	Prepare    msh, before the clone: look, claim
//	Attach     msh, the child parked in its new namespaces
//	Enter      appends the child's system calls
//
// There is no phase for the end. Each effect that the kernel would not undo by
// itself is written to the machine's ledger before it is made, and undoing the
// ledger is the teardown: after success, after failure, and after a crash, by
// whichever msh comes next (Host.Sweep).
//
// # How a machine is born
//
// msh never runs inside a machine. It starts stage0, a program of less than a KiB,
// with a list of system calls in a memory file that both have mapped; msh reads
// from it which step failed and why.
//
//	msh                                      child: stage0
//	───                                      ─────────────
//	have its network made, by a thread
//	mkdir LAB/MACHINE, open the ledger
//	Prepare; claims: ledger, then book
//	ledger: cgroup; mkdir it, set limits
//	open the trees it will mount, make its /dev
//	clone into group and namespaces ───────> leave what is the caller's; write "0" into the v1 groups
//	give it its network by sync ───────────> enter that
//	                                         read sync  (if somebody attaches)
//	shift the owners of trees, Attach        .
//	write sync ────────────────────────────> go on
//	                                         the kinds' steps: root, mounts, names, …
//	                                         leave the session, umask, signals, descriptors; limits
//	sync closes <─────────────────────────── execve init, or be msh's own (the last descriptors close)
//	ledger: the machine is up
//
// When a step fails, the child writes its number and errno into the list and
// exits; sync closes then too, and msh looks at the list to tell the two apart.
//
// A machine inside a machine, or with clocks of its own, cannot be cloned by msh
// directly: a PID namespace must be entered before one can be made below it, and
// a time namespace is entered by being born. There an intermediate goes first:
//
//	msh                      intermediate: stage0            child
//	───                      ────────────────────            ─────
//	clone into group ──────> join groups; unshare time
//	                         setns the parent; open trees
//	                         clone(CLONE_PARENT|…) ────────> read sync
//	take its pidfd <──────── write relay                     .
//	write its id maps        read relay                      .
//	write relay ───────────> exit                            .
//	attach; write sync ────────────────────────────────────> go on as above
//
// # Entering a machine
//
// run, spawn, shell and exec all start with the same steps (Machine.entry): born in
// the machine's control group and PID namespace, leave what is the caller's, join the
// other namespaces in one setns(2) on init's pidfd, take its rlimits. No path that the
// machine has a say in is used before descriptors are closed, and from the moment that
// the process has other ids than its program's it cannot be traced (Steps.leaveCaller,
// Steps.enter, Steps.clean).
//
// # Worked example
//
//	h, err := kernel.NewHost("")
//	lab, err := h.NewLab("demo", false)
//	defer lab.Close(ctx)
//	m, err := lab.Fork(ctx, lab.Host(), &kernel.Spec{Resources: []kernel.Resource{
//		&kernel.CPU{Quota: 50},
//		&kernel.Root{Source: "/", Write: "overlay"},
//		&kernel.Space{Name: "pidspace"},
//	}})
//	r, err := m.Run(ctx, &kernel.Command{Argv: []string{"nproc"}}, nil, 0)
package kernel
