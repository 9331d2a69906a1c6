// Package stage0 holds the program that a machine's processes start as, and
// builds the list of system calls that it performs.
//
// stage0 is a static ELF of less than a KiB, written in assembly beside this file.
// msh starts it from a sealed memory file with the list in another; it maps the
// list, makes the calls one after another and leaves by the last one, an
// execve(2). So a process on its way into a machine is never a copy of msh: no
// Go runtime, no descriptor, no memory of the caller is in it.
//
//	p := stage0.New()
//	fd := p.Call("open /etc/motd", 0, unix.SYS_OPENAT, stage0.AtCwd, "/etc/motd", unix.O_RDONLY, 0)
//	p.Call("read it", 0, unix.SYS_READ, fd, stage0.Buffer(16), 16)
//	p.Exec([]string{"/bin/true"}, nil)
//	blob, err := p.Assemble(nil)
//
// # The list
//
// The memory file is mapped, shared with msh, at the fixed address Base, so that
// pointers into it are plain numbers and results can be read from outside:
//
//	 0  unused
//	 8  number of the step that failed, plus one; 0 while none has
//	16  its errno
//	24  zeros
//	64  the steps, 64 bytes each:
//	       0 u32 system call   4 u32 flags   8 six arguments   56 result
//	    then the data that arguments point to
package stage0

import "sync"

//go:generate sh build.sh

// Base is the address at which stage0 maps its list: near the program, so that one
// page of page tables is enough for both, and on a boundary of the largest pages
// that arm64 has. Making a page table and taking it down is no small part of execve(2).
const Base = 0x410000

// Zeros is where 32 bytes of zero are, for steps that want an empty struct.
const Zeros uint64 = Base + 24

// MaxSize is the most that a list and its data can be: stage0 maps that much.
const MaxSize = 16 << 20

// BlobFD is the descriptor stage0 finds its list at.
const BlobFD = 3

// Name is the argv[0] to start it with. Where the process becomes an init, so does the name.
const Name = "0nit"

// Image is the ELF for the architecture msh runs on.
func Image() []byte { return image }

// memory is the sealed file every stage0 of this process is executed from.
var memory = sync.OnceValues(func() (int, error) { return SealedFile(ImageName, image) })

// Executable returns the descriptor of that file, which is good for the life of
// this process: /proc/self/fd/N is the path to give execve(2).
func Executable() (fd int, err error) { return memory() }
