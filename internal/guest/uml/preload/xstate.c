/*
 * A stand-in for ptrace(2), for User Mode Linux before 6.13 on processors with
 * a large extended state (AMX, APX).
 *
 * Those kernels keep 2696 bytes of floating-point state per process (FP_SIZE in
 * arch/x86/um/user-offsets.c) and write just as much back with PTRACE_SETREGSET
 * and NT_X86_XSTATE. The host takes nothing but the whole area, in its standard
 * format (xstateregs_set() in arch/x86/kernel/fpu/regset.c), which with AMX is
 * 11008 bytes, and so the guest's first process dies of EFAULT. This fills the
 * area up with zeros, and clears the bits of the parts that do not fit, which
 * are then in their initial state. A guest's processes cannot have used them:
 * AMX has to be asked for by arch_prctl(2), which the guest's kernel does not
 * pass on.
 *
 * Every other call goes through unchanged. One process, one thread calls this.
 *
 * It is built on the host that needs it, without a C library: see preload.go.
 */

typedef unsigned long u64;
struct iovec { void *base; u64 len; };
extern int *__errno_location(void);

#define SYS_PTRACE 101
#define PEEK_FIRST 1 /* PTRACE_PEEKTEXT, PEEKDATA, PEEKUSER: 1 to 3 */
#define PEEK_LAST 3
#define GETREGSET 0x4204
#define SETREGSET 0x4205
#define NT_X86_XSTATE 0x202
#define XSTATE_BV (512 / 8)          /* header of the area: which parts are in use */
#define SMALL_PARTS 0x3ffUL          /* bits 0 to 9, x87 to PKRU: within 2696 bytes */
#define SMALLEST 576                 /* legacy area and header */

static unsigned char area[65536] __attribute__((aligned(64)));
static u64 whole; /* size of the host's area, 0 until known */

static long call(long request, long pid, long addr, long data)
{
	long ret;

	/* Not by a variable tied to r10: small compilers do not tie it. */
	__asm__ volatile("movq %5, %%r10\n\tsyscall" : "=a"(ret)
		: "a"(SYS_PTRACE), "D"(request), "S"(pid), "d"(addr), "r"(data)
		: "rcx", "r10", "r11", "memory");
	return ret;
}

static long set_state(int pid, struct iovec *v)
{
	u64 *to = (u64 *)area, *from = v->base;
	struct iovec all = { area, sizeof(area) };
	u64 i;

	if (!whole) {
		if (call(GETREGSET, pid, NT_X86_XSTATE, (long)&all) == 0)
			whole = all.len;
		for (i = 0; i < sizeof(area) / 8; i++)
			to[i] = 0;
	}
	if (v->len < SMALLEST || v->len >= whole)
		return call(SETREGSET, pid, NT_X86_XSTATE, (long)v);
	for (i = 0; i < v->len / 8; i++)
		to[i] = from[i];
	to[XSTATE_BV] &= SMALL_PARTS;
	all.len = whole;
	return call(SETREGSET, pid, NT_X86_XSTATE, (long)&all);
}

long ptrace(int request, int pid, long addr, long data)
{
	long ret, word = 0;

	if (request == SETREGSET && addr == NT_X86_XSTATE)
		ret = set_state(pid, (struct iovec *)data);
	else if (request >= PEEK_FIRST && request <= PEEK_LAST)
		ret = call(request, pid, addr, (long)&word); /* as in glibc: the word is what is returned */
	else
		ret = call(request, pid, addr, data);
	if (ret < 0) {
		*__errno_location() = -ret;
		return -1;
	}
	if (request >= PEEK_FIRST && request <= PEEK_LAST) {
		*__errno_location() = 0;
		return word;
	}
	return ret;
}
