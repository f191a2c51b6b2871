package edge

import (
	"maps"
	"slices"
	"sync/atomic"

	"sublet/internal/edge/hello"
	"sublet/internal/edge/quic"
	"sublet/internal/vps"
)

// Reason says why the edge refused a caller, in a word or two for metrics and
// logs.
type Reason string

// The reasons. There are those of hello.Reason, too, with "hello-" before them.
const (
	ReasonCallerConnections Reason = "caller-connections" // the caller has as many as one may have
	ReasonCallerRate        Reason = "caller-rate"        // the caller makes them too fast
	ReasonGuestConnections  Reason = "guest-connections"  // likewise the guest
	ReasonGuestRate         Reason = "guest-rate"
	ReasonServer            Reason = "server"       // the edge has no room for more
	ReasonProxyHeader       Reason = "proxy-header" // a trusted proxy sent no header, or a wrong one
	ReasonHandshake         Reason = "handshake"    // the caller did not say in time whom he wants
	ReasonName              Reason = "name"         // nobody has that name
	ReasonRequest           Reason = "request"      // the request is one that no guest is asked
	ReasonStopped           Reason = "stopped"      // the guest does not run
	ReasonWake              Reason = "wake"         // it was to be started, and was not there in time
	ReasonGuestRefused      Reason = "guest-refused"
	ReasonGuestTimeout      Reason = "guest-timeout"
	ReasonGuestLost         Reason = "guest-lost"   // no way to it, or it hung up
	ReasonGuestAnswer       Reason = "guest-answer" // what it said is not HTTP
	ReasonCertificate       Reason = "certificate"  // TLS could not be ended here
	ReasonQUIC              Reason = "quic"         // the domain is not led by QUIC
	ReasonQUICCrowded       Reason = "quic-" + quic.ReasonCrowded
	ReasonQUICNobody        Reason = "quic-" + quic.ReasonNobody
	ReasonQUICHost          Reason = "quic-" + quic.ReasonHost
)

// reasons are all, for arrays of counters.
var reasons = func() []Reason {
	all := []Reason{
		ReasonCallerConnections, ReasonCallerRate, ReasonGuestConnections, ReasonGuestRate, ReasonServer,
		ReasonProxyHeader, ReasonHandshake, ReasonName, ReasonRequest, ReasonStopped, ReasonWake,
		ReasonGuestRefused, ReasonGuestTimeout, ReasonGuestLost, ReasonGuestAnswer, ReasonCertificate,
		ReasonQUIC, ReasonQUICCrowded, ReasonQUICNobody, ReasonQUICHost,
	}
	for _, r := range []hello.Reason{
		hello.ReasonGarbage, hello.ReasonHTTP, hello.ReasonSSLv2, hello.ReasonClosed, hello.ReasonRecord,
		hello.ReasonMessage, hello.ReasonTooLarge, hello.ReasonMalformed, hello.ReasonName,
	} {
		all = append(all, helloReason(r))
	}
	return all
}()

var reasonIndex = func() map[Reason]int {
	index := make(map[Reason]int, len(reasons))
	for i, r := range reasons {
		index[r] = i
	}
	return index
}()

func isReason(r Reason) bool {
	_, ok := reasonIndex[r]
	return ok
}

func helloReason(r hello.Reason) Reason { return "hello-" + Reason(r) }

// refusals counts by reason.
type refusals [40]atomic.Uint64

func (r *refusals) add(why Reason) {
	if i, ok := reasonIndex[why]; ok {
		r[i].Add(1)
	}
}

// read returns those that are not zero, nil when none is.
func (r *refusals) read() map[Reason]uint64 {
	var counts map[Reason]uint64
	for i, why := range reasons {
		if n := r[i].Load(); n > 0 {
			if counts == nil {
				counts = make(map[Reason]uint64)
			}
			counts[why] = n
		}
	}
	return counts
}

// Classes are the first digits of the statuses of HTTP, of which there are five.
const Classes = 5

