package e2e

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/sqlite"
	"sublet/internal/vps"
	"sublet/test/lab"
)

// TestLedgerSurvives kills the daemon 200 times while packets of known sizes
// go through the tap of a guest, in both directions. In between rules are
// flushed, the tap is made anew, and so is the guest. What the ledger tells in
// the end are the bytes that were sent, to the byte.
func TestLedgerSurvives(t *testing.T) {
	t.Parallel()
	l := newLedgerTest(t, "1s")
	h := l.Host
	l.resume()

	accidents := map[int]func(*testing.T){
		30: l.flushRules, 60: l.newTap, 90: l.newGuest, 120: l.flushRules, 150: l.newTap, 180: l.reopenTap,
	}
	h.Stop()
	const kills = 200
	for round := range kills {
		l.killOnce(t, round)
		if accident := accidents[round]; accident != nil {
			h.Start()
			accident(t)
			h.Stop()
		}
	}
	h.Start()
	l.pause(t)
	h.Stop()
	l.check(t)
}

// ledgerTest is a host with a guest that the test itself is, at its tap.
type ledgerTest struct {
	*lab.Host
	id      string // of the guest
	address netip.Addr
	port    int
	tap     atomic.Pointer[plug]
	in      net.Conn // the stranger's calls
	truth   map[string]vps.TrafficCount

	sending chan struct{} // closed to stop
	senders sync.WaitGroup

	mu sync.Mutex
	// phase is the first byte of what packets carry, so that who gets one knows
	// when it was sent.
	phase byte
	// sent and arrived are what the guest and the stranger sent to each other, and
	// what came out at the other ends, by phase, since the guest was made. What
	// was written with an error was not sent.
	sent, arrived map[byte]vps.TrafficCount
}

// plug is a tap as it is while the guest is plugged in.
type plug struct {
	*os.File
	out []byte // a frame to the stranger, without its payload
}

// note adds a packet with so much payload to what was sent or has arrived.
func (l *ledgerTest) note(to map[byte]vps.TrafficCount, phase byte, way vps.Direction, payload int) {
	frame := int64(payload + ipUDP + ethernet)
	c := vps.TrafficCount{InBytes: frame, InPackets: 1}
	if way == vps.Out {
		c = vps.TrafficCount{OutBytes: frame, OutPackets: 1}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	to[phase] = to[phase].Add(c)
}

// enter begins a phase.
func (l *ledgerTest) enter(phase byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase = phase
}

// forget begins to count what is sent and arrives anew. It is called while
// nothing is sent.
func (l *ledgerTest) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase = 0
	clear(l.sent)
	clear(l.arrived)
}

// sum is what was sent or has arrived in some phases; in all when none is named.
func (l *ledgerTest) sum(of map[byte]vps.TrafficCount, phases ...byte) (sum vps.TrafficCount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for phase, count := range of {
		if len(phases) == 0 || slices.Contains(phases, phase) {
			sum = sum.Add(count)
		}
	}
	return sum
}

const strangerPort = 4000

