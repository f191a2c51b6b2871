package edge

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxWaiting is how many calls wait for one guest to start, and maxWaitingEach how
// many of them may be one caller's.
const (
	maxWaiting     = 128
	maxWaitingEach = maxWaiting / 2
)

// waker is what a guest knows of callers that wait for it to start.
type waker struct {
	mu      sync.Mutex
	waiting int
	each    map[netip.Addr]int // of waiting, by callerKey
	asked   time.Time          // when it was to be started, the last time
	ran     bool               // it did since
	// open are its ports that took calls since then, for good.
	open map[uint16]struct{}
}

// join adds a call that waits, unless there are enough. ask is set if the guest, which
// runs or not, has to be told to start; left is how long it may take. What running says
// is newer than what runs was called for: else the guest would be told once more.
func (w *waker) join(key netip.Addr, now time.Time, running func() bool, timeout time.Duration) (ask bool, left time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting >= maxWaiting || w.each[key] >= maxWaitingEach {
		return false, 0, false
	}
	w.waiting++
	if w.each == nil {
		w.each = make(map[netip.Addr]int)
	}
	w.each[key]++
	since := now.Sub(w.asked)
	switch {
	case !running() && (w.ran || since >= timeout):
		w.asked, w.ran, w.open = now, false, nil
		return true, timeout, true
	case since >= timeout: // somebody else has started it just now
		return false, timeout, true
	}
	return false, timeout - since, true
}

func (w *waker) leave(key netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting--
	if w.each[key]--; w.each[key] == 0 {
		delete(w.each, key)
	}
}

// runs says that the guest was seen to run.
func (w *waker) runs() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ran = true
}

// takes says that a port takes calls.
func (w *waker) takes(port uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = make(map[uint16]struct{})
	}
	w.open[port] = struct{}{}
}

// woken tells whether the guest was started because of a call, not long ago: it may
// not take calls yet on this port.
func (w *waker) woken(now time.Time, t *table, port uint16) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, open := w.open[port]
	return !open && now.Sub(w.asked) < time.Duration(t.settings.WakeTimeout)
}

// awaken has the guest started, and connects to it when it takes calls for good. It
// gives up when EdgeSettings.WakeTimeout is over.
func (s *Server) awaken(ctx context.Context, t *table, r *route, v visit) (*link, error) {
	w := &r.guest.state.waker
	key := callerKey(v.caller.from.Addr())
	running := func() bool {
		now, ok := s.table.Load().guests[r.guest.ID]
		return !ok || now.Running // one without domains is not started
	}
	ask, left, ok := w.join(key, time.Now(), running, time.Duration(t.settings.WakeTimeout))
	if !ok {
		return nil, &refusal{reason: ReasonWake}
	}
	defer w.leave(key)
	if ask {
		s.options.Wake(r.guest.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	// A guest that starts takes seconds. It is asked often at first, for those that
	// run already, and not more than twice a second later.
	const first, last = 50 * time.Millisecond, 500 * time.Millisecond
	var why error
	for pause := first; ; pause = min(2*pause, last) {
		changed := s.changed.next()
		t = s.table.Load()
		r, port := v.find(t)
		switch {
		case r == nil:
			return nil, &refusal{reason: ReasonName}
		case r.guest.Running:
			w.runs()
			l, err := s.dial(ctx, t, r, port, &v)
			if err == nil {
				l, err = s.tried(ctx, t, l, port, &v)
			}
			if err == nil {
				w.takes(port)
				return l, nil
			}
			why = err
			changed = nil // its port is what is waited for
		}
		timer := time.NewTimer(pause)
		select {
		case <-changed:
			pause = first
		case <-timer.C:
		case <-s.cutting:
			return nil, &refusal{ReasonWake, context.Canceled}
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil || v.gone != nil && v.gone() {
			return nil, &refusal{ReasonWake, why}
		}
	}
}

// tried is a connection to a guest that is being started which is there for good, when
// l is: it may be another one, as l may have come while a server was opening its
// sockets one by one, and by the second choice of addresses only for that.
func (s *Server) tried(ctx context.Context, t *table, l *link, port uint16, v *visit) (*link, error) {
	stays := l.stays(ctx)
	if stays && !l.other {
		return l, nil
	}
	_ = l.TCPConn.Close()
	if !stays {
		return nil, &refusal{reason: ReasonGuestLost}
	}
	return s.dial(ctx, t, l.route, port, v)
}

// stays tells whether a guest that is being started keeps a connection that it took.
// Some servers open their sockets to see whether they can, and end, before they are
// started in earnest: those of `nginx -t`, which systemd starts nginx with on Debian.
func (l *link) stays(ctx context.Context) bool {
	const trial = time.Second
	until := time.Now().Add(trial)
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return false
	}
	_ = l.SetReadDeadline(until)
	n := -1
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		var err error
		n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	_ = l.SetReadDeadline(time.Time{})
	return n > 0 || errors.Is(err, os.ErrDeadlineExceeded)
}
