//go:build linux

package probe

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// words turns arguments into what a system call takes: numbers as they are,
// strings and bytes by address. A nil is 0. The arguments must be kept alive
// for as long as the words are in use.
func words(args []any) (w [6]uintptr) {
	for i, v := range args {
		switch v := v.(type) {
		case nil:
		case int:
			w[i] = uintptr(v)
		case uintptr:
			w[i] = v
		case result:
			w[i] = uintptr(v)
		case []byte:
			w[i] = uintptr(unsafe.Pointer(unsafe.SliceData(v)))
		case []uint64:
			w[i] = uintptr(unsafe.Pointer(unsafe.SliceData(v)))
		case unsafe.Pointer:
			w[i] = uintptr(v)
		default:
			panic(fmt.Sprintf("%T is no argument of a system call", v))
		}
	}
	return w
}

// text is a path or a name as the kernel takes it.
func text(s string) []byte { return append([]byte(s), 0) }

// call makes a system call that has no wrapper, or whose wrapper would check
// what the kernel is to check.
func call(nr uintptr, args ...any) (int, error) {
	w := words(args)
	r, _, errno := unix.Syscall6(nr, w[0], w[1], w[2], w[3], w[4], w[5])
	runtime.KeepAlive(args)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// A step is a system call of a child.
type step struct {
	name string // empty for what only leads to others
	nr   uintptr
	args []any
}

// must is a step that ends the child when it fails, because what comes after
// it would then be done to others.
func must(nr uintptr, args ...any) step { return step{mustName, nr, args} }

const mustName = "\x00"

// result as an argument of a step is what an earlier one returned: result 0 is
// that of the first.
type result int

// maxSteps is how many steps a child can make: what fits the page on which it
// answers.
const maxSteps = 256

type rawStep struct {
	nr    uintptr
	must  uintptr // not 0: end after a failure
	w     [6]uintptr
	refer [6]uintptr // 1 + which result to take instead
}

// outcome is what became of a child.
type outcome struct {
	results []int64 // as the kernel returns them: negative is an error
	status  unix.WaitStatus
}

// errAt returns the error of a step, nil if it succeeded.
func (o outcome) errAt(i int) error {
	switch {
	case i < len(o.results) && o.results[i] != notMade && o.results[i] >= 0:
		return nil
	case i < len(o.results) && o.results[i] != notMade:
		return unix.Errno(-o.results[i])
	case o.status.Signaled() && o.status.Signal() == unix.SIGSYS:
		return errFilter
	case o.status.Signaled():
		return fmt.Errorf("ended by a signal: %v", o.status.Signal())
	}
	return errNotMade
}

type plainError string

func (e plainError) Error() string { return string(e) }

const (
	errFilter  = plainError("killed by the filter")
	errNotMade = plainError("not reached")
)

// notMade marks a step that the child has not come to.
const notMade = -1 << 40

// foreignFlag beside the flags of clone(2), which do not use this bit, makes
// the steps by the entry for programs of 32 bits.
const foreignFlag = 1 << 40

// inChild makes the steps one after the other in a child process that has one
// thread, this one's, and a copy of everything else. It goes on after a step
// that fails. flags are added to those of clone(2): namespaces.
//
// Only a child can be killed without the program, and only a process with one
// thread can make a user namespace.
func inChild(flags uintptr, steps ...step) (outcome, error) {
	if len(steps) > maxSteps {
		panic("too many steps")
	}
	page, err := unix.Mmap(-1, 0, maxSteps*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return outcome{}, fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(page) //nolint:errcheck // it cannot fail for what was just mapped
	results := unsafe.Slice((*int64)(unsafe.Pointer(unsafe.SliceData(page))), maxSteps)
	raw := make([]rawStep, len(steps)+1)
	for i, s := range steps {
		results[i] = notMade
		raw[i] = rawStep{nr: s.nr, w: words(s.args)}
		if s.name == mustName {
			raw[i].must = 1
		}
		for j, v := range s.args {
			if r, ok := v.(result); ok {
				raw[i].w[j], raw[i].refer[j] = 0, uintptr(r)+1
			}
		}
	}
	pid, errno := forkSteps(flags, unsafe.Pointer(&raw[0]), uintptr(len(steps)), unsafe.Pointer(&results[0]))
	if errno != 0 {
		return outcome{}, fmt.Errorf("clone: %w", errno)
	}
	var o outcome
	o.status, err = reap(int(pid))
	o.results = append(o.results, results[:len(steps)]...)
	runtime.KeepAlive(steps)
	runtime.KeepAlive(raw)
	return o, err
}

func reap(pid int) (unix.WaitStatus, error) {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		if err != unix.EINTR {
			return status, err
		}
	}
}

// forkSteps is the part of inChild that runs on both sides of the fork. The
// child shares nothing with the Go runtime's other threads and must not come
// to need them: no allocation, no growing stack.
//
//go:norace
//go:nosplit
//go:noinline
func forkSteps(flags uintptr, raw unsafe.Pointer, n uintptr, results unsafe.Pointer) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, flags&^foreignFlag|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for i := range n {
		s := (*rawStep)(unsafe.Add(raw, i*unsafe.Sizeof(rawStep{})))
		for j := range uintptr(6) {
			refer := *(*uintptr)(unsafe.Add(unsafe.Pointer(&s.refer), j*unsafe.Sizeof(j)))
			if refer != 0 {
				*(*uintptr)(unsafe.Add(unsafe.Pointer(&s.w), j*unsafe.Sizeof(j))) = *(*uintptr)(unsafe.Add(results, (refer-1)*8))
			}
		}
		var v int64
		if flags&foreignFlag != 0 {
			v = int64(int32(foreign(s.nr, s.w[0], s.w[1], s.w[2])))
		} else {
			r, _, e := syscall.RawSyscall6(s.nr, s.w[0], s.w[1], s.w[2], s.w[3], s.w[4], s.w[5])
			if v = int64(r); e != 0 {
				v = -int64(e)
			}
		}
		*(*int64)(unsafe.Add(results, i*8)) = v
		if v < 0 && s.must != 0 {
			break
		}
	}
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// tryInChild notes for every step with a name whether it worked in a child.
func (t *trail) tryInChild(flags uintptr, steps ...step) {
	o, err := inChild(flags, steps...)
	if err != nil {
		t.refused("a child of its own", err)
		return
	}
	for i, s := range steps {
		switch err := o.errAt(i); {
		case s.name == mustName && err != nil:
			t.refused("the way there", err)
		case s.name == mustName, s.name == "", errors.Is(err, errNotMade):
		default:
			t.worked(s.name, err)
		}
	}
}
