package quic

import (
	"cmp"
	"container/list"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sublet/internal/edge/hello"
)

// Target is where connections are led.
type Target struct {
	Guest   string         `json:"guest"` // its ID, which nothing here looks at
	Address netip.AddrPort `json:"address"`
}

// Event is a connection that began: it was led to a target, or refused, or one
// after the other, when the target turned out not to take it.
type Event struct {
	Caller netip.AddrPort
	Name   string // the server name, if it came to that
	Target Target // the zero value if there is none
	// Reason is why it was refused, in a word: what Lookup said, one of hello's, or
	// one of those below. Empty when it was led.
	Reason string
}

// Reasons of the router's own.
const (
	ReasonCrowded = "crowded" // too many flows, of this caller or in all
	ReasonNobody  = "nobody"  // the guest has no QUIC server, or is not there
	ReasonHost    = "host"    // the host could not open a socket
)

// Options of a router. Lookup is a must.
type Options struct {
	// Lookup is where a caller who asks for a name is led, or a word why it is
	// refused. The name is as in hello.Hello, and may be empty. It is called under
	// a lock: it must not wait, nor call the router.
	Lookup func(caller netip.AddrPort, name string) (target Target, refused string)
	// Dial opens a socket that is connected to the target. It must not wait. nil
	// is one from the host's own address. It is called as Lookup is.
	Dial func(caller netip.AddrPort, target Target) (*net.UDPConn, error)
	// Observe is told of each connection; nil for none. It must not wait, and may
	// be called by several goroutines.
	Observe func(Event)

	// Idle ends a flow after so long without a datagram in either direction, and
	// Handshake one whose caller has not shown yet that it is where it says, and
	// a ClientHello that does not get whole. Zero is 30 and 10 seconds.
	Idle, Handshake time.Duration
	// Flows is how many there may be, each of which has a socket; CallerFlows is
	// how many of one caller, by IPv4 address or by IPv6 prefix of 64 bits. Zero
	// is 4096 and 256.
	Flows, CallerFlows int
}

// Bounds of ClientHellos that are not whole: 512 of them, with at most 24
// datagrams and two copies of the longest hello each, are at most 35 MiB. When
// there are more, the oldest is forgotten.
const (
	maxHalf          = 512
	maxCallerHalf    = 16
	maxHalfDatagrams = 24
	maxHalfBytes     = 36 << 10
)

// socketBuffer is what a listening socket holds while the router is busy.
const socketBuffer = 4 << 20

// Router leads datagrams between callers and guests. All of its methods may be
// called by several goroutines at once.
type Router struct {
	options Options
	start   time.Time
	stop    chan struct{}
	pumps   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	flows   map[flowKey]*flow
	callers map[netip.AddrPort][]*flow
	crowds  map[netip.Prefix]*crowd
	ids     ids
	halves  map[halfKey]*half
	oldest  list.List // of *half
	counts  map[Target]*counter
	shakes  uint64
}

type flowKey struct {
	caller netip.AddrPort
	target Target
}

// crowd is what one caller has.
type crowd struct{ flows, halves int }

// halfKey is a connection that begins. Its ID is one that the client made up.
type halfKey struct {
	caller netip.AddrPort
	dcid   string
}

// half is a ClientHello that is not whole, with the datagrams that it came in.
type half struct {
	key       halfKey
	began     time.Duration
	reader    Reader
	datagrams [][]byte
	bytes     int
	element   *list.Element
}

// New makes a router, which is to be closed.
func New(o Options) *Router {
	o.Idle = cmp.Or(o.Idle, 30*time.Second)
	o.Handshake = cmp.Or(o.Handshake, 10*time.Second)
	o.Flows = cmp.Or(o.Flows, 4096)
	o.CallerFlows = cmp.Or(o.CallerFlows, 256)
	if o.Observe == nil {
		o.Observe = func(Event) {}
	}
	if o.Dial == nil {
		o.Dial = func(_ netip.AddrPort, t Target) (*net.UDPConn, error) {
			return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(t.Address))
		}
	}
	r := &Router{
		options: o, start: time.Now(), stop: make(chan struct{}),
		flows: map[flowKey]*flow{}, callers: map[netip.AddrPort][]*flow{}, crowds: map[netip.Prefix]*crowd{},
		ids: ids{owners: map[string][]*flow{}}, halves: map[halfKey]*half{}, counts: map[Target]*counter{},
	}
	go r.sweep()
	return r
}

// Serve leads what comes on a socket, and answers on it, until the socket is
// closed or reaches a read deadline. Several may be served at once. The socket
// stays the caller's, who closes it after the router.
func (r *Router) Serve(conn *net.UDPConn) error {
	l := listener{conn}
	if err := l.prepare(); err != nil {
		return fmt.Errorf("a socket for QUIC cannot be set up: %w", err)
	}
	b := make([]byte, maxDatagram)
	oob := make([]byte, 4*maxControl)
	for {
		n, control, _, address, err := conn.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, errDeadline) {
				return nil
			}
			return fmt.Errorf("a socket for QUIC cannot be read: %w", err)
		}
		from := source{listener: l, address: netip.AddrPortFrom(address.Addr().Unmap(), address.Port())}
		from.setControl(oob[:control])
		r.datagram(&from, b[:n])
	}
}

// Close ends all flows. Callers are not told: they cannot be, without the keys.
func (r *Router) Close() {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		close(r.stop)
	}
	r.mu.Unlock()
	r.Drop(func(Target) bool { return true })
	r.pumps.Wait()
}

