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
	asked   time.Time // when it was to be started, the last time
	ran     bool      // it did since
}

// join adds one who waits, unless there are enough. ask is set if the guest, which
// runs or not, has to be told to start; left is how long it may take.
func (w *waker) join(now time.Time, running bool, timeout time.Duration) (ask bool, left time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting >= maxWaiting {
		return false, 0, false
	}
	w.waiting++
	if !running && (w.ran || now.Sub(w.asked) >= timeout) {
		w.asked, w.ran = now, false
		return true, timeout, true
	}
	return false, timeout - now.Sub(w.asked), true
}

func (w *waker) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting--
}

// runs says that the guest was seen to run.
func (w *waker) runs() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ran = true
}

// woken tells whether the guest was started because of a call, not long ago: it may
// not take calls yet on all of its ports.
func (w *waker) woken(now time.Time, t *table) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return now.Sub(w.asked) < time.Duration(t.settings.WakeTimeout)
}

// awaken has the guest started, and connects to it when it takes calls. It gives up
// when EdgeSettings.WakeTimeout is over.
func (s *Server) awaken(ctx context.Context, t *table, r *route, v visit) (*link, error) {
	w := &r.guest.state.waker
	ask, left, ok := w.join(time.Now(), r.guest.Running, time.Duration(t.settings.WakeTimeout))
	if !ok {
		return nil, &refusal{reason: ReasonWake}
	}
	defer w.leave()
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
			l, err := s.dial(ctx, t, r, port, v.caller)
			if err == nil {
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