// Counters are what is counted for a guest, or for a domain. All but Open only
// grow, for as long as the process lives and the guest has a domain.
type Counters struct {
	// Connections are those to the guest that were made, Open those that there are
	// now. One caller's connection by HTTP/1.1 makes one, for as long as its
	// requests are for the same guest.
	Connections uint64 `json:"connections"`
	Open        int64  `json:"open"`
	// In and Out are bytes that were passed on to the guest, and that came from
	// it, without headers of the PROXY protocol. Those of connections that are
	// still open are among them. Those of QUIC are counted for guests only.
	In  uint64 `json:"in"`
	Out uint64 `json:"out"`
	// Requests are those of HTTP by the class of the answer: 1xx (which are
	// upgrades to another protocol) first, 5xx last.
	Requests [Classes]uint64 `json:"requests"`
	// Refused are callers that did not come to the guest.
	Refused map[Reason]uint64 `json:"refused,omitempty"`
}

// DomainCounters are those of a domain, or of all domains together that have none
// of their own: then there is no Name.
type DomainCounters struct {
	Guest  string `json:"guest,omitempty"`
	Name   string `json:"name,omitempty"`
	Listen uint16 `json:"listen,omitempty"`
	Counters
}

// Stats are counts of what the edge did.
type Stats struct {
	// Guests are by ID.
	Guests map[string]Counters `json:"guests"`
	// Domains are at most as many as EdgeSettings.MetricDomains and one. A domain
	// that has counters keeps them for as long as it is there.
	Domains []DomainCounters `json:"domains,omitempty"`
	// Refused are callers of nobody in particular.
	Refused map[Reason]uint64 `json:"refused,omitempty"`
	// Accepted are the connections that callers made, Open those that there are
	// now, Callers how many callers' limits are remembered.
	Accepted uint64 `json:"accepted"`
	Open     int    `json:"open"`
	Callers  int    `json:"callers"`
	// Certificates tell how it is with those that the edge gets, by name.
	Certificates []vps.Certificate `json:"certificates,omitempty"`
}

// counters are Counters while they are counted.
type counters struct {
	connections, in, out atomic.Uint64
	open                 atomic.Int64
	requests             [Classes]atomic.Uint64
	refused              refusals
}

func (c *counters) read() Counters {
	r := Counters{
		Connections: c.connections.Load(), Open: c.open.Load(), In: c.in.Load(), Out: c.out.Load(),
		Refused: c.refused.read(),
	}
	for i := range c.requests {
		r.Requests[i] = c.requests[i].Load()
	}
	return r
}

func (c *counters) add(in, out uint64) {
	if in > 0 {
		c.in.Add(in)
	}
	if out > 0 {
		c.out.Add(out)
	}
}

func (c *counters) request(status int) {
	if class := status/100 - 1; class >= 0 && class < Classes {
		c.requests[class].Add(1)
	}
}

// series are the counters of a domain, or of all others.
type series struct {
	counters
	key domainKey
}

// domainKey is which domain it is.
type domainKey struct {
	guest, name string
	listen      uint16
}

// guestState is what is known of a guest from one table to the next.
type guestState struct {
	counters
	id    string
	slots atomic.Int64 // of NetworkLimits.Connections that are taken
	rate  sharedPace
	waker waker
	plain plainPorts
}

// meter counts for a guest and its domain.
type meter struct {
	guest  *guestState
	domain *series
}

func (r *route) meter() meter { return meter{r.guest.state, r.series} }

func (m meter) opened() {
	for _, c := range []*counters{&m.guest.counters, &m.domain.counters} {
		c.connections.Add(1)
		c.open.Add(1)
	}
}

func (m meter) closed() {
	m.guest.open.Add(-1)
	m.domain.open.Add(-1)
}

func (m meter) add(in, out uint64) {
	m.guest.add(in, out)
	m.domain.add(in, out)
}

