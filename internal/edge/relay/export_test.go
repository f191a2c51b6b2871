//go:build linux

package relay

import (
	"net"

	"golang.org/x/sys/unix"
)

// MaxSpare is how many pipes the pool may hold.
const MaxSpare = maxSpare

// TakeAllPipes leaves the pool without any until the function it returns is called.
func TakeAllPipes() (giveBack func()) {
	var all []pipe
	for p, ok := takePipe(); ok; p, ok = takePipe() {
		all = append(all, p)
	}
	return func() {
		for _, p := range all {
			givePipe(p)
		}
	}
}

// HandPipe gives away a caller of whom no connection can be made.
func HandPipe(s Session, take func(*net.TCPConn, []byte)) error {
	l, err := next()
	if err != nil {
		return err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	l.post(func() {
		r := &Relay{session: s}
		r.caller.fd, r.guest.fd = ends[0], -1
		l.add(r)
		r.hand(take, nil)
		closeFD(ends[1])
	})
	return nil
}
