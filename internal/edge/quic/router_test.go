package quic

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sublet/internal/hang"
)

// caller is a socket that sends to a router.
type caller struct {
	t    *testing.T
	conn *net.UDPConn
}

func newCaller(t *testing.T, to netip.AddrPort) caller {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(hang.After))
	return caller{t, c}
}

func (c caller) send(datagrams ...[]byte) {
	c.t.Helper()
	for _, d := range datagrams {
		if _, err := c.conn.Write(d); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c caller) receive() []byte {
	c.t.Helper()
	b := make([]byte, maxDatagram)
	n, err := c.conn.Read(b)
	if err != nil {
		c.t.Fatal(err)
	}
	return b[:n]
}

// wantsClose wants an answer that closes the connection, and fits in what came.
func (c caller) wantsClose(to client) {
	c.t.Helper()
	b := c.receive()
	h, ok := parseHeader(b)
	if !ok || h.version != to.version || h.kind != kindInitial || !bytes.Equal(h.dcid, to.scid) || len(b) > 100 {
		c.t.Fatalf("the answer is % x", b)
	}
	k, err := serverKeys(to.version, to.dcid)
	if err != nil {
		c.t.Fatal(err)
	}
	if frames, ok := k.open(b, h.number); !ok || !bytes.Equal(frames, []byte{frameClose, connectionRefused, 0, 0}) {
		c.t.Fatalf("the answer has the frames % x", frames)
	}
}

func unknownVersion(dcid, scid []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0xc0}, 0x1a2a3a4a) // RFC 9000, 15
	b = append(append(b, byte(len(dcid))), dcid...)
	b = append(append(b, byte(len(scid))), scid...)
	return append(b, make([]byte, max(0, MinDatagram-len(b)))...)
}

// What is too small, or no beginning, is not answered. The answer that comes in
// the end is the first.
func TestAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	c := newCaller(t, w.address)
	one, two := newClient(Version1), newClient(Version2)
	m := message(t, "unknown.example", 300)
	small := one.initial(t, 0, crypto(0, m))
	version := unknownVersion([]byte("12345678"), []byte("me"))
	c.send(small, version[:MinDatagram-1], nil, []byte{0xc0}, []byte{0x40}, make([]byte, 2000), one.datagram(t, 0, crypto(0, m))[:1199],
		bytes.Repeat([]byte{0x7f}, 1300), versionNegotiation(header{dcid: one.dcid, scid: one.scid}), version)
	b := c.receive()
	want := append([]byte{b[0], 0, 0, 0, 0, 2, 'm', 'e', 8}, "12345678\x00\x00\x00\x01"...)
	if b[0]&longForm == 0 || !bytes.Equal(b, want) {
		t.Fatalf("the answer is % x", b)
	}
	long := bytes.Repeat([]byte("L"), 255) // as long as any version may have them
	c.send(unknownVersion(long, long))
	if b := c.receive(); !bytes.Contains(b, append(append(long, 255), long...)) {
		t.Fatalf("the answer is % x", b)
	}

	c.send(one.datagram(t, 0, crypto(0, m)))
	c.wantsClose(one)
	c.send(one.datagram(t, 1, crypto(0, m))) // it comes again
	c.wantsClose(one)
	c.send(two.datagram(t, 0, crypto(0, m[:200])), two.datagram(t, 0, crypto(200, m[200:])))
	c.wantsClose(two)
	c.send(one.datagram(t, 0, crypto(0, []byte{1, 0xff, 0xff, 0xff})))
	c.wantsClose(one)
	// One that goes away itself is forgotten.
	c.send(one.datagram(t, 0, crypto(0, m[:9])), one.datagram(t, 1, []byte{frameClose, 0, 0, 0}), two.datagram(t, 0, crypto(0, m)))
	c.wantsClose(two)
	if flows, halves := w.router.Held(); flows != 0 || halves != 0 {
		t.Errorf("%d flows and %d halves are held", flows, halves)
	}
}

// wantsHeld waits until there are so many of each.
func wantsHeld(t *testing.T, r *Router, flows, halves int) {
	t.Helper()
	deadline := time.After(hang.After)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		f, h := r.Held()
		if f == flows && h == halves {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d flows and %d halves are held, want %d and %d", f, h, flows, halves)
		}
	}
}