func (m meter) request(status int) {
	m.guest.request(status)
	m.domain.request(status)
}

func (m meter) refuse(why Reason) {
	m.guest.refused.add(why)
	m.domain.refused.add(why)
}

// remembered is what outlives tables. It is copied, changed and kept when the
// table is good.
type remembered struct {
	guests map[string]*guestState
	// domains are those with series of their own, by guest: most guests of a host
	// with many have none, and their domains are not looked up.
	domains map[string]map[domainKey]*series
	other   *series
	room    int // for more series
}

// next is what is remembered with another Config: guests and domains that are gone
// are forgotten, guests not before their last connection ended.
func (m *remembered) next(c *Config, room int) *remembered {
	n := &remembered{guests: make(map[string]*guestState, len(c.Guests)), domains: make(map[string]map[domainKey]*series), other: m.other, room: room}
	for id, g := range m.guests {
		if g.slots.Load() > 0 {
			n.guests[id] = g
		}
	}
	for i := range c.Guests {
		id := c.Guests[i].ID
		if g, ok := m.guests[id]; ok {
			n.guests[id] = g
		}
		before := m.domains[id]
		if len(before) == 0 {
			continue
		}
		for j := range c.Guests[i].Domains {
			d := &c.Guests[i].Domains[j]
			if s, ok := before[domainKey{id, d.Name, d.Listen}]; ok && n.room > 0 {
				n.keep(s)
			}
		}
	}
	return n
}

func (m *remembered) keep(s *series) {
	mine := m.domains[s.key.guest]
	if mine == nil {
		mine = make(map[domainKey]*series)
		m.domains[s.key.guest] = mine
	}
	if mine[s.key] == nil {
		mine[s.key] = s
		m.room--
	}
}

func (m *remembered) guest(id string) *guestState {
	g, ok := m.guests[id]
	if !ok {
		g = &guestState{id: id}
		m.guests[id] = g
	}
	return g
}

func (m *remembered) series(key domainKey) *series {
	mine := m.domains[key.guest]
	if s, ok := mine[key]; ok {
		return s
	}
	if m.room <= 0 {
		return m.other
	}
	s := &series{key: key}
	m.keep(s)
	return s
}

// Stats returns counts. Any goroutine may call it.
func (s *Server) Stats() Stats {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	m := s.remembered.Load()
	stats := Stats{
		Guests: make(map[string]Counters, len(m.guests)), Refused: s.refused.read(),
		Accepted: s.accepted.Load(), Open: len(s.sessions.all), Callers: s.callers.len(),
	}
	// What relays passed on until now is counted when they end.
	guests, domains := make(map[*guestState][2]uint64), make(map[*series][2]uint64)
	for session := range s.sessions.all {
		if r := session.relay; r != nil {
			in, out := r.Bytes()
			g, d := guests[session.meter.guest], domains[session.meter.domain]
			guests[session.meter.guest] = [2]uint64{g[0] + in, g[1] + out}
			domains[session.meter.domain] = [2]uint64{d[0] + in, d[1] + out}
		}
	}
	s.quic.mu.Lock()
	defer s.quic.mu.Unlock()
	datagrams := s.quic.counts()
	for id, g := range m.guests {
		c := g.read()
		c.In, c.Out = c.In+datagrams[id][0], c.Out+datagrams[id][1]
		c.In, c.Out = c.In+guests[g][0], c.Out+guests[g][1]
		stats.Guests[id] = c
	}
	all := []*series{m.other}
	for _, mine := range m.domains {
		all = slices.AppendSeq(all, maps.Values(mine))
	}
	for _, d := range all {
		c := d.read()
		c.In, c.Out = c.In+domains[d][0], c.Out+domains[d][1]
		stats.Domains = append(stats.Domains, DomainCounters{Guest: d.key.guest, Name: d.key.name, Listen: d.key.listen, Counters: c})
	}
	slices.SortFunc(stats.Domains, compareCounters)
	return stats
}
