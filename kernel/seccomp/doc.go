// Package seccomp turns profiles into the filters of seccomp(2), as bytes: who is
// to be confined by one is not this process, and runs no code of this package.
//
// A profile is what the OCI runtime specification calls linux.seccomp, in its JSON
// or in that of container engines, whose rules may depend on capabilities and on
// the kernel. A filter covers every ABI that the machine's processor has, for each
// is another way to the same system calls: on amd64 its own, i386 by int 0x80 and
// x32; on arm64 its own and 32-bit arm.
//
//	p, err := seccomp.Parse(json, caps)
//	f, err := seccomp.Compile(p)
//	// f is the program of a struct sock_fprog
//
// # How a filter reads
//
// It finds the ABI, then the range that the number of the call is in by halving,
// then looks at arguments where a rule has conditions. For a number without
// conditions the kernel needs the filter only once: it finds out by itself that the
// answer is always to allow (seccomp_cache_prepare, Linux 5.11).
package seccomp
