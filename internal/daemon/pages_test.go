package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
	"sublet/internal/web"
)

// idleLoop never looked at the host.
type idleLoop struct{}

func (idleLoop) Kick()                                           {}
func (idleLoop) Snapshot() (reconcile.Snapshot, <-chan struct{}) { return reconcile.Snapshot{}, nil }

// loadedLoop has just loaded what is desired.
type loadedLoop struct {
	idleLoop
	host vps.Host
}

func (l loadedLoop) Snapshot() (reconcile.Snapshot, <-chan struct{}) {
	return reconcile.Snapshot{Host: l.host, Loaded: time.Now()}, nil
}

// roomy is a host that any settings fit.
type roomy struct{ plenty }

func (roomy) Network(context.Context, vps.Settings, vps.Settings) error { return nil }

// pagesWorld is a daemon's part that pages need, without a host.
func pagesWorld(tb testing.TB) (backend, *web.Server) {
	tb.Helper()
	db, err := sqlite.Open(tb.Context(), filepath.Join(tb.TempDir(), "state.db"), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	state := desired.New(db, roomy{})
	p := &parts{
		config: Config{Pages: PagesConfig{Listen: "0.0.0.0:8444"}}, log: slog.New(slog.DiscardHandler), db: db, state: state,
		quotas: &enforcer{state: state, loop: idleLoop{}, edited: make(chan struct{}, 1)},
	}
	if _, err := state.Apply(tb.Context(), strings.NewReader("version: 1\nsettings: {public_address: 203.0.113.5}\ntenants: [{name: bob}]\nguests: [{name: alice, tenant: bob}, {name: mine}]\n"), false, false); err != nil {
		tb.Fatal(err)
	}
	return backend{p}, web.New(pages{
		backend: backend{p}, DB: db, host: p.quotas.host, history: &unchanged{db: db}, uses: usesOf(backend{p}), status: func() map[string]vps.GuestStatus { return nil },
	}, web.Options{})
}

// usesOf shows quotas as pages do.
func usesOf(b backend) func(context.Context) ([]vps.QuotaUse, error) {
	week := &recent{db: b.db}
	return func(ctx context.Context) ([]vps.QuotaUse, error) { return b.quotaUses(ctx, week.traffic) }
}

// open asks for the page at an address.
func open(tb testing.TB, s http.Handler, address, accept string) (int, string) {
	tb.Helper()
	at := strings.Index(address, vps.PagePath)
	if at < 0 {
		tb.Fatalf("%q is no address of a page", address)
	}
	r := httptest.NewRequestWithContext(tb.Context(), http.MethodGet, address[at:], nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// TestPageLinksLive follows links from their making to their end.
func TestPageLinksLive(t *testing.T) {
	t.Parallel()
	b, s := pagesWorld(t)
	link := func(c api.CreatePageLink) api.CreatedPageLink {
		made, err := b.CreatePageLink(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	bob, all := link(api.CreatePageLink{Tenant: "bob", Note: "by mail"}), link(api.CreatePageLink{All: true})
	if !strings.HasPrefix(bob.Address, "http://203.0.113.5:8444/t/") || len(bob.Warnings) != 0 {
		t.Errorf("%+v", bob)
	}
	if code, body := open(t, s, bob.Address, "*/*"); code != http.StatusOK || !strings.Contains(body, "alice") || strings.Contains(body, "mine") {
		t.Errorf("%d\n%s", code, body)
	}
	if code, body := open(t, s, all.Address, "*/*"); code != http.StatusOK || !strings.Contains(body, "alice") || !strings.Contains(body, "mine") {
		t.Errorf("%d\n%s", code, body)
	}
	if _, err := b.CreatePageLink(t.Context(), api.CreatePageLink{Tenant: "zoe"}); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("a tenant who is not there: %v", err)
	}
	gone := func(why string) {
		t.Helper()
		if code, _ := open(t, s, bob.Address, "text/html"); code != http.StatusNotFound {
			t.Errorf("%s: %d", why, code)
		}
	}
	if err := b.RevokePageLink(t.Context(), bob.ID); err != nil {
		t.Fatal(err)
	}
	gone("revoked")
	bob = link(api.CreatePageLink{Tenant: "bob"})
	id := b.idOf(t, "alice")
	if _, err := b.state.Delete(t.Context(), "alice", false); err != nil {
		t.Fatal(err)
	}
	if err := b.state.Forget(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := b.state.DeleteTenant(t.Context(), "bob"); err != nil {
		t.Fatal(err)
	}
	gone("the tenant is deleted")
	if _, err := b.state.PutTenant(t.Context(), "bob", func(t vps.Tenant) vps.Tenant { return t }); err != nil {
		t.Fatal(err)
	}
	gone("another tenant of that name")
	links, err := b.PageLinks(t.Context())
	if err != nil || len(links) != 1 || links[0].ID != all.ID {
		t.Errorf("listed are %+v, %v", links, err)
	}
	link(api.CreatePageLink{Tenant: "bob"})
	if kept, err := b.db.PageLinks(t.Context()); err != nil || len(kept) != 2 {
		t.Errorf("kept are %+v, %v", kept, err)
	}
}

func (b backend) idOf(t *testing.T, name string) string {
	t.Helper()
	host, err := b.state.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return host.Guest(name).ID
}

// TestPageLinkWarnings says what stands between a link and its page.
func TestPageLinkWarnings(t *testing.T) {
	t.Parallel()
	b, _ := pagesWorld(t)
	for _, tt := range []struct {
		listen, want string
	}{
		{"", "serves no pages"},
		{"nowhere", "--pages-url"}, // it is not known how it is reached
		{"127.0.0.1:8444", ""},
	} {
		b.config.Pages.Listen = tt.listen
		made, err := b.CreatePageLink(t.Context(), api.CreatePageLink{All: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(made.Warnings, " "); !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%q: warnings are %q, want %q", tt.listen, made.Warnings, tt.want)
		}
	}
}

func TestPageAddresses(t *testing.T) {
	t.Parallel()
	public := netip.MustParseAddr("203.0.113.5")
	for _, tt := range []struct {
		config PagesConfig
		public netip.Addr
		want   string
	}{
		{PagesConfig{Listen: "0.0.0.0:8444"}, public, "http://203.0.113.5:8444"},
		{PagesConfig{Listen: ":80"}, public, "http://203.0.113.5"},
		{PagesConfig{Listen: "[::]:443", Cert: "c"}, netip.MustParseAddr("2001:db8::1"), "https://[2001:db8::1]"},
		{PagesConfig{Listen: "[2001:db8::2]:8444", Cert: "c"}, public, "https://[2001:db8::2]:8444"},
		{PagesConfig{Listen: "127.0.0.1:8444", URL: "https://usage.example.com/pages/"}, public, "https://usage.example.com/pages"},
		{PagesConfig{Listen: "0.0.0.0:8444"}, netip.Addr{}, ""},
		{PagesConfig{}, public, ""},
	} {
		if got := tt.config.address(tt.public); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.config, got, tt.want)
		}
	}
	for _, bad := range []PagesConfig{
		{URL: "usage.example.com"}, {URL: "ftp://x"}, {URL: "https://x/?q"}, {Listen: "127.0.0.1:0", Cert: "c"}, {Listen: "nonsense"}, {Listen: "127.0.0.1:0", Cert: "none", Key: "none"},
	} {
		if _, err := bad.listen(t.Context()); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
