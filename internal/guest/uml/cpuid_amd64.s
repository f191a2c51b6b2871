#include "textflag.h"

// func xstateSize() uint32
//
// CPUID leaf 0xD, subleaf 0: EBX is the size of the XSAVE area for the parts
// that the host's kernel has switched on in XCR0 (Intel SDM volume 1, 13.2).
// Leaf 0 says whether the processor knows leaf 0xD.
TEXT ·xstateSize(SB), NOSPLIT, $0-4
	XORL AX, AX
	XORL CX, CX
	CPUID
	CMPL AX, $0xD
	JCS  none
	MOVL $0xD, AX
	XORL CX, CX
	CPUID
	MOVL BX, ret+0(FP)
	RET

none:
	MOVL $0, ret+0(FP)
	RET