func TestHalvesAreBounded(t *testing.T) {
	t.Parallel()
	r := New(Options{Lookup: func(netip.AddrPort, string) (Target, string) { return Target{}, "no-route" }})
	defer r.Close()
	c := newClient(Version1)
	m := message(t, "example.org", 2000)
	at := func(i int) *source {
		return &source{address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 999)}
	}
	decide := func(from *source, b []byte) step {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.decide(from, b)
	}
	// Many datagrams of one connection that say nothing new.
	begin := c.datagram(t, 0, crypto(0, m[:9]))
	for i := range maxHalfDatagrams {
		if s := decide(at(0), begin); s.reply != nil {
			t.Fatalf("datagram %d is refused", i)
		}
	}
	if s := decide(at(0), begin); s.reply == nil || s.event.Reason != ReasonCrowded {
		t.Error("there is no end of datagrams")
	}
	// Many connections of one caller.
	for i := range maxCallerHalf + 1 {
		c.dcid = fmt.Appendf(nil, "connection %d", i)
		if s := decide(at(0), c.datagram(t, 0, crypto(0, m[:9]))); (s.reply != nil) != (i == maxCallerHalf) {
			t.Fatalf("connection %d: %+v", i, s)
		}
	}
	// Many callers: the oldest are forgotten.
	for i := range maxHalf {
		if s := decide(at(i+1), begin); s.reply != nil {
			t.Fatalf("caller %d is refused", i)
		}
	}
	if _, halves := r.Held(); halves != maxHalf || r.oldest.Len() != maxHalf || len(r.crowds) != maxHalf {
		t.Errorf("%d halves, %d in order, %d callers", halves, r.oldest.Len(), len(r.crowds))
	}
	// And time ends all.
	r.expire(r.now() + 11*time.Second)
	if _, halves := r.Held(); halves != 0 || r.oldest.Len() != 0 || len(r.crowds) != 0 {
		t.Errorf("%d halves, %d in order, %d callers", halves, r.oldest.Len(), len(r.crowds))
	}
}

// quiet is a guest that takes datagrams and says nothing.
func quiet(t *testing.T) (*net.UDPConn, Target) {
	t.Helper()
	c := loopback(t)
	_ = c.SetReadDeadline(time.Now().Add(hang.After))
	return c, Target{"quiet", addressOf(c)}
}

func TestFlowsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{CallerFlows: 2, Flows: 3})
	_, w.targets["quiet.example"] = quiet(t)
	c := newClient(Version1)
	d := c.datagram(t, 0, crypto(0, message(t, "quiet.example", 300)))
	for range 2 {
		newCaller(t, w.address).send(d)
	}
	wantsHeld(t, w.router, 2, 0)
	third := newCaller(t, w.address)
	third.send(d)
	third.wantsClose(c)

	// Those who have not shown that they are there go first.
	w.router.expire(w.router.now() + 11*time.Second)
	wantsHeld(t, w.router, 0, 0)
	third.send(d)
	wantsHeld(t, w.router, 1, 0)
	w.router.Drop(func(t Target) bool { return t.Guest == "quiet" })
	wantsHeld(t, w.router, 0, 0)

	client := browser(t, w.address)
	post(t, client, "a.example", 1<<10)
	wantsHeld(t, w.router, 1, 0)
	w.router.expire(w.router.now() + 11*time.Second)
	wantsHeld(t, w.router, 1, 0)
	w.router.expire(w.router.now() + 31*time.Second)
	wantsHeld(t, w.router, 0, 0)
	w.router.mu.Lock()
	defer w.router.mu.Unlock()
	if r := w.router; len(r.callers)+len(r.crowds)+len(r.ids.owners) != 0 || r.ids.lengths != [maxID + 1]int{} {
		t.Errorf("left are %v, %v, %v, %v", r.callers, r.crowds, r.ids.owners, r.ids.lengths)
	}
}

