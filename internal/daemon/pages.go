package daemon

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"sublet/internal/api"
	"sublet/internal/door"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
	"sublet/internal/web"
)

// PagesConfig says where pages about traffic are served.
type PagesConfig struct {
	// Listen is a TCP address; empty for no pages.
	Listen string
	// URL is how the outside reaches pages, where something stands in front of
	// them, as "https://usage.example.com"; empty means by Listen.
	URL string
	// Cert and Key are PEM files for TLS, read again when they change; both or
	// none, and then pages are served without TLS.
	Cert, Key string
}

// maxPageCallers bounds the open connections to pages.
const maxPageCallers = 256

// listen opens the port of pages; it returns nil when there is to be none. ctx
// bounds the opening only.
func (c PagesConfig) listen(ctx context.Context) (net.Listener, error) {
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, vps.Invalid("pages-url", "%q is not how pages can be reached; write for example https://usage.example.com", c.URL)
		}
	}
	if (c.Cert == "") != (c.Key == "") {
		return nil, vps.Invalid("pages-tls-cert", "a certificate and its key belong together; give both files or none")
	}
	if c.Listen == "" {
		return nil, nil
	}
	var certificate *door.Certificate
	if c.Cert != "" {
		var err error
		if certificate, err = door.OpenCertificate(c.Cert, c.Key); err != nil {
			return nil, err
		}
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "pages cannot be served on %q; write for example 127.0.0.1:8444 or [::]:8444, and choose a port that is free", c.Listen)
	}
	listener = netutil.LimitListener(listener, maxPageCallers)
	if certificate != nil {
		listener = tls.NewListener(listener, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: certificate.Get})
	}
	return listener, nil
}

// servePages serves until ctx ends. When there are to be no pages it does
// nothing.
func (p *parts) servePages(ctx context.Context) error {
	at, err := p.config.Pages.listen(ctx)
	if at == nil {
		return err
	}
	p.log.InfoContext(ctx, "pages are served", "address", at.Addr().String(), "tls", p.config.Pages.Cert != "")
	if public, err := netip.ParseAddrPort(at.Addr().String()); err == nil && p.config.Pages.Cert == "" && !public.Addr().IsLoopback() {
		p.log.WarnContext(ctx, "pages are served without TLS, so who listens on the way learns their addresses; put them behind a proxy with TLS, or give --pages-tls-cert and --pages-tls-key")
	}
	guesses := door.NewGuesses()
	week := &recent{db: p.db}
	subjects := pages{
		backend: backend{p}, DB: p.db, host: p.quotas.host, history: &unchanged{db: p.db},
		uses:   func(ctx context.Context) ([]vps.QuotaUse, error) { return backend{p}.quotaUses(ctx, week.traffic) },
		status: func() map[string]vps.GuestStatus { s, _ := p.loop.Snapshot(); return s.Status },
	}
	server := web.New(subjects, web.Options{Log: p.log, Guess: guesses.Wait})
	return server.Serve(ctx, at, door.Limit)
}

// pages is what pages are about: links and the ledger, and what the loop knows.
type pages struct {
	backend backend
	*sqlite.DB
	host    func(context.Context) (vps.Host, error)
	history *unchanged
	uses    func(context.Context) ([]vps.QuotaUse, error)
	status  func() map[string]vps.GuestStatus
}

// Page implements web.Backend.
func (p pages) Page(ctx context.Context, key string) (web.Subject, error) {
	link, err := p.PageLink(ctx, vps.HashPageKey(key))
	if err != nil {
		return web.Subject{}, err
	}
	host, err := p.host(ctx)
	if err != nil {
		return web.Subject{}, err
	}
	if !link.Opens(&host) {
		return web.Subject{}, vps.Errorf(vps.CodeNotFound, "the tenant of the link is gone")
	}
	status := p.status()
	s := web.Subject{Tenant: link.Tenant, TenantMade: link.TenantCreated, Zone: hostZone(&host)}
	e := &host.Settings.Edge
	s.Logged = e.AccessLog != vps.AccessOff && !e.Disabled
	if link.Tenant == "" {
		if s.Host, err = os.Hostname(); err != nil {
			return web.Subject{}, vps.Wrap(vps.CodeInternal, err, "the host's name cannot be read")
		}
	}
	domains := p.backend.viewDomains(&host, status)
	for i := range host.Guests {
		g := &host.Guests[i]
		if link.Tenant != "" && g.Spec.Tenant != link.Tenant {
			continue
		}
		shown := web.Guest{ID: g.ID, Name: g.Spec.Name, Tenant: g.Spec.Tenant, State: status[g.ID].State, Domains: pageDomains(domains, g)}
		if link.Tenant != "" {
			shown.Since = g.TenantSince
		}
		s.Guests = append(s.Guests, shown)
	}
	return s, nil
}

