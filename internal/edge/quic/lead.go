package quic

import (
	"errors"
	"os"

	"sublet/internal/edge/hello"
)

var errDeadline = os.ErrDeadlineExceeded

// step is what is done with a datagram once the router's lock is free.
type step struct {
	flow   *flow
	before [][]byte // what was kept until now
	reply  []byte
	event  *Event
}

// datagram leads or answers what a caller sent.
func (r *Router) datagram(from *source, b []byte) {
	if len(b) == 0 {
		return
	}
	r.mu.Lock()
	s := r.decide(from, b)
	r.mu.Unlock()
	if s.event != nil {
		r.options.Observe(*s.event)
	}
	if s.reply != nil {
		from.reply(s.reply)
	}
	if s.flow == nil {
		return
	}
	refused := false
	for _, d := range s.before {
		refused = s.flow.toGuest(d) || refused
	}
	if refused = s.flow.toGuest(b) || refused; refused {
		r.nobody(s.flow)
	}
}

func (r *Router) decide(from *source, b []byte) step {
	var h *header
	if isLong(b) {
		parsed, ok := parseHeader(b)
		if !ok || parsed.version == 0 {
			return step{} // garbage, or a server's answer (RFC 9000, 17.2.1)
		}
		h = &parsed
	}
	f, id, moved := r.find(from.address, b, h)
	switch {
	case f != nil && moved:
		return step{flow: r.move(from, f, id)}
	case f != nil:
		r.used(f, id, h)
		return step{flow: f}
	case h == nil:
		return step{} // nobody knows whose it is
	case len(b) < MinDatagram:
		return step{}
	case !h.known:
		return step{reply: versionNegotiation(*h)}
	}
	return r.begin(from, b, h)
}

// used notes that a caller's packet went by, with an ID of the guest's or one that
// is taken for it, and h nil for a short header.
func (r *Router) used(f *flow, id []byte, h *header) {
	f.last.Store(int64(r.now()))
	if f.shook == 0 || h != nil && f.began(h.dcid) {
		return
	}
	f.proven = true // it has heard the guest, as far as can be seen from outside
	if len(id) != f.idLen {
		return
	}
	if !r.ids.has(id, f.target) {
		f.settled = true
	}
	r.ids.learn(id, f)
}

// move makes a flow for a caller whose address changed. It is the guest who finds
// out whether the caller is there (RFC 9000, 8.2).
func (r *Router) move(from *source, f *flow, id []byte) *flow {
	moved, refused := r.flow(from, f.target)
	if refused != "" {
		return nil
	}
	moved.idLen, moved.shook, moved.settled = f.idLen, f.shook, true
	r.used(moved, id, nil)
	return moved
}

// begin reads Initial packets until they make a ClientHello.
func (r *Router) begin(from *source, b []byte, h *header) step {
	half := r.half(halfKey{from.address, string(h.dcid)})
	said, err := half.reader.Add(b)
	switch {
	case err == nil:
		r.forget(half)
		return r.lead(from, h, said.ServerName, half.datagrams)
	case errors.Is(err, hello.ErrMore):
		if r.keep(half, b) {
			return step{}
		}
		r.forget(half)
		return refuse(h, Event{Caller: from.address, Reason: ReasonCrowded})
	case errors.Is(err, ErrIgnored):
		if half.element != nil {
			if h.kind == kindZeroRTT {
				r.keep(half, b) // early data waits with the ClientHello, or is lost
			}
			return step{}
		}
		// Some clients change IDs before they have ended the handshake.
		f := guess(r.callers[from.address])
		if f != nil {
			r.used(f, h.dcid, h)
		}
		return step{flow: f}
	case errors.Is(err, ErrGone):
		r.forget(half)
		return step{}
	}
	r.forget(half)
	return refuse(h, Event{Caller: from.address, Reason: reason(err)})
}

// lead begins a connection with a guest.
func (r *Router) lead(from *source, h *header, name string, before [][]byte) step {
	event := Event{Caller: from.address, Name: name}
	if event.Target, event.Reason = r.options.Lookup(from.address, name); event.Reason != "" {
		return refuse(h, event)
	}
	var f *flow
	if f, event.Reason = r.flow(from, event.Target); event.Reason != "" {
		return refuse(h, event)
	}
	f.last.Store(int64(r.now()))
	f.opened(*h, name)
	return step{flow: f, before: before, event: &event}
}

// refuse closes a connection that begins, for the datagram that is at hand: one
// small answer for each that is large, also when the client comes again.
func refuse(h *header, event Event) step {
	reply, err := closing(h.version, h.dcid, h.scid)
	if err != nil {
		return step{event: &event}
	}
	return step{reply: reply, event: &event}
}

// fromGuest leads a guest's datagram to the caller.
func (r *Router) fromGuest(f *flow, b []byte) {
	f.last.Store(int64(r.now()))
	if isLong(b) {
		r.shake(f, b)
	}
	f.source.reply(b)
	f.count.out.add(len(b))
}

// shake learns from a guest's handshake which ID it chose.
func (r *Router) shake(f *flow, b []byte) {
	h, ok := parseHeader(b)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.gone {
		return
	}
	for i := range f.openings {
		o := &f.openings[i]
		if o.answered || string(o.scid) != string(h.dcid) {
			continue
		}
		o.answered = true
		r.shakes++
		f.shook, f.settled = r.shakes, false
	}
	if !h.known {
		return // also version negotiation, in which the ID is the client's own
	}
	f.idLen = len(h.scid)
	r.ids.learn(h.scid, f)
}

// nobody closes the connections of a flow which the guest does not take. Those
// that it once took cannot be closed without their keys: a server that comes back
// can tell their callers (RFC 9000, 10.3), so that their flow stays.
func (r *Router) nobody(f *flow) {
	r.mu.Lock()
	var waiting []opening
	kept := f.openings[:0]
	for _, o := range f.openings {
		if o.answered {
			kept = append(kept, o)
		} else {
			waiting = append(waiting, o)
		}
	}
	f.openings = kept
	if !f.proven {
		r.remove(f)
	}
	r.mu.Unlock()
	for _, o := range waiting {
		r.options.Observe(Event{Caller: f.source.address, Name: o.name, Target: f.target, Reason: ReasonNobody})
		if reply, err := closing(o.version, o.dcid, o.scid); err == nil {
			f.source.reply(reply)
		}
	}
}
