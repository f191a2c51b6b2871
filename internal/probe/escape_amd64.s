//go:build linux

#include "textflag.h"

// func foreign(nr, a, b, c uintptr) uintptr
TEXT ·foreign(SB), NOSPLIT, $0-40
	MOVQ nr+0(FP), AX
	MOVQ a+8(FP), BX
	MOVQ b+16(FP), CX
	MOVQ c+24(FP), DX
	XORQ SI, SI
	XORQ DI, DI
	// The kernel may clear these on the way back.
	XORQ R8, R8
	XORQ R9, R9
	XORQ R10, R10
	XORQ R11, R11
	INT  $0x80
	MOVQ AX, ret+32(FP)
	RET

// func spawn(buffer, wait, close uintptr) uintptr
//
// The child has the parent's memory (CLONE_VM), stack included, so it touches
// neither: what it needs is in registers, which a system call keeps.
TEXT ·spawn(SB), NOSPLIT, $0-32
	MOVQ buffer+0(FP), R13
	MOVQ wait+8(FP), R12
	MOVQ close+16(FP), R15
	MOVQ $0x111, DI // CLONE_VM | SIGCHLD
	XORQ SI, SI     // the same stack pointer, never used
	XORQ DX, DX
	XORQ R10, R10
	XORQ R8, R8
	MOVQ $56, AX    // clone
	SYSCALL
	TESTQ AX, AX
	JZ   child
	XORPS X15, X15
	MOVQ AX, ret+24(FP)
	RET
child:
	MOVQ R15, DI
	MOVQ $3, AX     // close
	SYSCALL
	MOVQ R12, DI
	MOVQ R13, SI
	MOVQ $1, DX
	XORQ AX, AX     // read: returns when the other end is closed
	SYSCALL
over:
	XORQ DI, DI
	MOVQ $60, AX    // exit
	SYSCALL
	JMP over
