// Package msh is a house of a few rooms; nothing is in the hall itself.
//
//	cmd/msh ──> interp            the front door: the command line, one file per command; signals; the words go to interp
//	   │                          interp runs Starlark: options, load, errors with source and hint, REPL. It knows no machines.
//	   └─────> builtins ──> kernel ──> kernel/cgroup, kernel/ledger, kernel/stage0
//	stdlib: *.star, embedded      builtins is the language: values of scripts become plain data of kernel's. No system call.
//	                              kernel is machines: it knows no Starlark, and only it speaks with Linux.
//
// An arrow is an import, and there are no others: a test beside this file holds them. In words:
//
//   - Only kernel and what is below it import x/sys/unix, netlink and containerd/cgroups. It imports no room, so it can be
//     used, and read, without a script in sight. Its doc.go is where to begin.
//   - interp imports no room either. What a script can say about machines reaches it as words (interp.Word), each with its
//     documentation, its parameters and an example that the tests run.
//   - builtins stands between the two. One kind of resource is one file there, and one of the same name in kernel and in
//     testdata/scripts.
//   - cmd/msh puts them together, and sees that a signal undoes what a script has made.
//   - bench measures from outside, beside other tools that make containers; nothing imports it.
//
// Scripts that show how it is used are in examples; the tests run them. Scripts that hold what it does are in
// testdata/scripts.
package msh
