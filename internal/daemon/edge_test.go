package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/desired"
	"sublet/internal/edge"
	"sublet/internal/edge/control"
	"sublet/internal/hang"
	"sublet/internal/plan"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// edgeStand is what feeds an edge, without one.
type edgeStand struct {
	*edgeKeeper
	t     *testing.T
	state *desired.State
	told  chan control.Wish

	mu       sync.Mutex
	snapshot reconcile.Snapshot
	looked   chan struct{}
	proved   chan struct{}
	names    map[string]bool
	own      []netip.Addr
	started  chan string
	events   []string
}

func newEdgeStand(t *testing.T) *edgeStand {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s := &edgeStand{
		t: t, state: desired.New(db, plenty{}), told: make(chan control.Wish, 100), looked: make(chan struct{}), proved: make(chan struct{}),
		names: map[string]bool{}, started: make(chan string, 10),
	}
	p := &parts{db: db}
	s.edgeKeeper = &edgeKeeper{
		host: s.state.Host, edits: p.watchState, proofs: s, log: slog.New(slog.NewTextHandler(t.Output(), nil)), wakes: make(chan string, maxWakes), retry: make(chan struct{}, 1),
		set: func(w control.Wish) error { s.told <- w; return nil },
		seen: func() (reconcile.Snapshot, <-chan struct{}) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.snapshot, s.looked
		},
		addresses: func() ([]netip.Addr, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.own, nil
		},
		start: func(_ context.Context, guest string) error { s.started <- guest; return nil },
		event: func(guest, message string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, guest+": "+message)
		},
	}
	return s
}

func (s *edgeStand) Live(_ *vps.Host, tenant string, d *vps.Domain) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !d.NeedsProof(tenant) || s.names[d.Name]
}

func (s *edgeStand) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proved
}

