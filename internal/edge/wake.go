package edge

import (
	"context"
	"sync"
	"time"
)

// maxWaiting is how many callers wait for one guest to start.
const maxWaiting = 128

// waker is what a guest knows of callers that wait for it to start.
type waker struct {
	mu      sync.Mutex
	waiting int
	asked   time.Time // when it was to be started; zero when it was there since
}

// join adds one who waits, unless there are enough. ask is set if the guest has to
// be told to start: it was not yet, or so long ago that it came to nothing.
func (w *waker) join(now time.Time, timeout time.Duration) (ask, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting >= maxWaiting {
		return false, false
	}
	w.waiting++
	if w.asked.IsZero() || now.Sub(w.asked) >= timeout {
		w.asked = now
		return true, true
	}
	return false, true
}

// leave is for each who joined, there when the guest took the call.
func (w *waker) leave(there bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting--
	if there {
		w.asked = time.Time{}
	}
}

// woken tells whether the guest is being started because of a call: it may run by
// now, and not take calls yet.
func (w *waker) woken(now time.Time, t *table) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.asked.IsZero() && now.Sub(w.asked) < time.Duration(t.settings.WakeTimeout)
}

// awaken has the guest started, and connects to it when it takes calls. It gives up
// when EdgeSettings.WakeTimeout is over.
func (s *Server) awaken(ctx context.Context, t *table, r *route, v visit) (*link, error) {
	timeout := time.Duration(t.settings.WakeTimeout)
	w := &r.guest.state.waker
	ask, ok := w.join(time.Now(), timeout)
	if !ok {
		return nil, &refusal{reason: ReasonWake}
	}
	there := false
	defer func() { w.leave(there) }()
	if ask {
		s.options.Wake(r.guest.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
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
			l, err := s.dial(ctx, t, r, port, v.caller)
			if err == nil {
				there = true
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
