package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/proof"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// proofWorld is a host with a tenant bob, whose guest alice has domains, and what
// looking for proofs finds.
type proofWorld struct {
	*prover
	t    *testing.T
	db   *sqlite.DB
	path string
	host vps.Host

	mu    sync.Mutex
	clock time.Time
	found map[string]proof.Outcome // by name
	asked []proof.Question
}

func newProofWorld(t *testing.T, domains ...vps.Domain) *proofWorld {
	t.Helper()
	w := &proofWorld{t: t, path: filepath.Join(t.TempDir(), "state.db"), found: map[string]proof.Outcome{}, clock: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)}
	w.host = vps.Host{
		Settings: vps.DefaultSettings(),
		Tenants:  []vps.Tenant{{Name: "bob", Created: w.clock, Webhook: "https://bob.example/"}, {Name: vps.DefaultTenant}},
		Guests: []vps.Guest{
			{ID: "1", Spec: vps.GuestSpec{Name: "alice", Tenant: "bob", Domains: domains}},
			{ID: "2", Spec: vps.GuestSpec{Name: "other", Tenant: "bob"}},
		},
	}
	w.host.Settings.Notices.Webhook = "https://owner.example/"
	w.open()
	t.Cleanup(func() { _ = w.db.Close() })
	return w
}

// open starts the daemon's part anew.
func (w *proofWorld) open() {
	w.t.Helper()
	if w.db != nil {
		if err := w.db.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	var err error
	if w.db, err = sqlite.Open(w.t.Context(), w.path, nil); err != nil {
		w.t.Fatal(err)
	}
	w.prover = &prover{key: proof.Key{1}, db: w.db, log: slog.New(slog.DiscardHandler), now: w.now, check: w.look}
	if err := w.load(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *proofWorld) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *proofWorld) look(_ context.Context, _ *vps.Host, q proof.Question) proof.Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, q)
	o, there := w.found[q.Name]
	if !there {
		o = proof.Absent
	}
	return proof.Found(q, proof.Finding{Method: vps.ProofDNS, Outcome: o, Message: "it was looked"})
}

// pass does what is due, and returns the names that were looked at.
func (w *proofWorld) pass() []string {
	w.t.Helper()
	queue, _ := w.due(w.t.Context(), &w.host, nil)
	names := []string{}
	for _, p := range queue {
		names = append(names, p.Name)
		if _, err := w.prove(w.t.Context(), &w.host, p); err != nil {
			w.t.Fatal(err)
		}
	}
	return names
}

// later is a time at which what was looked at is due again.
func (w *proofWorld) later() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(24 * time.Hour)
}

