package quic

import (
	"net/netip"
	"slices"
)

// minRoam is how long an ID must be to be followed to another address: with
// shorter ones a guest could have so many that it took others' callers.
const minRoam = 4

// maxOwners is how many targets may have chosen the same ID.
const maxOwners = 4

// ids knows which flow was the last to use an ID that a guest chose. Guests choose
// without asking each other, so that several may have the same.
type ids struct {
	owners  map[string][]*flow
	lengths [maxID + 1]int // how many there are of each length
}

// learn makes f the last to use an ID of its guest.
func (s *ids) learn(id []byte, f *flow) {
	if len(id) == 0 || len(id) > maxID {
		return
	}
	owners := s.owners[string(id)]
	if i := slices.IndexFunc(owners, func(o *flow) bool { return o.target == f.target }); i >= 0 {
		if owners[i] == f {
			return
		}
		s.forget(string(id), owners[i])
	}
	if len(s.owners[string(id)]) >= maxOwners {
		return
	}
	if len(f.ids) == maxIDs {
		s.forget(f.ids[0], f)
	}
	key := string(id)
	f.ids = append(f.ids, key)
	s.owners[key] = append(s.owners[key], f)
	s.lengths[len(key)]++
}

// forget is the opposite of learn.
func (s *ids) forget(id string, f *flow) {
	f.ids = slices.DeleteFunc(f.ids, func(i string) bool { return i == id })
	owners := s.owners[id]
	i := slices.Index(owners, f)
	if i < 0 {
		return
	}
	s.lengths[len(id)]--
	if len(owners) == 1 {
		delete(s.owners, id)
		return
	}
	s.owners[id] = slices.Delete(owners, i, i+1)
}

// forgetAll forgets all of a flow.
func (s *ids) forgetAll(f *flow) {
	for len(f.ids) > 0 {
		s.forget(f.ids[0], f)
	}
}

// has tells whether a target has chosen the ID.
func (s *ids) has(id []byte, target Target) bool {
	return slices.ContainsFunc(s.owners[string(id)], func(o *flow) bool { return o.target == target })
}

// alone is the flow that has the ID, if exactly one has.
func (s *ids) alone(id []byte) *flow {
	if owners := s.owners[string(id)]; len(id) >= minRoam && len(owners) == 1 {
		return owners[0]
	}
	return nil
}

// find is the flow of a packet that goes on with a connection, and the ID by
// which it was found, or that is to be learned; nil if there is none, or if it
// begins one. A flow of another address comes with moved set: the caller's address
// changed (RFC 9000, 9), be it by will or by its NAT.
func (r *Router) find(caller netip.AddrPort, b []byte, h *header) (f *flow, id []byte, moved bool) {
	own := r.callers[caller]
	if h == nil { // a short header does not say how long its ID is (RFC 8999, 5.2)
		rest := b[1:]
		for _, f := range own {
			if n := f.idLen; n > 0 && n <= len(rest) && r.ids.has(rest[:n], f.target) {
				return f, rest[:n], false
			}
		}
		for n := min(maxID, len(rest)); n >= minRoam; n-- {
			if r.ids.lengths[n] == 0 {
				continue
			}
			if f := r.ids.alone(rest[:n]); f != nil {
				return f, rest[:n], true
			}
		}
		if f := guess(own); f != nil {
			return f, rest[:min(f.idLen, len(rest))], false
		}
		return nil, nil, false
	}
	for _, f := range own {
		if r.ids.has(h.dcid, f.target) {
			return f, h.dcid, false
		}
		if f.began(h.dcid) {
			return f, nil, false
		}
		if f.goesOn(h.scid) { // with a new ID before the handshake is over, as Go's client does
			return f, h.dcid, false
		}
	}
	if h.known && h.kind != kindInitial && h.kind != kindZeroRTT {
		if f := r.ids.alone(h.dcid); f != nil {
			return f, h.dcid, true
		}
		return guess(own), h.dcid, false
	}
	if len(h.dcid) < minFirstID { // no client begins so: the guest has no IDs, or short ones
		return guess(own), h.dcid, false
	}
	return nil, nil, false
}

// guess chooses among the flows of one address for an ID that was not seen before:
// guests give IDs out under seal. Most callers have one flow for each address. Of
// several the one is meant that shook hands first and has not changed IDs since,
// as clients do after a handshake, else that which shook hands last.
func guess(own []*flow) *flow {
	if len(own) == 0 {
		return nil
	}
	return slices.MinFunc(own, func(a, b *flow) int {
		switch {
		case a.settled != b.settled:
			if a.settled {
				return 1
			}
			return -1
		case a.settled:
			return int(b.shook) - int(a.shook)
		}
		return int(a.shook) - int(b.shook)
	})
}