// pageDomains are those of a guest, as its tenant may see them: what the owner is
// told of their state names others' guests.
func pageDomains(v *domainView, g *vps.Guest) []web.Domain {
	if g.Deleting {
		return nil
	}
	list := make([]web.Domain, 0, len(g.Spec.Domains))
	for i := range g.Spec.Domains {
		d := &g.Spec.Domains[i]
		shown := web.Domain{Name: d.String()}
		p := v.proofOf(g, d)
		shown.State, _ = v.state(g, d, p)
		if p != nil && p.State() != vps.DomainLive {
			shown.Steps, shown.Checked, shown.Found = &p.steps, p.Checked, p.Message
		}
		list = append(list, shown)
	}
	return list
}

// Traffic implements web.Backend.
func (p pages) Traffic(ctx context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error) {
	return p.history.traffic(ctx, q)
}

// QuotaUses implements web.Backend.
func (p pages) QuotaUses(ctx context.Context) ([]vps.QuotaUse, error) { return p.uses(ctx) }

// PageLinks implements api.PageLinks. Links of tenants who are gone are none.
func (b backend) PageLinks(ctx context.Context) ([]vps.PageLink, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	all, err := b.db.PageLinks(ctx)
	var links []vps.PageLink
	for _, l := range all {
		if l.Opens(&host) {
			links = append(links, l)
		}
	}
	return links, err
}

// CreatePageLink implements api.PageLinks.
func (b backend) CreatePageLink(ctx context.Context, c api.CreatePageLink) (api.CreatedPageLink, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return api.CreatedPageLink{}, err
	}
	link := vps.PageLink{Tenant: c.Tenant, Note: c.Note, Created: time.Now().UTC().Truncate(time.Second)}
	if !c.All {
		t := host.Tenant(c.Tenant)
		if t == nil {
			return api.CreatedPageLink{}, vps.NoTenant(c.Tenant)
		}
		link.TenantCreated = t.Created
	}
	if err := b.sweepPageLinks(ctx, &host); err != nil {
		return api.CreatedPageLink{}, err
	}
	key := vps.NewPageKey()
	if link, err = b.db.AddPageLink(ctx, link, vps.HashPageKey(key)); err != nil {
		return api.CreatedPageLink{}, err
	}
	made := api.CreatedPageLink{Schema: api.SchemaVersion, PageLink: link, Address: b.config.Pages.address(b.publicAddress(ctx, host.Settings)) + vps.PagePath + key}
	switch {
	case b.config.Pages.Listen == "":
		made.Warnings = append(made.Warnings, "the daemon serves no pages; start it with --pages, for example --pages 127.0.0.1:8444 (SUBLET_PAGES in /etc/default/sublet)")
	case strings.HasPrefix(made.Address, "/"):
		made.Warnings = append(made.Warnings, "it is not known how pages are reached, so the link is printed without the host; start the daemon with --pages-url, for example --pages-url https://usage.example.com (SUBLET_PAGES_URL)")
	}
	return made, nil
}

// sweepPageLinks drops the links of tenants who are gone.
func (b backend) sweepPageLinks(ctx context.Context, host *vps.Host) error {
	links, err := b.db.PageLinks(ctx)
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Opens(host) {
			continue
		}
		if err := b.db.DeletePageLink(ctx, l.ID); err != nil && vps.ErrorCode(err) != vps.CodeNotFound {
			return err
		}
	}
	return nil
}

// RevokePageLink implements api.PageLinks.
func (b backend) RevokePageLink(ctx context.Context, id int64) error {
	return b.db.DeletePageLink(ctx, id)
}

// address is how the outside reaches pages, without a path; empty when that is
// not known. public is the host's own address, or not valid.
func (c PagesConfig) address(public netip.Addr) string {
	if c.URL != "" {
		return strings.TrimRight(c.URL, "/")
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return ""
	}
	if at, err := netip.ParseAddr(host); host == "" || err == nil && at.IsUnspecified() {
		if !public.IsValid() {
			return ""
		}
		host = public.String()
	}
	scheme, usual := "http", "80"
	if c.Cert != "" {
		scheme, usual = "https", "443"
	}
	if port == usual {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		return scheme + "://" + host
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