// told returns the events and notices since the last time, and takes them away.
func (w *proofWorld) told() (events, notices []string) {
	w.t.Helper()
	all, err := w.db.Events(w.t.Context(), sqlite.EventQuery{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range all {
		events = append(events, e.Guest+": "+e.Message)
	}
	waiting, err := w.db.Notices(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range waiting {
		notices = append(notices, n.NoticeTo.String()+": "+n.Message)
		if !strings.Contains(string(n.Data), `"record":"_sublet.`) || n.Tenant != "bob" || n.Kind != "domain" {
			w.t.Errorf("%+v: %s", n, n.Data)
		}
		if err := w.db.NoticeDone(w.t.Context(), n.UID, nil); err != nil {
			w.t.Fatal(err)
		}
	}
	return events, notices
}

func (w *proofWorld) live(name string) bool {
	return w.Live(&w.host, "bob", &vps.Domain{Name: name})
}

func TestProofsOfDomains(t *testing.T) {
	t.Parallel()
	const name = "blog.example.org"
	w := newProofWorld(t, vps.Domain{Name: name}, vps.Domain{Name: name, Listen: 993}, vps.Domain{Name: "*.sure.example.org", Vouched: true}, vps.Domain{Name: "*"})
	for _, c := range []struct {
		tenant string
		d      vps.Domain
		want   bool
	}{
		{"bob", vps.Domain{Name: name}, false},
		{"owner", vps.Domain{Name: name}, true},
		{"bob", vps.Domain{Name: "*.sure.example.org", Vouched: true}, true},
		{"bob", vps.Domain{Name: "*"}, true},
	} {
		if got := w.Live(&w.host, c.tenant, &c.d); got != c.want {
			t.Errorf("%s of %s: live %t", c.d.Name, c.tenant, got)
		}
	}
	if got := w.pass(); !slices.Equal(got, []string{name}) {
		t.Fatalf("looked at %q", got)
	}
	if q := w.asked[0]; q.Live || q.Method != "" || q.Token != w.key.Token(proof.Claim{Name: name, Tenant: "bob", Created: w.host.Tenants[0].Created}) {
		t.Errorf("%+v", q)
	}
	if got := w.pass(); len(got) != 0 || w.live(name) {
		t.Errorf("looked at %q again at once", got)
	}
	if _, next := w.due(t.Context(), &w.host, nil); next != time.Minute {
		t.Errorf("looked at next after %s", next)
	}
	if events, notices := w.told(); len(events)+len(notices) != 0 {
		t.Errorf("%q, %q", events, notices)
	}

	w.found[name] = proof.Proved
	changed := w.Changed()
	w.later()
	w.pass()
	select {
	case <-changed:
	default:
		t.Error("nobody was told that it is live")
	}
	const isLive = "the domain blog.example.org is proved to be bob's, and live"
	events, notices := w.told()
	if !w.live(name) || !slices.Equal(events, []string{"alice: " + isLive}) || !slices.Equal(notices, []string{"the owner by webhook: " + isLive, "bob by webhook: " + isLive}) {
		t.Errorf("%t, %q, %q", w.live(name), events, notices)
	}

	// A daemon that starts, and reaches nobody, has what was live.
	w.open()
	if !w.live(name) {
		t.Fatal("not live after a restart")
	}
	w.found[name] = proof.Unknown
	for range 30 {
		w.later()
		w.pass()
	}
	if events, notices := w.told(); !w.live(name) || len(events) != 1 || len(notices) != 0 {
		t.Errorf("silence was told: %q, %q", events, notices)
	}
	if q := w.asked[len(w.asked)-1]; !q.Live || q.Method != vps.ProofDNS {
		t.Errorf("%+v", q)
	}

	w.found[name] = proof.Absent
	changed = w.Changed()
	w.later()
	w.pass()
	events, notices = w.told()
	if !w.live(name) || len(notices) != 2 || !strings.Contains(notices[1], "is gone: it was looked; unless it is there again by ") || !strings.Contains(notices[1], `the TXT record _sublet.blog.example.org with "sublet=`) {
		t.Errorf("%q, %q", events, notices)
	}
	for range 13 {
		w.later()
		w.pass()
	}
	if _, notices := w.told(); !w.live(name) || len(notices) != 0 {
		t.Errorf("lost early, or told again: %q", notices)
	}
	w.later()
	w.pass()
	events, notices = w.told()
	if w.live(name) || len(notices) != 2 || !strings.Contains(events[len(events)-1], "alice: the domain blog.example.org is not live any more: for 14 days") {
		t.Errorf("%t, %q, %q", w.live(name), events, notices)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told that it is not live any more")
	}
}

// TestProofsBelongToTenants moves a name between guests, and makes its tenant anew.
func TestProofsBelongToTenants(t *testing.T) {
	t.Parallel()
	const name = "blog.example.org"
	w := newProofWorld(t, vps.Domain{Name: name})
	w.found[name] = proof.Proved
	w.pass()
	if !w.live(name) {
		t.Fatal("not live")
	}
	// From guest to guest, with a while between the two.
	w.host.Guests[0].Spec.Domains = nil
	w.pass()
	w.host.Guests[1].Spec.Domains = []vps.Domain{{Name: name}}
	if !w.live(name) || len(w.pass()) != 0 {
		t.Error("a move needs a new proof")
	}
	// A tenant who comes after him.
	w.host.Tenants[0].Created = w.clock.Add(time.Hour)
	if w.live(name) {
		t.Error("another tenant of that name has his domains")
	}
	before := w.asked[0].Token
	w.found[name] = proof.Absent
	w.pass()
	if got := w.asked[len(w.asked)-1]; got.Token == before || got.Live || w.live(name) {
		t.Errorf("%+v", got)
	}
	// What nobody needs is forgotten: what is pending at once, what is proved later.
	w.host.Guests[1].Spec.Domains = nil
	w.pass()
	kept := func() int {
		all, err := w.db.Proofs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if kept() != 1 || len(w.proofs) != 1 {
		t.Errorf("%d are kept", kept())
	}
	w.later()
	w.later()
	w.pass()
	if kept() != 0 || len(w.proofs) != 0 {
		t.Errorf("%d are kept for nobody", kept())
	}
}

// failingKeeper cannot keep anything.
type failingKeeper struct{ proofKeeper }

func (failingKeeper) KeepProof(context.Context, vps.Proof, *sqlite.ProofNews) error {
	return errors.New("disk full")
}

func TestProofsThatCannotBeKept(t *testing.T) {
	t.Parallel()
	const name = "blog.example.org"
	w := newProofWorld(t, vps.Domain{Name: name})
	w.found[name] = proof.Proved
	good := w.prover.db
	w.prover.db = failingKeeper{good}
	queue, _ := w.due(t.Context(), &w.host, nil)
	if _, err := w.prove(t.Context(), &w.host, queue[0]); err == nil || w.live(name) {
		t.Errorf("%v", err)
	}
	if queue, next := w.due(t.Context(), &w.host, nil); len(queue) != 0 || next != time.Minute {
		t.Errorf("tried again at once: %v, %s", queue, next)
	}
	w.prover.db = good
	w.later()
	w.pass()
	if events, _ := w.told(); !w.live(name) || len(events) != 1 {
		t.Errorf("%q", events)
	}
}

// TestProofsAreWatched has a domain be added while others are looked at, by more than
// are looked at together.
func TestProofsAreWatched(t *testing.T) {
	t.Parallel()
	var domains []vps.Domain
	for i := range 3 * proofsAtATime {
		domains = append(domains, vps.Domain{Name: string(rune('a'+i)) + ".example.org"})
	}
	w := newProofWorld(t, domains...)
	release, began := make(chan struct{}), make(chan string, 100)
	w.check = func(ctx context.Context, _ *vps.Host, q proof.Question) proof.Result {
		began <- q.Name
		select {
		case <-release:
		case <-ctx.Done():
		}
		return proof.Found(q, proof.Finding{Method: vps.ProofDNS, Outcome: proof.Proved, Message: "there"})
	}
	var mu sync.Mutex
	var host *vps.Host
	edited := make(chan struct{})
	edit := func(h vps.Host) {
		mu.Lock()
		defer mu.Unlock()
		host = &h
		close(edited)
		edited = make(chan struct{})
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- w.watch(ctx, func() (*vps.Host, <-chan struct{}) {
			mu.Lock()
			defer mu.Unlock()
			return host, edited
		})
	}()
	giveUp := time.After(hang.After)
	next := func(c <-chan string) string {
		select {
		case name := <-c:
			return name
		case <-giveUp:
			t.Fatal("nothing happens")
			return ""
		}
	}
	edit(w.host)
	for range proofsAtATime {
		next(began)
	}
	select {
	case name := <-began:
		t.Errorf("%s is looked at beyond the limit", name)
	default:
	}
	close(release)
	live := func(h *vps.Host) {
		for {
			changed, all := w.Changed(), true
			for i := range h.Guests {
				for _, d := range h.Guests[i].Spec.Domains {
					all = all && w.Live(h, "bob", &d)
				}
			}
			if all {
				return
			}
			select {
			case <-changed:
			case <-giveUp:
				t.Fatal("some are never live")
			}
		}
	}
	live(&w.host)
	more := w.host
	more.Guests = slices.Clone(more.Guests)
	more.Guests[1].Spec.Domains = []vps.Domain{{Name: "added.example.org"}}
	edit(more)
	live(&more)
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-giveUp:
		t.Error("it does not end")
	}
}

func TestOwnAddresses(t *testing.T) {
	t.Parallel()
	own := ownAddresses{all: map[netip.Addr]bool{}}
	own.add(netip.MustParseAddr("10.0.0.5"), true, false)
	own.add(netip.MustParseAddr("2a00:1::5"), false, true)
	for text, want := range map[string][2]bool{
		"10.0.0.5": {true, true}, "127.3.4.5": {true, true}, "::1": {true, false}, "::ffff:10.0.0.5": {true, true}, "0.0.0.0": {true, true},
		"1.1.1.1": {false, true}, "2a00:1::5": {true, false}, "2a00:1::6": {false, false},
	} {
		a := netip.MustParseAddr(text)
		if own.onLinks(a) != (a.Unmap().String() == "10.0.0.5") {
			t.Errorf("%s: on a link %t", text, own.onLinks(a))
		}
		if own.has(a) != want[0] || own.mayHave(a) != want[1] {
			t.Errorf("%s: has %t, may have %t", text, own.has(a), own.mayHave(a))
		}
	}
	s := vps.DefaultSettings()
	s.PublicAddress = netip.MustParseAddr("203.0.113.7") // which is not public, but the owner's word
	all, err := addressesOf(&s)
	if err != nil || !all.has(s.PublicAddress) || !all.has(netip.MustParseAddr("127.0.0.1")) || !all.public4 {
		t.Errorf("%+v, %v", all, err)
	}
}