// Drop ends the flows to targets that gone is true of, which is called under a
// lock, and forgets what was counted of them.
func (r *Router) Drop(gone func(Target) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, f := range r.flows {
		if gone(key.target) {
			r.remove(f)
		}
	}
	for t := range r.counts {
		if gone(t) {
			delete(r.counts, t)
		}
	}
}

// Counts is what was led to a target and from it: bytes in datagrams, without
// headers of UDP and IP.
type Counts struct{ InBytes, InDatagrams, OutBytes, OutDatagrams uint64 }

// Counts returns what was counted since the router was made, or the target
// dropped. In is what callers sent.
func (r *Router) Counts() map[Target]Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[Target]Counts, len(r.counts))
	for t, c := range r.counts {
		out[t] = Counts{c.in.bytes.Load(), c.in.datagrams.Load(), c.out.bytes.Load(), c.out.datagrams.Load()}
	}
	return out
}

// Held returns how many flows there are, and how many ClientHellos that are not
// whole.
func (r *Router) Held() (flows, halves int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flows), len(r.halves)
}

func (r *Router) now() time.Duration { return time.Since(r.start) }

// sweep ends what is idle, about every second.
func (r *Router) sweep() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-ticker.C:
			r.expire(r.now())
		}
	}
}

func (r *Router) expire(now time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.flows {
		limit := r.options.Idle
		if !f.proven {
			limit = min(limit, r.options.Handshake)
		}
		if now-time.Duration(f.last.Load()) >= limit {
			r.remove(f)
		}
	}
	for e := r.oldest.Front(); e != nil; e = r.oldest.Front() {
		h := e.Value.(*half)
		if now-h.began < r.options.Handshake {
			return
		}
		r.forget(h)
	}
}

// crowd is what the caller's like have.
func (r *Router) crowd(caller netip.AddrPort) (netip.Prefix, *crowd) {
	bits := 64
	if caller.Addr().Is4() {
		bits = 32
	}
	prefix, _ := caller.Addr().WithZone("").Prefix(bits)
	c := r.crowds[prefix]
	if c == nil {
		c = new(crowd)
		r.crowds[prefix] = c
	}
	return prefix, c
}

func (r *Router) leave(caller netip.AddrPort, flows, halves int) {
	prefix, c := r.crowd(caller)
	c.flows -= flows
	c.halves -= halves
	if *c == (crowd{}) {
		delete(r.crowds, prefix)
	}
}

// flow is the one between a caller and a target, made if there is none.
func (r *Router) flow(from *source, target Target) (*flow, string) {
	key := flowKey{from.address, target}
	if f := r.flows[key]; f != nil {
		return f, ""
	}
	_, crowd := r.crowd(from.address)
	if r.closed || len(r.flows) >= r.options.Flows || crowd.flows >= r.options.CallerFlows {
		r.leave(from.address, 0, 0)
		return nil, ReasonCrowded
	}
	conn, err := r.options.Dial(from.address, target)
	if err != nil {
		r.leave(from.address, 0, 0)
		if unreachable(err) {
			return nil, ReasonNobody
		}
		return nil, ReasonHost
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = control(conn, neverFragment)
	}
	if err != nil {
		_ = conn.Close()
		r.leave(from.address, 0, 0)
		return nil, ReasonHost
	}
	count := r.counts[target]
	if count == nil {
		count = new(counter)
		r.counts[target] = count
	}
	f := &flow{source: *from, target: target, count: count, conn: conn, raw: raw}
	crowd.flows++
	r.flows[key] = f
	r.callers[from.address] = append(r.callers[from.address], f)
	r.pumps.Go(func() { f.pump(r) })
	return f, ""
}

// remove ends a flow.
func (r *Router) remove(f *flow) {
	if f.gone {
		return
	}
	f.gone = true
	_ = f.conn.Close()
	r.ids.forgetAll(f)
	delete(r.flows, flowKey{f.source.address, f.target})
	own := slices.DeleteFunc(r.callers[f.source.address], func(o *flow) bool { return o == f })
	if r.callers[f.source.address] = own; len(own) == 0 {
		delete(r.callers, f.source.address)
	}
	r.leave(f.source.address, 1, 0)
}

// half is a ClientHello that begins, made if there is none.
func (r *Router) half(key halfKey) *half {
	if h := r.halves[key]; h != nil {
		return h
	}
	return &half{key: key, began: r.now()}
}

// keep keeps a datagram until the ClientHello is whole. It is false when there
// were too many.
func (r *Router) keep(h *half, b []byte) bool {
	if h.element == nil {
		_, crowd := r.crowd(h.key.caller)
		if crowd.halves >= maxCallerHalf {
			return false
		}
		if len(r.halves) >= maxHalf {
			r.forget(r.oldest.Front().Value.(*half))
			_, crowd = r.crowd(h.key.caller) // it may have gone with that one
		}
		crowd.halves++
		r.halves[h.key] = h
		h.element = r.oldest.PushBack(h)
	}
	if len(h.datagrams) >= maxHalfDatagrams || h.bytes+len(b) > maxHalfBytes {
		return false
	}
	h.datagrams = append(h.datagrams, slices.Clone(b))
	h.bytes += len(b)
	return true
}

func (r *Router) forget(h *half) {
	if h.element == nil {
		return
	}
	r.oldest.Remove(h.element)
	h.element = nil
	delete(r.halves, h.key)
	r.leave(h.key.caller, 0, 1)
}

// reason is the word for an error of a Reader.
func reason(err error) string {
	if refusal, ok := errors.AsType[*hello.RefusalError](err); ok {
		return string(refusal.Reason)
	}
	return ReasonHost
}
