# stage0 performs a list of system calls that msh wrote, and ends as the
# program the list's last call executes. It is the only code of msh that ever
# runs inside a machine: no Go runtime, no libc, no descriptor but those the
# list names. The layout of the list is drawn in program.go.
#
# argv[0] tells the two lives apart:
#   "0..."  perform the list in the memory file at descriptor 3
#   "i..."  be a machine's minimal init
# A list may also end in the second, with nothing executed in between.
#
# The file is linked flat (ld --oformat binary): the ELF header below is all
# the linking there is, so every version of as and ld gives the same bytes.

	.set	BLOB, 0x410000	# where the list is mapped: see Base
	.set	BLOBMAX, 0x1000000	# 16 MiB of address space, not of memory
	.set	STEPS, BLOB + 64
	.set	FAILED, 8		# header: index of the failed step, plus one
	.set	ERRNO, 16		# header: its errno

	.set	MAYFAIL, 1 << 0
	.set	SKIP, 1 << 1
	.set	POSITIVE, 1 << 2
	.set	FORK, 1 << 3
	.set	BECOME, 1 << 4
	.set	BITS, 1 << 5
	.set	SIGNALS, 1 << 6

	.intel_syntax noprefix
	.text
	.globl	_start
base:	.byte	0x7f, 'E', 'L', 'F', 2, 1, 1, 0
	.quad	0
	.short	2, 62			# ET_EXEC, x86-64
	.long	1
	.quad	_start
	.quad	64, 0			# program headers right behind; no sections
	.long	0
	.short	64, 56, 1, 64, 0, 0
	.long	1, 5			# PT_LOAD, read and execute
	.quad	0, base, base, size, size, 0x1000

_start:	mov	rsi, [rsp + 8]		# argv[0]
	cmp	byte ptr [rsi], 'i'
	je	init

	mov	eax, 9			# mmap(BLOB, BLOBMAX, RW, SHARED|FIXED, 3, 0)
	mov	edi, BLOB
	mov	esi, BLOBMAX
	mov	edx, 3
	mov	r10d, 0x11
	mov	r8d, 3
	xor	r9d, r9d
	syscall
	mov	ebp, BLOB		# a failed mmap faults on the next line but two
	lea	r12, [rbp + 64]		# r12: the step at hand
	sub	rsp, 48			# its six arguments

step:	mov	ebx, [r12 + 4]		# flags
	xor	ecx, ecx
args:	mov	rax, [r12 + rcx*8 + 8]
	lea	edx, [rcx + 8]
	bt	ebx, edx		# bit 8+i: argument i is the number of a step,
	jnc	imm			# and stands for that step's result
	shl	rax, 6
	mov	rax, [rbp + rax + 64 + 56]
imm:	mov	[rsp + rcx*8], rax
	inc	ecx
	cmp	ecx, 6
	jne	args

	mov	rdi, [rsp]
	test	bl, SIGNALS		# of argument 0, the lowest bit that is left
	jz	1f
	bsf	rdi, rdi
	inc	edi
1:	mov	rsi, [rsp + 8]
	test	bl, BITS		# or of argument 1
	jz	1f
	bsf	rsi, rsi
1:	mov	rdx, [rsp + 16]
	mov	r10, [rsp + 24]
	mov	r8, [rsp + 32]
	mov	r9, [rsp + 40]
	mov	eax, [r12]
	syscall
	test	rax, rax
	jnz	1f
	test	bl, FORK		# in the new process
	jnz	over
1:	mov	[r12 + 56], rax
	cmp	rax, -4095
	jae	failed
	test	rax, rax
	jnz	next
	test	bl, POSITIVE		# read(2) at end of file: the parent is gone
	jnz	failed
next:	test	bl, BECOME
	jnz	become
	lea	rdx, [r12 + 8]
	test	bl, SIGNALS
	jnz	1f
	add	rdx, 8
	test	bl, BITS
	jz	ahead
1:	mov	rax, [rdx]
	lea	rcx, [rax - 1]
	and	rax, rcx
	mov	[rdx], rax
	jnz	step			# once more, for the next one
ahead:	add	r12, 64
	jmp	step

over:	shr	ebx, 24			# over the old process's steps; the list is
	shl	ebx, 6			# shared, and the result the old one's to write
	add	r12, rbx
	jmp	ahead

failed:	test	bl, SKIP
	jz	1f
	add	r12, 64
	jmp	next
1:	test	bl, MAYFAIL
	jnz	next
	neg	rax
	mov	[rbp + ERRNO], rax
	sub	r12, rbp
	shr	r12, 6			# (step - STEPS) / 64 + 1
	mov	[rbp + FAILED], r12
	mov	edi, 126
exit:	mov	eax, 231		# exit_group
	syscall

# What execve(2) would leave behind. With the descriptors the line to msh ends, which goes
# on; the memory is not waited for, as a hypervisor may take long over it.
become:	mov	rsi, [rsp + 48 + 8]	# argv[0]
	mov	byte ptr [rsi], 'i'
	mov	eax, 436		# close_range(3, all, 0)
	mov	edi, 3
	mov	esi, -1
	xor	edx, edx
	syscall
	mov	eax, 11			# munmap(BLOB, BLOBMAX)
	mov	edi, BLOB
	mov	esi, BLOBMAX
	syscall

# The minimal init. The list has ignored SIGCHLD, so that the kernel reaps, and
# blocked every signal; both outlive execve(2). As PID 1 it hands each signal on
# to the whole machine, and after one that asks it to end it waits until nobody
# is left. Anywhere else kill(-1) would hit the host, so there it only sleeps
# and dies of what it gets.
init:	mov	eax, 39			# getpid
	syscall
	cmp	eax, 1
	jne	sleep
wait:	mov	eax, 128		# rt_sigtimedwait(all, NULL, NULL, 8)
	lea	rdi, [rip + all]
	xor	esi, esi
	xor	edx, edx
	mov	r10d, 8
	syscall
	test	eax, eax
	jle	wait
	mov	ebx, eax
	mov	eax, 62			# kill(-1, signal)
	mov	rdi, -1
	mov	esi, ebx
	syscall
	bt	dword ptr [rip + ends], ebx
	jnc	wait
left:	mov	eax, 62			# kill(-1, 0): is anybody left?
	mov	rdi, -1
	xor	esi, esi
	syscall
	test	eax, eax
	jnz	gone
	mov	eax, 35			# nanosleep
	lea	rdi, [rip + nap]
	xor	esi, esi
	syscall
	jmp	left
gone:	lea	edi, [rbx + 128]
	jmp	exit

sleep:	mov	eax, 271		# ppoll(NULL, 0, NULL, none, 8)
	xor	edi, edi
	xor	esi, esi
	xor	edx, edx
	lea	r10, [rip + none]
	mov	r8d, 8
	syscall
	jmp	sleep

	.balign	8
all:	.quad	-1
none:	.quad	0			# no signal is blocked
nap:	.quad	0, 2000000
ends:	.quad	1 << 2 | 1 << 3 | 1 << 15 | 1 << 30, 0	# INT QUIT TERM PWR, of 64
	.set	size, . - base
