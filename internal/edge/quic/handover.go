package quic

import (
	"net"
	"net/netip"
	"time"
)

// Flow is what another process has to know to go on with a flow. It goes there as
// JSON.
type Flow struct {
	Caller  netip.AddrPort `json:"caller"`
	Target  Target         `json:"target"`
	Control []byte         `json:"control,omitempty"` // for answers, of the kernel's
	IDs     [][]byte       `json:"ids,omitempty"`     // of the guest's, the latest last
	IDLen   int            `json:"id_len,omitempty"`
	Idle    time.Duration  `json:"idle"` // for how long nothing came
}

// Flows returns the flows whose callers have shown that they are there, for
// Restore in another process. The router is to be closed then, before the other
// one opens the sockets anew. Connections that are just beginning are left out:
// their clients begin again.
func (r *Router) Flows() []Flow {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	flows := make([]Flow, 0, len(r.flows))
	for _, f := range r.flows {
		if !f.proven {
			continue
		}
		out := Flow{
			Caller: f.source.address, Target: f.target, Control: f.source.control[:f.source.size:f.source.size],
			IDLen: f.idLen, Idle: max(0, now-time.Duration(f.last.Load())),
		}
		for _, id := range f.ids {
			out.IDs = append(out.IDs, []byte(id))
		}
		flows = append(flows, out)
	}
	return flows
}

// Restore goes on with flows of another router, which answer on a socket that is
// then served. Those that do not fit are left out. A guest may see another port
// of the host's; to it, the caller has moved (RFC 9000, 9.3.3).
func (r *Router) Restore(conn *net.UDPConn, flows []Flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, old := range flows {
		from := source{address: old.Caller, listener: listener{conn}}
		from.size = copy(from.control[:], old.Control)
		f, refused := r.flow(&from, old.Target)
		if refused != "" {
			continue
		}
		f.last.Store(int64(r.now() - old.Idle))
		f.proven, f.settled, f.idLen = true, true, max(0, min(old.IDLen, maxID))
		r.shakes++
		f.shook = r.shakes
		for _, id := range old.IDs {
			r.ids.learn(id, f)
		}
	}
}
