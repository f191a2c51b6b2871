//go:build linux

package relay

import (
	"sync"

	"golang.org/x/sys/unix"
)

// bufferSize is how much is copied at a time. It holds the largest TLS record.
const bufferSize = 32 << 10

type buffer [bufferSize]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func takeBuffer() *buffer {
	b, ok := buffers.Get().(*buffer)
	if !ok {
		return new(buffer) // not reached: the pool holds nothing else
	}
	return b
}

func giveBuffer(b *buffer) { buffers.Put(b) }

// pipe is one of the kernel's, both ends of which do not block.
type pipe struct{ read, write int }

const (
	// pipeSize is what an unprivileged user's pipe has, in bytes, until the user
	// has as many as fs.pipe-user-pages-soft allows (pipe(7)): 1024. Further
	// ones have one page or two, which is not worth it.
	pipeSize = 64 << 10
	// maxPipes are made at a time: half of these.
	maxPipes = 512
	// maxSpare of them are kept while nobody needs them.
	maxSpare = 64
)

// pipes is the pool of pipes.
var pipes struct {
	sync.Mutex
	spare []pipe
	made  int
}

// takePipe returns an empty pipe. There is none when as many as may be are in
// use, or when the kernel makes none of a useful size: then bytes are copied.
func takePipe() (pipe, bool) {
	pipes.Lock()
	if last := len(pipes.spare) - 1; last >= 0 {
		p := pipes.spare[last]
		pipes.spare = pipes.spare[:last]
		pipes.Unlock()
		return p, true
	}
	if pipes.made >= maxPipes {
		pipes.Unlock()
		return pipe{}, false
	}
	pipes.made++
	pipes.Unlock()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		forget()
		return pipe{}, false
	}
	p := pipe{read: ends[0], write: ends[1]}
	if size, err := unix.FcntlInt(uintptr(p.read), unix.F_GETPIPE_SZ, 0); err != nil || size < pipeSize {
		p.close()
		return pipe{}, false
	}
	return p, true
}

// givePipe returns a pipe that is empty.
func givePipe(p pipe) {
	pipes.Lock()
	if len(pipes.spare) < maxSpare {
		pipes.spare = append(pipes.spare, p)
		pipes.Unlock()
		return
	}
	pipes.Unlock()
	p.close()
}

// close is for a pipe that is not wanted any more, or has bytes left in it.
func (p pipe) close() {
	_ = unix.Close(p.read)
	_ = unix.Close(p.write)
	forget()
}

func forget() {
	pipes.Lock()
	pipes.made--
	pipes.Unlock()
}
