//go:build linux

package relay

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// eventsAtOnce are fetched in one go.
	eventsAtOnce = 128
	// forever is when nothing is due.
	forever = time.Hour
)

// loop does all that its connections need, on one goroutine.
type loop struct {
	epoll, wake int
	slots       []*Relay
	free        []int32
	generation  int32
	ready       []*Relay // that were interrupted for the sake of others
	listeners   []*listener
	buffer      *buffer
	pipe        pipe
	piped       bool // pipe is one

	start time.Time     // where its clock begins
	now   time.Duration // since then, in this turn
	due   time.Duration // when something is to be looked at; 0 for never

	posted struct {
		sync.Mutex
		work []func()
	}
	events [eventsAtOnce]unix.EpollEvent
}

// shared are the loops of the process, which are started by who needs them first
// and never end: as many as there are processors.
var shared = sync.OnceValues(func() ([]*loop, error) {
	loops := make([]*loop, runtime.GOMAXPROCS(0))
	// The scheduler takes them for goroutines that always run.
	runtime.GOMAXPROCS(2 * len(loops))
	for i := range loops {
		l, err := newLoop()
		if err != nil {
			return nil, err
		}
		loops[i] = l
	}
	for _, l := range loops {
		go l.run()
	}
	return loops, nil
})

var turn atomic.Uint32

// next returns the loop whose turn it is to take a connection.
func next() (*loop, error) {
	loops, err := shared()
	if err != nil {
		return nil, err
	}
	return loops[int(turn.Add(1))%len(loops)], nil
}

// Descriptors of a loop among its events: the others have a slot's number.
const (
	wakeSlot     = -1
	listenerSlot = -2 // and below
)

func newLoop() (*loop, error) {
	l := &loop{buffer: new(buffer), start: time.Now()}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	return l, unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, l.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeSlot})
}

// post has the loop do something, soon. Any goroutine may call it.
func (l *loop) post(work func()) {
	l.posted.Lock()
	first := len(l.posted.work) == 0
	l.posted.work = append(l.posted.work, work)
	l.posted.Unlock()
	if first {
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

func (l *loop) run() {
	for {
		n := l.wait()
		l.now = time.Since(l.start)
		for i := range l.events[:n] {
			l.handle(&l.events[i])
		}
		// Those that are ready again by now wait for the next turn.
		ready := l.ready
		l.ready = nil
		for _, r := range ready {
			r.queued = false
			r.turn()
		}
		if l.due != 0 && l.now >= l.due {
			l.sweep()
		}
	}
}

// busy is how long a loop waits before it gives up its turn of the scheduler, in
// milliseconds.
const busy = 5

// wait returns the number of events.
func (l *loop) wait() int {
	timeout := forever
	switch {
	case len(l.ready) > 0:
		timeout = 0
	case l.due != 0:
		timeout = max(0, l.due-time.Since(l.start))
	}
	// Rounded up, so that it is due then.
	wait := int((timeout + time.Millisecond - 1) / time.Millisecond)
	if n := poll(l.epoll, l.events[:], min(wait, busy)); n > 0 || wait <= busy {
		return n
	}
	n, err := unix.EpollWait(l.epoll, l.events[:], wait-busy)
	if err != nil {
		return 0 // interrupted
	}
	return n
}

func (l *loop) handle(e *unix.EpollEvent) {
	switch {
	case e.Fd == wakeSlot:
		var count [8]byte
		_, _ = unix.Read(l.wake, count[:])
		l.posted.Lock()
		work := l.posted.work
		l.posted.work = nil
		l.posted.Unlock()
		for _, do := range work {
			do()
		}
	case e.Fd <= listenerSlot:
		for _, a := range l.listeners {
			if a.slot == e.Fd {
				l.accept(a)
				return
			}
		}
	default:
		// What was closed in this turn may have an event after that.
		r := l.slots[e.Fd>>1]
		if r == nil || r.generation != e.Pad {
			return
		}
		end := &r.caller
		if e.Fd&1 == 1 {
			end = &r.guest
		}
		end.note(e.Events)
		r.turn()
	}
}

// add gives a connection a slot.
func (l *loop) add(r *Relay) {
	if last := len(l.free) - 1; last >= 0 {
		r.slot = l.free[last]
		l.free = l.free[:last]
	} else {
		r.slot = int32(len(l.slots))
		l.slots = append(l.slots, nil)
	}
	l.generation++
	r.loop, r.generation = l, l.generation
	l.slots[r.slot] = r
}

// watch has the events of one of a connection's ends reported, each change once.
func (l *loop) watch(r *Relay, fd int, guest bool) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: r.slot << 1, Pad: r.generation}
	if guest {
		e.Fd |= 1
	}
	return add(l.epoll, fd, &e)
}

func (l *loop) remove(r *Relay) {
	if r.slot < 0 {
		return // it never began
	}
	l.slots[r.slot] = nil
	l.free = append(l.free, r.slot)
}

// later makes a turn of a connection come without an event.
func (l *loop) later(r *Relay) {
	if !r.queued {
		r.queued = true
		l.ready = append(l.ready, r)
	}
}

// remind makes the loop look at what is due, by then.
func (l *loop) remind(due time.Duration) {
	if l.due == 0 || due < l.due {
		l.due = due
	}
}

// sweep looks at every connection. Each is due only a few times in its life or
// hour, so nothing has to keep them in order.
func (l *loop) sweep() {
	l.due = 0
	for _, a := range l.listeners {
		a.resume(l)
	}
	for _, r := range l.slots {
		if r == nil || r.due == 0 {
			continue
		}
		if l.now >= r.due {
			r.late()
		}
		if r.end.Load() == 0 && r.due != 0 {
			l.remind(r.due)
		}
	}
}