// All that a guest gets is what the caller sent, early data too, in its order.
func TestGuestGetsAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	guest, target := quiet(t)
	w.targets["quiet.example"] = target
	caller := newCaller(t, w.address)
	c := newClient(Version1)
	m := message(t, "quiet.example", 2000)
	early := append(c.early(), make([]byte, 1300)...)
	sent := [][]byte{c.datagram(t, 1, crypto(1000, m[1000:])), early, c.datagram(t, 0, crypto(0, m[:1000])), c.datagram(t, 2, []byte{framePing}), early}
	caller.send(sent...)
	b := make([]byte, maxDatagram)
	var from netip.AddrPort
	for i, want := range sent {
		n, address, err := guest.ReadFromUDPAddrPort(b)
		if err != nil || !bytes.Equal(b[:n], want) {
			t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
		}
		from = address
	}
	// The guest's answers, of which one has an ID that is then followed.
	h := client{version: Version1, dcid: c.scid, scid: []byte("guest's ID")}
	answer := h.initial(t, 0, nil)
	if _, err := guest.WriteToUDPAddrPort(answer, from); err != nil {
		t.Fatal(err)
	}
	if got := caller.receive(); !bytes.Equal(got, answer) {
		t.Fatalf("the caller got % x", got)
	}
	packet := slices.Concat([]byte{0x40}, h.scid, make([]byte, 30))
	elsewhere := newCaller(t, w.address)
	elsewhere.send(packet)
	n, address, err := guest.ReadFromUDPAddrPort(b)
	if err != nil || !bytes.Equal(b[:n], packet) || address == from {
		t.Fatalf("%d bytes from %v, %v", n, address, err)
	}
	if _, err := guest.WriteToUDPAddrPort([]byte("to the new address"), address); err != nil {
		t.Fatal(err)
	}
	if got := string(elsewhere.receive()); got != "to the new address" {
		t.Fatal(got)
	}
	want := Counts{OutBytes: uint64(len(answer) + 18), OutDatagrams: 2, InBytes: uint64(len(packet)), InDatagrams: 1}
	for _, d := range sent {
		want.InBytes += uint64(len(d))
		want.InDatagrams++
	}
	if got := w.router.Counts()[target]; got != want {
		t.Errorf("counted are %+v, want %+v", got, want)
	}
}

// On a host with several addresses the answer comes from the one that was called.
func TestAnswerComesFromTheAddressCalled(t *testing.T) {
	t.Parallel()
	for network, address := range map[string]string{"udp4": "127.9.9.9", "udp": "127.8.8.8", "udp6": "::1"} {
		socket, err := net.ListenUDP(network, &net.UDPAddr{})
		if err != nil {
			t.Fatal(err)
		}
		r := New(Options{Lookup: func(netip.AddrPort, string) (Target, string) { return Target{}, "no-route" }})
		serve(t, r, socket)
		c := newClient(Version1)
		caller := newCaller(t, netip.AddrPortFrom(netip.MustParseAddr(address), addressOf(socket).Port()))
		caller.send(c.datagram(t, 0, crypto(0, message(t, "example.org", 300))))
		caller.wantsClose(c)
	}
}

// Guests may choose the same ID.
func TestIDs(t *testing.T) {
	t.Parallel()
	s := ids{owners: map[string][]*flow{}}
	one, two := &flow{target: Target{Guest: "1"}}, &flow{target: Target{Guest: "2"}}
	oneMoved := &flow{target: Target{Guest: "1"}}
	id := []byte("same")
	s.learn(id, one)
	if s.alone(id) != one || s.has(id, two.target) {
		t.Error("one has it")
	}
	s.learn(id, two)
	if s.alone(id) != nil || !s.has(id, one.target) || !s.has(id, two.target) {
		t.Error("both have it")
	}
	s.learn(id, oneMoved)
	s.forgetAll(two)
	if s.alone(id) != oneMoved || len(one.ids) != 0 {
		t.Error("the caller of the first moved")
	}
	s.learn([]byte("abc"), oneMoved)
	if s.alone([]byte("abc")) != nil {
		t.Error("a short one is followed")
	}
	for i := range 2 * maxIDs {
		s.learn(fmt.Appendf(nil, "id %02d", i), one)
	}
	if len(one.ids) != maxIDs || s.has([]byte("id 00"), one.target) || !s.has([]byte("id 15"), one.target) {
		t.Errorf("left are %q", one.ids)
	}
	s.forgetAll(one)
	s.forgetAll(oneMoved)
	if len(s.owners) != 0 || s.lengths != [maxID + 1]int{} {
		t.Errorf("left are %v, %v", s.owners, s.lengths)
	}
}

