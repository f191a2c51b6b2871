package edge

import (
	"container/list"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// burst is what a pace allows at once: what its rate does in so long.
const burst = time.Second

// pace bounds how often something may happen: at a rate, with a burst. It is the
// generic cell rate algorithm (ITU-T I.371): one number says it all. Ready when zero,
// for any goroutines at a time.
type pace struct{ due atomic.Int64 }

// take tells whether it may happen now, at so many a second, and with this burst at
// most.
func (p *pace) take(now time.Time, rate int, most time.Duration) bool {
	for {
		due := p.due.Load()
		next, ok := paced(due, now.UnixNano(), rate, most)
		if !ok {
			return false
		}
		if p.due.CompareAndSwap(due, next) {
			return true
		}
	}
}

// paced says when the next would be due if one happens now, and whether it may.
func paced(due, now int64, rate int, most time.Duration) (int64, bool) {
	due = max(due, now) + int64(time.Second)/int64(max(rate, 1))
	return due, due-now <= int64(most)
}

// sharedPace is one that no caller can use up for the others: who alone takes more
// than half of the rate leaves them a part of the burst. Who is alone may have all of
// the rate. Callers are told apart by hashes, so that a flood from everywhere takes no
// memory; one who shares both of his with such a caller counts as he does. Ready when
// zero, for any goroutines at a time.
type sharedPace struct {
	all pace
	// callers are apart, and made with the first one: most guests of a host with many
	// have none for long, and the garbage collector has nothing to look for in them.
	callers atomic.Pointer[callerPaces]
}

// callerPaces are rows of paces, where a caller has one in each.
type callerPaces [2][64]pace

// left is what remains of the burst for those who take little.
const left = burst / 4

var callerSeed = maphash.MakeSeed() //nolint:gochecknoglobals // no caller is to know it

// take is pace's for a caller, as callerKey has him.
func (p *sharedPace) take(key netip.Addr, now time.Time, rate int) bool {
	callers := p.callers.Load()
	if callers == nil {
		p.callers.CompareAndSwap(nil, new(callerPaces))
		callers = p.callers.Load()
	}
	hash := maphash.Comparable(callerSeed, key)
	most := burst - left
	for i := range callers {
		row := &callers[i]
		if row[hash%uint64(len(row))].take(now, max(rate/2, 1), burst) {
			most = burst
		}
		hash /= uint64(len(row))
	}
	return p.all.take(now, rate, most)
}

// callerKey is whom a caller counts as: one address of IPv4, or a network of 64
// bits of IPv6, which is what one customer has at least.
func callerKey(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

// maxRests is how many callers without an open connection are remembered for their
// rate. When there are more, some are forgotten; they may then begin with a full
// burst again.
const maxRests = 1 << 15

// callers bounds what each caller may have. Ready when zero. What it takes of
// memory is bounded by maxRests and by the open connections.
type callers struct {
	mu    sync.Mutex
	all   map[netip.Addr]*callerState
	rests list.List // of *callerState without a connection, who left last at the end
}

type callerState struct {
	key  netip.Addr
	open int
	due  int64         // see pace
	rest *list.Element // in callers.rests, nil while there is a connection
}

// admit counts one connection of a caller in, or says why it may not be. Each that
// it let in is given to leave later.
func (c *callers) admit(key netip.Addr, now time.Time, connections, rate int) (Reason, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(now)
	s, ok := c.all[key]
	if !ok {
		s = &callerState{key: key}
	}
	if s.open >= connections {
		return ReasonCallerConnections, false
	}
	due, paced := paced(s.due, now.UnixNano(), rate, burst)
	if !paced {
		return ReasonCallerRate, false
	}
	s.due = due
	s.open++
	if s.rest != nil {
		c.rests.Remove(s.rest)
		s.rest = nil
	}
	if !ok {
		if c.all == nil {
			c.all = make(map[netip.Addr]*callerState)
		}
		c.all[key] = s
	}
	return "", true
}

// leave counts one of a caller's connections out.
func (c *callers) leave(key netip.Addr, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.all[key]
	if !ok {
		return
	}
	if s.open--; s.open == 0 {
		s.rest = c.rests.PushBack(s)
		c.forget(now)
	}
}

// forget drops callers of whom nothing has to be remembered any more: those whose
// burst would be full again, at most two so that nobody waits for it, and those that
// are too many. c.mu is held.
func (c *callers) forget(now time.Time) {
	for range 2 {
		front := c.rests.Front()
		if front == nil {
			return
		}
		s, ok := front.Value.(*callerState)
		if !ok || s.due > now.UnixNano() && c.rests.Len() <= maxRests {
			return
		}
		c.rests.Remove(front)
		delete(c.all, s.key)
	}
}

func (c *callers) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all)
}

// sockets bounds the file descriptors of connections, on both sides together.
type sockets struct {
	open atomic.Int64
	most int64
}

// take tells whether there is room for one more, which give gives back.
func (s *sockets) take() bool {
	if s.open.Add(1) > s.most {
		s.open.Add(-1)
		return false
	}
	return true
}

func (s *sockets) give() { s.open.Add(-1) }