// look is a pass of the loop that sees these guests run.
func (s *edgeStand) look(states map[string]vps.State) {
	s.t.Helper()
	loaded := time.Now()
	host, err := s.state.Host(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	n := reconcile.Snapshot{Host: host, Loaded: loaded, At: time.Now(), Observed: plan.Observed{Guests: map[string]plan.Guest{}}, Status: map[string]vps.GuestStatus{}}
	for name, state := range states {
		id := host.Guest(name).ID
		n.Status[id] = vps.GuestStatus{State: state}
		if state == vps.StateRunning {
			n.Observed.Guests[id] = plan.Guest{Instance: &vps.Instance{GuestID: id}}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot = n
	close(s.looked)
	s.looked = make(chan struct{})
}

// until waits until the edge is told something.
func (s *edgeStand) until(what string, ok func(c *edge.Config) bool) {
	s.t.Helper()
	late := time.After(hang.After)
	for {
		select {
		case w := <-s.told:
			if settings := vps.DefaultSettings(); w.UID != settings.EdgeUID() {
				s.t.Errorf("its user is %d", w.UID)
			}
			if ok(&w.Config) {
				return
			}
		case <-late:
			s.t.Fatalf("the edge is not told: %s", what)
		}
	}
}

// edit gives a guest domains.
func (s *edgeStand) edit(name string, domains ...vps.Domain) {
	s.t.Helper()
	_, err := s.state.Update(s.t.Context(), name, func(g vps.GuestSpec) (vps.GuestSpec, error) {
		g.Domains = domains
		return g, nil
	}, false)
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *edgeStand) create(name string, shape func(*vps.GuestSpec)) (id string) {
	s.t.Helper()
	e, err := s.state.Create(s.t.Context(), name, func(g vps.GuestSpec) (vps.GuestSpec, error) {
		if shape != nil {
			shape(&g)
		}
		return g, nil
	}, false)
	if err != nil {
		s.t.Fatal(err)
	}
	return e.Guest
}

func has(c *edge.Config, domain string, running bool) bool {
	for i := range c.Guests {
		for _, d := range c.Guests[i].Domains {
			if d.Name == domain {
				return c.Guests[i].Running == running
			}
		}
	}
	return false
}

func TestEdgeIsFed(t *testing.T) {
	t.Parallel()
	s := newEdgeStand(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.feed(ctx) }()

	s.create("alice", nil)
	s.edit("alice", vps.Domain{Name: "blog.example.org"})
	if len(s.told) > 0 {
		t.Error("before the first look at the host all guests would be told to be stopped")
	}
	s.look(map[string]vps.State{"alice": vps.StateRunning})
	s.until("what runs", func(c *edge.Config) bool { return has(c, "blog.example.org", true) })

	s.edit("alice", vps.Domain{Name: "other.example.org"})
	s.until("an edit, with no pass of the loop", func(c *edge.Config) bool {
		return has(c, "other.example.org", true) && !has(c, "blog.example.org", true)
	})

	s.look(map[string]vps.State{"alice": vps.StateStopped})
	s.until("that it is stopped", func(c *edge.Config) bool { return has(c, "other.example.org", false) })

	if _, err := s.state.PutTenant(t.Context(), "carol", func(c vps.Tenant) vps.Tenant { return c }); err != nil {
		t.Fatal(err)
	}
	s.create("bob", func(g *vps.GuestSpec) { g.Tenant = "carol" })
	s.edit("bob", vps.Domain{Name: "bob.example.org"})
	s.until("nothing of what is not proved", func(c *edge.Config) bool { return !has(c, "bob.example.org", false) })
	s.mu.Lock()
	s.names["bob.example.org"] = true
	close(s.proved)
	s.proved = make(chan struct{})
	s.mu.Unlock()
	s.until("what was proved", func(c *edge.Config) bool { return has(c, "bob.example.org", false) })

	before := time.Now().Add(-retryAfter)
	s.RetryCertificates()
	s.until("that certificates are to be tried again", func(c *edge.Config) bool { return !c.Retry.Before(before) })

	// A pass that only sees an address come, as by DHCP.
	s.mu.Lock()
	s.own = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
	s.mu.Unlock()
	s.look(map[string]vps.State{"alice": vps.StateStopped})
	s.until("the host's new address", func(c *edge.Config) bool { return slices.Contains(c.Own, netip.MustParsePrefix("192.0.2.77/32")) })

	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCallsWakeGuests(t *testing.T) {
	t.Parallel()
	s := newEdgeStand(t)
	alice := s.create("alice", nil)
	s.edit("alice", vps.Domain{Name: "blog.example.org", Wake: true})
	bob := s.create("bob", nil)
	s.edit("bob", vps.Domain{Name: "bob.example.org"})
	go func() { _ = s.feed(t.Context()) }()
	go func() { _ = s.wake(t.Context()) }()
	s.look(map[string]vps.State{"alice": vps.StateStopped, "bob": vps.StateStopped})
	s.until("both", func(c *edge.Config) bool {
		return has(c, "blog.example.org", false) && has(c, "bob.example.org", false)
	})

	// Only who asked for it, and what the edge makes up is not believed.
	for _, id := range []string{bob, "../../x", "", alice, alice, alice} {
		s.call(id)
	}
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-s.started:
			if got != want {
				t.Fatalf("%s is started; want %s", got, want)
			}
		case <-time.After(hang.After):
			t.Fatal("nobody is started")
		}
	}
	expect("alice")
	// Until the loop has looked, it is not asked for again; while it starts neither.
	s.look(map[string]vps.State{"alice": vps.StateStarting})
	s.call(alice)
	s.look(map[string]vps.State{"alice": vps.StateRunning})
	s.call(alice)
	s.look(map[string]vps.State{"alice": vps.StateStopped})
	s.call(bob)
	s.call(alice)
	expect("alice")
	if len(s.started) > 0 {
		t.Errorf("%s is started, too", <-s.started)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if text := strings.Join(s.events, "\n"); !strings.HasPrefix(text, "alice: somebody called blog.example.org, so that alice is started") {
		t.Errorf("the events are:\n%s", text)
	}
}
