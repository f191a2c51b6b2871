// Package web serves pages about traffic and domains: one for each tenant, and the
// owner's over all, each behind a link that nobody can guess. The same address
// answers with a page to browsers, with text to curl, and with JSON to programs
// that ask for it.
//
// What a page shows is gathered once (view.go) and then written in one of the
// three forms. Everything that a browser loads comes from here.
package web

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"sublet/internal/vps"
)

// Backend is what pages are about. It is called by many goroutines at once.
type Backend interface {
	// Page returns what the page behind a key is about. A key that opens none is
	// vps.CodeNotFound, whatever the reason.
	Page(ctx context.Context, key string) (Subject, error)
	// Traffic returns rows of the ledger, also of the steps that still run.
	Traffic(ctx context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error)
	// QuotaUses returns how much of each quota of the host is used, in the order
	// of vps.CompareQuotas.
	QuotaUses(ctx context.Context) ([]vps.QuotaUse, error)
	// AccessLog writes who called the domains of a guest of a page, since Guest.Since:
	// the last lines, 0 for as many as a page shows at most. They are printable ASCII.
	// A guest without a log has no lines.
	AccessLog(ctx context.Context, g Guest, lines int, w io.Writer) error
}

// Subject is what a page is about.
type Subject struct {
	// Tenant is whose page it is; empty for the owner's, over all. TenantMade is
	// when he was made: his traffic is not that of another one who had his name.
	Tenant     string
	TenantMade time.Time
	// Host is the name of the host, which only the owner's page shows.
	Host string
	// Zone is the one that the ledger's days and months begin in.
	Zone *time.Location
	// Guests are all that the page may show, sorted by name. Those that are gone
	// are not among them: the ledger knows them.
	Guests []Guest
	// Logged tells that calls of domains are written down.
	Logged bool
}

// guest finds a guest by its name; nil for one that the page may not show.
func (s *Subject) guest(name string) *Guest {
	for i := range s.Guests {
		if s.Guests[i].Name == name {
			return &s.Guests[i]
		}
	}
	return nil
}

// traffic limits a query to what the page may show.
func (s *Subject) traffic(q vps.TrafficQuery) vps.TrafficQuery {
	if s.Tenant != "" {
		q.Tenant = &vps.Tenant{Name: s.Tenant, Created: s.TenantMade}
	}
	return q
}

// Guest is a guest on a page.
type Guest struct {
	ID, Name string
	// Tenant is who it belongs to; State is empty when it is not known.
	Tenant string
	State  vps.State
	// Gone tells that it was deleted, or is another tenant's by now. What it had
	// until then counts.
	Gone bool
	// Since is from when on the page may tell who called the guest: it was another
	// tenant's before. The zero time is from the beginning.
	Since time.Time
	// Domains are led to the guest, in its order.
	Domains []Domain
}

// Domain is a domain of a guest on a page.
type Domain struct {
	// Name has the port behind it when it is not for web.
	Name  string
	State vps.DomainState
	// Steps are what proves that the name is the tenant's: nil when it is proved, or
	// need not be. Found is what was there instead when it was looked last, at
	// Checked: a sentence in English, without its end, in which strangers' words are
	// escaped. Both are empty when it was not looked yet.
	Steps   *vps.ProofSteps
	Checked time.Time
	Found   string
}

// Options are what a server needs beside its backend.
type Options struct {
	// Log hears of what fails; nil discards. It never sees a key.
	Log *slog.Logger
	// Guess is asked when the caller at an address (http.Request.RemoteAddr)
	// named a key that opens nothing: how long it has to wait when there were too
	// many, or 0. Nil means that there never are.
	Guess func(remote string) time.Duration
	// Now tells the time; nil is time.Now.
	Now func() time.Time
}

// Limits of the server. Pages are small and made at once.
const (
	headerTimeout = 10 * time.Second
	replyTimeout  = 30 * time.Second
	idleTimeout   = 20 * time.Second // a page is had at once, and there are only so many connections
	maxHeader     = 16 << 10
	grace         = 3 * time.Second
)

// Server serves pages. It is safe for concurrent use.
type Server struct {
	backend Backend
	o       Options
	assets  *assets
	handler http.Handler
}

// New returns a server. It starts nothing.
func New(b Backend, o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Guess == nil {
		o.Guess = func(string) time.Duration { return 0 }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{backend: b, o: o, assets: embeddedAssets()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+vps.PagePath+"{key}", s.page)
	mux.HandleFunc("GET /assets/{name}", s.asset)
	mux.HandleFunc("GET /robots.txt", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("User-agent: *\nDisallow: /\n")) // a caller that left needs no answer
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.nothing(w, r) })
	s.handler = secured(mux)
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Serve answers on ln, which it closes, until ctx ends; requests that run have
// a few seconds to finish. It returns nil after that, and an error when the
// listener fails. Requests pass through the gates in their order first.
func (s *Server) Serve(ctx context.Context, ln net.Listener, gates ...func(http.Handler) http.Handler) error {
	var handler http.Handler = s
	for _, gate := range slices.Backward(gates) {
		handler = gate(handler)
	}
	server := &http.Server{
		Handler: secured(handler), ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: replyTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	release := context.AfterFunc(ctx, func() {
		defer close(stopped)
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if server.Shutdown(limit) != nil {
			_ = server.Close() // what is left is cut
		}
	})
	err := server.Serve(ln)
	if release() || !errors.Is(err, http.ErrServerClosed) {
		return vps.Wrap(vps.CodeInternal, err, "the pages stopped listening on %s", ln.Addr())
	}
	<-stopped
	return nil
}

// secured sets what holds for every answer: nothing of others is loaded or
// told, nobody frames a page, and no search engine keeps it.
func secured(next http.Handler) http.Handler {
	const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Robots-Tag", "noindex, nofollow, noarchive")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "private, no-store")
		next.ServeHTTP(w, r)
	})
}
