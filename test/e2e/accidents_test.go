package e2e

import (
	"slices"
	"strings"
	"testing"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

// TestAccidentsAmidTraffic has accidents happen while packets pass all the time,
// in both directions, and holds the ledger to bounds that only the packets give:
//
//   - never more than was sent: nothing is counted twice;
//   - never less than what arrived, but for an accident that takes the counters
//     away. Then there is at least what had arrived before the last sample, and
//     what arrived of that which was sent when there were counters again. What
//     may be missing is what passed between the two, and nothing else.
//
// A packet is counted on its way, behind the wall. What was sent may get lost
// before (the link is gone) or behind that (nobody is plugged in), but what
// arrived was counted, if there were counters; so these bounds are right for
// every packet, and the same when none gets lost. Each round begins with a quiet
// moment in which the ledger has all there is, so that bounds do not add up.
func TestAccidentsAmidTraffic(t *testing.T) {
	t.Parallel()
	l := newLedgerTest(t, "5m")
	const (
		nothing  = false // is lost
		counters = true  // are lost
	)
	accidents := []struct {
		what   string
		loses  bool
		happen func()
	}{
		{"the rules are flushed", counters, func() {
			l.flush()
			l.awaitRules(t)
		}},
		{"the table that counts is deleted", counters, func() {
			l.NS.Exec("nft", "delete", "table", "inet", "sublet-traffic")
			l.awaitRules(t)
		}},
		{"the tap is deleted", nothing, func() {
			l.deleteTap()
			l.awaitTap(t)
			l.openTap(t)
		}},
		{"the guest restarts", nothing, func() {
			l.unplug()
			l.openTap(t)
		}},
		{"the daemon is killed", nothing, func() {
			l.killAmid(t)
			l.Start()
		}},
		{"the daemon is killed, and the rules are flushed", counters, func() {
			l.killAmid(t)
			l.flush()
			l.Start()
			l.awaitRules(t)
		}},
		{"the rules are flushed, and the daemon is killed while it mends them", counters, func() {
			l.flush()
			l.Kill()
			l.Start()
			l.awaitRules(t)
		}},
		{"the daemon is killed, and the tap is deleted", nothing, func() {
			l.killAmid(t)
			l.deleteTap()
			l.Start()
			l.awaitTap(t)
			l.openTap(t)
		}},
		{"the tap is deleted, and the rules are flushed", counters, func() {
			l.deleteTap()
			l.flush()
			l.awaitTap(t)
			l.awaitRules(t)
			l.openTap(t)
		}},
	}
	// At first there are few samples but those that the test asks for, so that an
	// accident costs what it can. The second time they come all the time, and amid
	// everything.
	for _, looked := range []bool{false, true} {
		for _, a := range accidents {
			l.accident(t, a.what, a.loses, looked, a.happen)
		}
	}
	last := l.recorded(t)
	l.Stop()
	for step, got := range l.history(t, l.id) {
		if got != last {
			t.Errorf("by %s the ledger has %+v at last, and by months %+v", step, got, last)
		}
	}
}

// The phases of an accident: until the counters are whole again, from then on,
// and when nothing is left to be mended, so that no packet gets lost any more.
const (
	phaseAmid byte = iota
	phaseWhole
	phaseMended
)

// accident has something happen amid traffic and compares what the ledger has
// gained with what was sent and has arrived meanwhile.
func (l *ledgerTest) accident(t *testing.T, what string, loses, looked bool, happen func()) {
	t.Helper()
	l.forget()
	before := l.recorded(t)
	l.resume()
	if looked {
		l.senders.Go(func() { l.look(l.sending) })
	}
	l.flows()
	// All of this is in the counters, and after a sample in the ledger.
	safe := l.sum(l.arrived)
	l.recorded(t)
	happen()
	l.enter(phaseWhole)
	l.flows()
	l.Eventually("all is mended", l.Settled)
	l.enter(phaseMended)
	l.flows()
	l.pause(t)

	most, least := l.sum(l.sent), l.sum(l.arrived)
	if loses {
		least = safe.Add(l.sum(l.arrived, phaseWhole, phaseMended))
	}
	got := gained(l.recorded(t), before)
	t.Logf("%s: the ledger has %+v, of at least %+v and at most %+v", what, got, least, most)
	if !within(got, least, most) {
		t.Errorf("%s: the ledger has %+v; it should have at least %+v and at most %+v", what, got, least, most)
	}
}

// look looks at the traffic again and again, which is a sample each time.
func (l *ledgerTest) look(until <-chan struct{}) {
	for {
		select {
		case <-until:
			return
		default:
			l.Try("traffic") // which fails while there is no daemon
		}
	}
}

// recorded is what the ledger has of the guest's internet, after a sample.
func (l *ledgerTest) recorded(t *testing.T) vps.TrafficCount {
	t.Helper()
	return ledgerOf(l.Host, "traffic", "alice", "--months")[vps.TrafficKey{Class: vps.TrafficInternet, Family: 4}]
}

// flows waits until packets of this phase have come out at both ends: more than
// an accident makes the ledger lose, as a rule, so that what is lost does not
// make up for what is counted twice.
func (l *ledgerTest) flows() {
	const enough = 40
	l.Eventually("packets pass in both directions", func() bool {
		arrived := l.sum(l.arrived, l.phase)
		return arrived.InPackets >= enough && arrived.OutPackets >= enough
	})
}

// flush takes all rules and counters away.
func (l *ledgerTest) flush() { l.NS.Exec("nft", "flush", "ruleset") }

// awaitRules waits until the wall and what counts are there. Each is made whole
// in one transaction.
func (l *ledgerTest) awaitRules(t *testing.T) {
	t.Helper()
	l.Eventually("the rules are there again", func() bool {
		tables := strings.Split(l.NS.Exec("nft", "list", "tables"), "\n")
		for _, want := range []string{"table inet sublet", "table inet sublet-traffic", "table bridge sublet-traffic"} {
			if !slices.Contains(tables, want) {
				return false
			}
		}
		return true
	})
}

// deleteTap takes the tap from under the guest, whose packets go nowhere until
// it is plugged in again.
func (l *ledgerTest) deleteTap() { l.NS.Exec("ip", "link", "del", "sl-alice") }

// killAmid kills the daemon when it has just written, which is amid a sample.
func (l *ledgerTest) killAmid(t *testing.T) {
	t.Helper()
	killed := make(chan struct{})
	defer close(killed)
	l.senders.Go(func() { l.look(killed) })
	l.afterWrite(hang.After)
	l.Kill()
}

// gained is what a count has more than an earlier one.
func gained(now, earlier vps.TrafficCount) vps.TrafficCount {
	return vps.TrafficCount{
		InBytes: now.InBytes - earlier.InBytes, InPackets: now.InPackets - earlier.InPackets,
		OutBytes: now.OutBytes - earlier.OutBytes, OutPackets: now.OutPackets - earlier.OutPackets,
	}
}

// within tells whether a count is between two others in each of its parts.
func within(got, least, most vps.TrafficCount) bool {
	for _, d := range []vps.TrafficCount{gained(got, least), gained(most, got)} {
		if d.InBytes < 0 || d.InPackets < 0 || d.OutBytes < 0 || d.OutPackets < 0 {
			return false
		}
	}
	return true
}
