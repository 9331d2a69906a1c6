// stage0 for arm64: the same program as stage0_amd64.S, to be read beside it.
// What the list, argv[0] and the flat link are about is told there.

	.set	BLOB, 0x410000	// where the list is mapped: see Base
	.set	BLOBMAX, 0x1000000	// 16 MiB of address space, not of memory
	.set	FAILED, 8		// header: index of the failed step, plus one
	.set	ERRNO, 16		// header: its errno

	// The bit numbers of the flags, as tbz and tbnz take them.
	.set	MAYFAIL, 0
	.set	SKIP, 1
	.set	POSITIVE, 2
	.set	FORK, 3
	.set	BECOME, 4
	.set	BITS, 5
	.set	SIGNALS, 6

	.text
	.globl	_start
base:	.byte	0x7f, 'E', 'L', 'F', 2, 1, 1, 0
	.quad	0
	.short	2, 183			// ET_EXEC, AArch64
	.long	1
	.quad	_start
	.quad	64, 0			// program headers right behind; no sections
	.long	0
	.short	64, 56, 1, 64, 0, 0
	.long	1, 5			// PT_LOAD, read and execute
	.quad	0, base, base, size, size, 0x10000	// pages can be 64 KiB

_start:	ldr	x1, [sp, 8]		// argv[0]
	ldrb	w1, [x1]
	cmp	w1, 'i'
	b.eq	init

	mov	w8, 222			// mmap(BLOB, BLOBMAX, RW, SHARED|FIXED, 3, 0)
	mov	w0, BLOB
	mov	w1, BLOBMAX
	mov	w2, 3
	mov	w3, 0x11
	mov	w4, 3
	mov	w5, 0
	svc	0
	mov	w19, BLOB		// a failed mmap faults on the next line but two
	add	x20, x19, 64		// x20: the step at hand
	sub	sp, sp, 48		// its six arguments

step:	ldr	w21, [x20, 4]		// flags
	mov	w9, 0
args:	add	x10, x20, x9, lsl 3
	ldr	x10, [x10, 8]
	add	w11, w9, 8
	lsr	w11, w21, w11
	tbz	w11, 0, imm		// bit 8+i: argument i is the number of a step,
	add	x10, x19, x10, lsl 6	// and stands for that step's result
	ldr	x10, [x10, 64 + 56]
imm:	str	x10, [sp, x9, lsl 3]
	add	w9, w9, 1
	cmp	w9, 6
	b.ne	args

	ldp	x0, x1, [sp]
	tbz	w21, SIGNALS, 1f	// of argument 0, the lowest bit that is left
	rbit	x0, x0
	clz	x0, x0
	add	x0, x0, 1
1:	tbz	w21, BITS, 1f		// or of argument 1
	rbit	x1, x1
	clz	x1, x1
1:	ldp	x2, x3, [sp, 16]
	ldp	x4, x5, [sp, 32]
	ldr	w8, [x20]
	svc	0
	cbnz	x0, 1f
	tbnz	w21, FORK, over		// in the new process
1:	str	x0, [x20, 56]
	cmn	x0, 4095
	b.hs	failed
	cbnz	x0, next
	tbnz	w21, POSITIVE, failed	// read(2) at end of file: the parent is gone
next:	tbnz	w21, BECOME, become
	add	x11, x20, 8
	tbnz	w21, SIGNALS, 1f
	add	x11, x11, 8
	tbz	w21, BITS, ahead
1:	ldr	x9, [x11]
	sub	x10, x9, 1
	and	x9, x9, x10
	str	x9, [x11]
	cbnz	x9, step		// once more, for the next one
ahead:	add	x20, x20, 64
	b	step

over:	lsr	w9, w21, 24		// over the old process's steps; the list is
	add	x20, x20, x9, lsl 6	// shared, and the result the old one's to write
	b	ahead

failed:	tbz	w21, SKIP, 1f
	add	x20, x20, 64
	b	next
1:	tbnz	w21, MAYFAIL, next
	neg	x0, x0
	str	x0, [x19, ERRNO]
	sub	x20, x20, x19
	lsr	x20, x20, 6		// (step - STEPS) / 64 + 1
	add	x9, x19, FAILED
	stlr	x20, [x9]		// whoever sees it sees the errno
	mov	w0, 126
exit:	mov	w8, 94			// exit_group
	svc	0

// What execve(2) would leave behind.
become:	ldr	x1, [sp, 48 + 8]	// argv[0]
	mov	w9, 'i'
	strb	w9, [x1]
	mov	w8, 436			// close_range(3, all, 0)
	mov	w0, 3
	mov	w1, -1
	mov	w2, 0
	svc	0
	mov	w8, 215			// munmap(BLOB, BLOBMAX)
	mov	w0, BLOB
	mov	w1, BLOBMAX
	svc	0

// The minimal init.
init:	mov	w8, 172			// getpid
	svc	0
	cmp	w0, 1
	b.ne	sleep
wait:	mov	w8, 137			// rt_sigtimedwait(all, NULL, NULL, 8)
	adr	x0, all
	mov	x1, 0
	mov	x2, 0
	mov	w3, 8
	svc	0
	cmp	w0, 0
	b.le	wait
	mov	w19, w0
	mov	w8, 129			// kill(-1, signal)
	mov	x0, -1
	mov	w1, w19
	svc	0
	ldr	x9, ends
	lsr	x9, x9, x19		// signal 64 shifts by 0, and bit 0 is clear
	tbz	x9, 0, wait
left:	mov	w8, 129			// kill(-1, 0): is anybody left?
	mov	x0, -1
	mov	w1, 0
	svc	0
	cbnz	w0, gone
	mov	w8, 101			// nanosleep
	adr	x0, nap
	mov	x1, 0
	svc	0
	b	left
gone:	add	w0, w19, 128
	b	exit

sleep:	mov	w8, 73			// ppoll(NULL, 0, NULL, none, 8)
	mov	x0, 0
	mov	w1, 0
	mov	x2, 0
	adr	x3, none
	mov	w4, 8
	svc	0
	b	sleep

	.balign	8
all:	.quad	-1
none:	.quad	0			// no signal is blocked
nap:	.quad	0, 2000000
ends:	.quad	1 << 2 | 1 << 3 | 1 << 15 | 1 << 30	// INT QUIT TERM PWR
	.set	size, . - base
