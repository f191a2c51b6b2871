package reconcile

import (
	"context"

	"sublet/internal/vps"
)

// Hold keeps the loop from doing anything to a guest, so that somebody else
// can work on what belongs to it, and waits until nothing is being done any
// more. It says nothing of whether the guest runs. held ends with ctx, and
// when the guest is to be deleted; release, which may be called again, hands
// the guest back. vps.CodeConflict: somebody holds it already.
//
// It is memory only: whoever holds a guest has to make sure that nothing of
// its work outlives the process.
func (l *Loop) Hold(ctx context.Context, id string) (held context.Context, release func(), err error) {
	held, letGo := context.WithCancel(ctx)
	l.mu.Lock()
	p := l.guests[id]
	if p == nil {
		p = &progress{}
		l.guests[id] = p
	}
	if p.letGo != nil {
		l.mu.Unlock()
		letGo()
		return nil, nil, vps.Errorf(vps.CodeConflict, "something else works on the disks of this guest; wait until that is done")
	}
	p.letGo = letGo
	l.mu.Unlock()
	release = func() {
		letGo()
		l.mu.Lock()
		defer l.mu.Unlock()
		// A guest that was made again meanwhile has a progress of its own.
		p.letGo = nil
		l.Kick()
	}
	for {
		l.mu.Lock()
		busy, changed := p.cancel != nil, l.changed
		l.mu.Unlock()
		if !busy {
			return held, release, nil
		}
		select {
		case <-changed: // each worker's end is followed by a pass
		case <-held.Done():
			release()
			return nil, nil, held.Err()
		}
	}
}