// FuzzRouter: whatever callers and guests send, the books agree, and the answer is
// never larger than what came.
func FuzzRouter(f *testing.F) {
	c := newClient(Version1)
	m := message(f, "example.org", 300)
	f.Add(c.datagram(f, 0, crypto(0, m)), []byte("caller"), client{Version1, c.scid, []byte("guest")}.initial(f, 0, nil), []byte("\x40guest and more"))
	f.Add(c.datagram(f, 0, crypto(0, m[:30])), c.datagram(f, 0, crypto(30, m[30:])), []byte{0x40}, []byte("\x40\x41"))
	f.Add(unknownVersion(c.dcid, c.scid), append(c.early(), make([]byte, 1300)...), []byte{0xc0, 0, 0, 0, 1, 0, 0}, []byte{0x80})
	guest, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = guest.Close() })
	target := Target{"guest", addressOf(guest)}
	f.Fuzz(func(t *testing.T, one, two, answer, three []byte) {
		r := New(Options{Lookup: func(netip.AddrPort, string) (Target, string) { return target, "" }})
		defer r.Close()
		from := &source{address: netip.MustParseAddrPort("192.0.2.1:1")}
		moved := &source{address: netip.MustParseAddrPort("[2001:db8::1]:1")}
		for i, d := range [][]byte{one, two, answer, three, three} {
			if len(d) == 0 {
				continue
			}
			if i == 2 {
				for _, f := range r.flows {
					r.shake(f, d)
				}
				continue
			}
			r.mu.Lock()
			s := r.decide([]*source{from, from, nil, from, moved}[i], d)
			r.mu.Unlock()
			if len(s.reply) > 0 && (len(s.reply) >= len(d) || len(d) < MinDatagram) {
				t.Fatalf("%d bytes are answered with %d", len(d), len(s.reply))
			}
			owned, known := 0, 0
			for _, f := range r.flows {
				owned += len(f.ids)
			}
			for _, n := range r.ids.lengths {
				known += n
			}
			if owned != known || len(r.flows) != len(r.callers) || len(r.halves) != r.oldest.Len() || len(r.crowds) > 2 {
				t.Fatalf("%d flows of %d callers, %d and %d IDs, %d and %d halves, %d crowds", len(r.flows), len(r.callers), owned, known, len(r.halves), r.oldest.Len(), len(r.crowds))
			}
		}
	})
}

// BenchmarkLead is one datagram of 1200 bytes to a guest, without the reading of
// it from the caller.
func BenchmarkLead(b *testing.B) {
	guest, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = guest.Close() }()
	r := New(Options{Lookup: func(netip.AddrPort, string) (Target, string) { return Target{"guest", addressOf(guest)}, "" }})
	defer r.Close()
	from := &source{address: netip.MustParseAddrPort("127.0.0.1:1")}
	c := newClient(Version1)
	r.datagram(from, c.datagram(b, 0, crypto(0, message(b, "example.org", 300))))
	for _, f := range r.flows {
		r.shake(f, client{Version1, c.scid, []byte("guest's ID")}.initial(b, 0, nil))
	}
	d := slices.Concat([]byte{0x40}, []byte("guest's ID"), make([]byte, MinDatagram-11))
	b.SetBytes(int64(len(d)))
	b.ReportAllocs()
	for b.Loop() {
		r.datagram(from, d)
	}
}

// BenchmarkRefuse is a connection that begins with a name that is nobody's.
func BenchmarkRefuse(b *testing.B) {
	r := New(Options{Lookup: func(netip.AddrPort, string) (Target, string) { return Target{}, "no-route" }})
	defer r.Close()
	from := &source{address: netip.MustParseAddrPort("127.0.0.1:1")}
	d := newClient(Version1).datagram(b, 0, crypto(0, message(b, "example.org", 300)))
	b.ReportAllocs()
	for b.Loop() {
		r.mu.Lock()
		s := r.decide(from, d)
		r.mu.Unlock()
		if s.reply == nil {
			b.Fatal("it is not refused")
		}
	}
}
