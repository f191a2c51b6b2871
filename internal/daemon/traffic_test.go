package daemon

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"sublet/internal/desired"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// trafficHost is a host whose kernel counts what it is told.
type trafficHost struct {
	t        *testing.T
	db       *sqlite.DB
	state    *desired.State
	loop     accounted
	links    []vps.LinkTraffic
	broken   error
	looks    int // for the public links
	snapshot reconcile.Snapshot
}

func (h *trafficHost) Traffic(context.Context) (vps.TrafficCounters, error) {
	return vps.TrafficCounters{At: time.Now(), Epoch: "e", Links: h.links}, h.broken
}

func (h *trafficHost) ForgetTraffic(_ context.Context, links ...string) error {
	kept := h.links[:0]
	for _, l := range h.links {
		if l.Link != links[0] {
			kept = append(kept, l)
		}
	}
	h.links = kept
	return nil
}

func (h *trafficHost) Uplinks(context.Context, string) ([]string, error) {
	h.looks++
	return []string{"eth0"}, nil
}

func (h *trafficHost) Counters(_ context.Context, uplinks []string) ([]vps.LinkTraffic, error) {
	return []vps.LinkTraffic{{Link: uplinks[0], TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}}}, nil
}

func (h *trafficHost) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func newTrafficHost(t *testing.T) *trafficHost {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	h := &trafficHost{t: t, db: db, state: desired.New(db, plenty{})}
	found := &foundUplinks{trafficUplinks: h, snapshot: func() (reconcile.Snapshot, <-chan struct{}) { return h.snapshot, nil }}
	h.loop = accounted{restrained{h.state, &enforcer{}}, &sampler{kernel: h, uplinks: found, db: db, boot: "b", log: slog.New(slog.DiscardHandler)}}
	return h
}

// create makes a guest and returns its ID.
func (h *trafficHost) create(name string) string {
	h.t.Helper()
	_, err := h.state.Create(h.t.Context(), name, func(s vps.GuestSpec) (vps.GuestSpec, error) { return s, nil }, false)
	h.must(err)
	host, err := h.state.Host(h.t.Context())
	h.must(err)
	return host.Guest(name).ID
}

// in is what the ledger says that a guest received.
func (h *trafficHost) in(id string) int64 {
	h.t.Helper()
	rows, err := h.db.Traffic(h.t.Context(), vps.TrafficQuery{Step: vps.StepMonth, GuestIDs: []string{id}})
	h.must(err)
	var sum int64
	for _, r := range rows {
		sum += r.InBytes
	}
	return sum
}

// TestForgetKeepsTraffic deletes a guest and makes another one of its name.
func TestForgetKeepsTraffic(t *testing.T) {
	t.Parallel()
	h := newTrafficHost(t)
	first := h.create("alice")
	h.links = []vps.LinkTraffic{{Link: "sl-alice", TrafficKey: vps.TrafficKey{Class: vps.TrafficInternet, Family: 4}, TrafficCount: vps.TrafficCount{InBytes: 1000, InPackets: 1}}}

	h.broken = errors.New("no answer")
	if err := h.loop.Forget(t.Context(), first); err == nil {
		t.Error("a guest is forgotten whose traffic cannot be read")
	}
	if host, err := h.state.Host(t.Context()); err != nil || host.Guest("alice") == nil {
		t.Fatalf("the guest is gone (%v)", err)
	}
	h.broken = nil
	h.must(h.loop.Forget(t.Context(), first))
	h.must(h.loop.Forget(t.Context(), first)) // absent is success
	if host, err := h.state.Host(t.Context()); err != nil || host.Guest("alice") != nil {
		t.Fatalf("the guest is still there (%v)", err)
	}

	second := h.create("alice")
	h.links = append(h.links, vps.LinkTraffic{Link: "sl-alice", TrafficKey: vps.TrafficKey{Class: vps.TrafficInternet, Family: 4}, TrafficCount: vps.TrafficCount{InBytes: 1500, InPackets: 2}})
	host, err := h.state.Host(t.Context())
	h.must(err)
	for range 2 {
		_, _, err = h.loop.traffic.sample(t.Context(), &host)
		h.must(err)
	}
	if h.in(first) != 1000 || h.in(second) != 1500 {
		t.Errorf("the first guest has %d bytes and the second %d; want 1000 and 1500", h.in(first), h.in(second))
	}
	if h.looks != 1 {
		t.Errorf("the public links were looked for %d times in one pass; want once", h.looks)
	}
	h.snapshot.At = time.Now()
	_, _, err = h.loop.traffic.sample(t.Context(), &host)
	h.must(err)
	if h.looks != 2 {
		t.Errorf("the public links were looked for %d times in two passes; want twice", h.looks)
	}
}

// TestUntilSample: samples come on the strokes of the clock, and a setting that
// was seldom is seen to be often soon.
func TestUntilSample(t *testing.T) {
	t.Parallel()
	at := func(minute, second int) time.Time { return time.Date(2026, 10, 20, 12, minute, second, 0, time.UTC) }
	for _, c := range []struct {
		now   time.Time
		every time.Duration
		wait  time.Duration
		due   bool
	}{
		{at(0, 3), 10 * time.Second, 7 * time.Second, true},
		{at(0, 0), 10 * time.Second, 10 * time.Second, true},
		{at(0, 0), time.Second, time.Second, true},
		{at(1, 0), 5 * time.Minute, 10 * time.Second, false},
		{at(4, 52), 5 * time.Minute, 8 * time.Second, true},
	} {
		if wait, due := untilSample(c.now, c.every); wait != c.wait || due != c.due {
			t.Errorf("%s each %s: %s, %v; want %s, %v", c.now.Format("04:05"), c.every, wait, due, c.wait, c.due)
		}
	}
}