// newLedgerTest makes the host, whose daemon samples every so often, and the
// guest. Nothing is sent yet.
func newLedgerTest(t *testing.T, every string) *ledgerTest {
	t.Helper()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	settings := filepath.Join(h.Dir, "settings.yaml")
	if err := os.WriteFile(settings, []byte("settings:\n  traffic_sample: "+every+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Sublet("apply", "-f", settings)
	l := &ledgerTest{
		Host: h, truth: map[string]vps.TrafficCount{},
		sent: map[byte]vps.TrafficCount{}, arrived: map[byte]vps.TrafficCount{},
	}
	l.stranger(t)
	l.create(t)
	return l
}

// stranger listens outside, so that nobody answers that nobody listens.
func (l *ledgerTest) stranger(t *testing.T) {
	t.Helper()
	var conn net.PacketConn
	var err error
	l.Outside.Do(func() {
		conn, err = net.ListenPacket("udp4", net.JoinHostPort(lab.StrangerAddress, strconv.Itoa(strangerPort)))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			l.note(l.arrived, buffer[0], vps.Out, n)
		}
	}()
}

// create makes the guest, which never starts, and takes its place at its tap.
// Nothing is sent yet.
func (l *ledgerTest) create(t *testing.T) {
	t.Helper()
	l.Sublet("create", "alice", "--stopped", "--memory", "128MiB", "--ssh-key", l.Key+".pub")
	l.Eventually("the guest has its network", l.Settled)
	g := l.Show("alice")
	l.id, l.address, l.port = g.ID, netip.MustParseAddr(g.Spec.Address), g.Spec.Ports.First+1
	l.forget()
	l.openTap(t)
	var err error
	l.Outside.Do(func() { l.in, err = net.Dial("udp4", net.JoinHostPort(lab.HostAddress, strconv.Itoa(l.port))) })
	if err != nil {
		t.Fatal(err)
	}
}

// openTap plugs the guest in, as its kernel does, and answers for it.
func (l *ledgerTest) openTap(t *testing.T) {
	t.Helper()
	tap, err := l.NS.OpenTap("sl-alice", 0, unix.IFF_VNET_HDR)
	if err != nil {
		t.Fatalf("open the guest's tap: %v", err)
	}
	host, err := net.InterfaceByName("sl-alice")
	if err != nil {
		t.Fatal(err)
	}
	l.tap.Store(&plug{tap, udpFrame(host.HardwareAddr, vps.MACFor(l.address), l.address, netip.MustParseAddr(lab.StrangerAddress))})
	go l.answer(tap, vps.MACFor(l.address), l.address)
}

// answer takes what comes to the guest, and answers who it is (ARP, RFC 826).
func (l *ledgerTest) answer(tap *os.File, mac net.HardwareAddr, address netip.Addr) {
	buffer := make([]byte, 4096)
	for {
		n, err := tap.Read(buffer)
		if err != nil {
			return
		}
		if n < vnetHeader+ethernet+28 {
			continue
		}
		frame := buffer[vnetHeader:n]
		switch kind := binary.BigEndian.Uint16(frame[12:]); {
		case kind == 0x0806 && frame[ethernet+7] == 1 && [4]byte(frame[ethernet+24:]) == address.As4():
			reply := make([]byte, vnetHeader+ethernet+28)
			f := reply[vnetHeader:]
			copy(f, frame[6:12])
			copy(f[6:], mac)
			copy(f[12:], frame[12:ethernet+6])
			f[ethernet+7] = 2
			copy(f[ethernet+8:], mac)
			copy(f[ethernet+14:], address.AsSlice())
			copy(f[ethernet+18:], frame[ethernet+8:ethernet+18])
			_, _ = tap.Write(reply)
		case kind == 0x0800 && frame[ethernet+9] == unix.IPPROTO_UDP && len(frame) > ethernet+ipUDP:
			payload := frame[ethernet+ipUDP:]
			l.note(l.arrived, payload[0], vps.In, len(payload))
		}
	}
}

// Lengths of headers: virtio's (linux/virtio_net.h), Ethernet's, and those of
// IPv4 and UDP together.
const (
	vnetHeader = 10
	ethernet   = vps.FrameBytes
	ipUDP      = 28
)

// udpFrame is a frame with virtio's header in front, and without a payload.
func udpFrame(to, from net.HardwareAddr, source, target netip.Addr) []byte {
	b := make([]byte, vnetHeader+ethernet+ipUDP)
	f := b[vnetHeader:]
	copy(f, to)
	copy(f[6:], from)
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	ip := f[ethernet:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	copy(ip[12:], source.AsSlice())
	copy(ip[16:], target.AsSlice())
	binary.BigEndian.PutUint16(ip[20:], 5000)
	binary.BigEndian.PutUint16(ip[22:], strangerPort)
	return b
}

// withPayload returns a frame that carries something (RFC 791, RFC 768).
func withPayload(header, payload []byte) []byte {
	b := slices.Concat(header, payload)
	ip := b[vnetHeader+ethernet:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[24:], uint16(len(ip)-20))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return b
}

// resume lets packets of random sizes go both ways until pause.
func (l *ledgerTest) resume() {
	l.sending = make(chan struct{})
	each := func(way vps.Direction, write func(payload []byte) error) {
		// To the wall each packet is a new connection, while nobody answers: it
		// lets 500 pass in a second.
		const pause, largest = 8 * time.Millisecond, 1400
		for {
			select {
			case <-l.sending:
				return
			case <-time.After(pause):
			}
			payload := make([]byte, 1+rand.IntN(largest))
			l.mu.Lock()
			payload[0] = l.phase
			l.mu.Unlock()
			if err := write(payload); err == nil {
				l.note(l.sent, payload[0], way, len(payload))
			}
		}
	}
	l.senders.Go(func() {
		each(vps.Out, func(payload []byte) error {
			tap := l.tap.Load()
			_, err := tap.Write(withPayload(tap.out, payload))
			return err
		})
	})
	l.senders.Go(func() {
		each(vps.In, func(payload []byte) error {
			_, err := l.in.Write(payload)
			return err
		})
	})
}

// pause stops the senders and waits until all that they sent in this phase has
// arrived.
func (l *ledgerTest) pause(t *testing.T) {
	t.Helper()
	close(l.sending)
	l.senders.Wait()
	l.Eventually("all packets have arrived", func() bool {
		return l.sum(l.sent, l.phase) == l.sum(l.arrived, l.phase)
	})
	l.truth[l.id] = l.sum(l.sent)
}

// killOnce starts the daemon and kills it: some time later, or when it has just
// written to the database, which is amid a transaction.
func (l *ledgerTest) killOnce(t *testing.T, round int) {
	t.Helper()
	const most = 400 * time.Millisecond
	l.StartProgram(lab.Sublet(t), "serve")
	if round%2 == 0 {
		<-time.After(rand.N(most))
		l.Kill()
		return
	}
	for range 1 + rand.IntN(3) {
		l.afterWrite(most)
	}
	l.Kill()
}

// afterWrite returns when the daemon has just written to the database, or after
// so long.
func (l *ledgerTest) afterWrite(most time.Duration) {
	wal := filepath.Join(l.StateDir, "state.db-wal")
	written := func() time.Time {
		info, err := os.Stat(wal)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	before := written()
	const pause = 100 * time.Microsecond
	for deadline := time.Now().Add(most); written().Equal(before) && time.Now().Before(deadline); {
		<-time.After(pause)
	}
}

// flushRules takes all rules and counters away while nothing passes, when all
// that passed is kept.
func (l *ledgerTest) flushRules(t *testing.T) {
	t.Helper()
	l.pause(t)
	l.Stop()
	l.NS.Exec("nft", "flush", "ruleset")
	l.Start()
	l.Eventually("the rules are there again", l.Settled)
	l.resume()
}

// newTap removes the tap, as above.
func (l *ledgerTest) newTap(t *testing.T) {
	t.Helper()
	l.pause(t)
	l.unplug()
	l.NS.Exec("ip", "link", "del", "sl-alice")
	l.awaitTap(t)
	l.openTap(t)
	l.resume()
}

// unplug is what happens to the tap when the guest's kernel ends.
func (l *ledgerTest) unplug() { _ = l.tap.Load().Close() }

// awaitTap waits until the daemon has made the tap.
func (l *ledgerTest) awaitTap(t *testing.T) {
	t.Helper()
	l.Eventually("the tap is there again", func() bool {
		_, err := os.Stat("/sys/class/net/sl-alice")
		return err == nil && l.Settled()
	})
}

// reopenTap is what a restart of the guest does to its tap.
func (l *ledgerTest) reopenTap(t *testing.T) {
	t.Helper()
	l.pause(t)
	l.unplug()
	l.openTap(t)
	l.resume()
}

// newGuest deletes the guest and makes another one of its name.
func (l *ledgerTest) newGuest(t *testing.T) {
	t.Helper()
	l.pause(t)
	l.unplug()
	_ = l.in.Close()
	l.Sublet("delete", "alice", "--yes")
	l.create(t)
	l.resume()
}

// check compares what the ledger has, in steps of any length, with what was
// sent. The daemon has stopped.
func (l *ledgerTest) check(t *testing.T) {
	t.Helper()
	for id, want := range l.truth {
		for step, got := range l.history(t, id) {
			if got != want || want.InPackets == 0 || want.OutPackets == 0 {
				t.Errorf("by %s, %s had %+v; the ledger has %+v", step, id, want, got)
			}
		}
	}
	t.Logf("sent: %+v", l.truth)
}

// history is what the ledger has of a guest's internet, by steps of any length.
func (l *ledgerTest) history(t *testing.T, id string) map[vps.TrafficStep]vps.TrafficCount {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(l.StateDir, "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // it was only read
	sums := map[vps.TrafficStep]vps.TrafficCount{}
	for _, step := range vps.TrafficSteps() {
		rows, err := db.Traffic(t.Context(), vps.TrafficQuery{Step: step, GuestIDs: []string{id}})
		if err != nil {
			t.Fatal(err)
		}
		sums[step] = vps.TrafficCount{}
		for _, r := range rows {
			if r.Class == vps.TrafficInternet && r.Family == 4 {
				sums[step] = sums[step].Add(r.TrafficCount)
			}
		}
	}
	return sums
}
