#include "textflag.h"

// func int80(nr, a, b, c uintptr) uintptr
// The 32-bit entry of the kernel, from 64-bit code: a filter that only knows one
// architecture's numbers takes one call for another.
TEXT ·int80(SB), NOSPLIT, $8-40
	MOVQ	BX, 0(SP)
	MOVQ	nr+0(FP), AX
	MOVQ	a+8(FP), BX
	MOVQ	b+16(FP), CX
	MOVQ	c+24(FP), DX
	INT	$0x80
	MOVLQSX	AX, AX
	MOVQ	0(SP), BX
	MOVQ	AX, ret+32(FP)
	RET
