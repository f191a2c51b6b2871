// Package terminate gets certificates for domains whose TLS ends at the edge, by
// ACME (RFC 8555), and ends their TLS with them. It runs in the edge's process
// (ADR 33): certmagic keeps and renews the certificates, and this package says
// from whom, for which names, and how authorities are answered.
//
// It opens no port. Authorities are answered through the edge's own listeners,
// from a folder that all processes of the edge share, so that two of them side by
// side answer alike.
package terminate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// Options say how a Manager works.
type Options struct {
	// Dir is the folder of keys and certificates, of mode 0700 and the process's
	// own. It is made when it is not there. Processes that run at once share it.
	Dir string
	Log *slog.Logger
	// Retries are the waits after failures to get a certificate, the last one for
	// all that follow; nil means DefaultRetries.
	Retries []time.Duration
	// RenewCheck is how often certificates are looked at, 0 for 10 minutes. They
	// are renewed when a third of their time is left, or when the authority says
	// (ARI, RFC 9773), and at least five times RenewCheck before they end.
	RenewCheck time.Duration
}

// DefaultRetries stay below the five failures an hour that Let's Encrypt grants a
// name, when each try asks both ways.
func DefaultRetries() []time.Duration {
	return []time.Duration{time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 6 * time.Hour}
}

const (
	defaultRenewCheck = 10 * time.Minute
	// cleanEvery is how often what is no longer needed is removed from the folder,
	// keepExpired how long certificates stay there after their end.
	cleanEvery  = 24 * time.Hour
	keepExpired = 14 * 24 * time.Hour
	// orders bounds the certificates that are got at a time.
	orders = 16
)

// Manager keeps certificates for the names of the last Set. Its methods may be
// called at once.
type Manager struct {
	log     *slog.Logger
	zap     *zap.Logger
	storage *storage
	cache   *certmagic.Cache
	retries []time.Duration
	tls     struct{ web, plain, challenge *tls.Config }

	ctx  context.Context //nolint:containedctx // the life of what New started
	end  context.CancelFunc
	work sync.WaitGroup
	slot chan struct{}

	due chan struct{} // holds one when certificates are to be looked at at once

	names  atomic.Pointer[map[string]*name]
	config atomic.Pointer[certmagic.Config]
	acme   atomic.Pointer[edge.ACME]

	mu sync.Mutex // of Set and Close
}

var _ edge.Certificates = (*Manager)(nil)

// New returns a Manager without names. Close ends it.
func New(o Options) (*Manager, error) {
	st, err := openStorage(o.Dir)
	if err != nil {
		return nil, err
	}
	m := &Manager{log: o.Log, zap: zapLogger(o.Log), storage: st, retries: o.Retries, slot: make(chan struct{}, orders), due: make(chan struct{}, 1)}
	if len(m.retries) == 0 {
		m.retries = DefaultRetries()
	}
	if o.RenewCheck == 0 {
		o.RenewCheck = defaultRenewCheck
	}
	m.ctx, m.end = context.WithCancel(context.Background())
	m.names.Store(&map[string]*name{})
	m.cache = certmagic.NewCache(certmagic.CacheOptions{GetConfigForCert: m.configFor, RenewCheckInterval: o.RenewCheck, Logger: m.zap})
	m.makeTLS()
	m.work.Go(m.clean)
	m.work.Go(m.renew)
	return m, nil
}

// configFor tells certmagic how to care for a certificate: not at all when its
// name is gone.
func (m *Manager) configFor(c certmagic.Certificate) (*certmagic.Config, error) {
	cfg := m.config.Load()
	if cfg == nil || len(c.Names) == 0 || !m.manages(c.Names[0]) {
		return nil, errors.New("this name has no certificate any more")
	}
	return cfg, nil
}

// manages tells whether certificates are got for exactly this name.
func (m *Manager) manages(name string) bool { return (*m.names.Load())[name] != nil }

// covers tells whether a caller who names a host may get a certificate: a suffix
// stands for one label in certificates (RFC 9525, 6.3).
func (m *Manager) covers(host string) bool {
	names := *m.names.Load()
	_, parent, _ := strings.Cut(host, ".")
	return names[host] != nil || names["*."+parent] != nil
}

// Set says where certificates come from and for which names they are needed,
// canonical ones. It returns at once: what is kept in the folder is read, and what
// is not there is got, in the background. Names that are left out have no
// certificate any more, and are not renewed. What failed is tried again at once
// when anything of a changed. After Close it does nothing.
func (m *Manager) Set(a edge.ACME, wanted []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return
	}
	before := m.acme.Load()
	changed := before == nil || a != *before
	if changed {
		m.config.Store(certmagic.New(m.cache, certmagic.Config{
			Storage: m.storage, Issuers: []certmagic.Issuer{newIssuer(a, m.storage, m.log)}, Logger: m.zap, OnEvent: m.onEvent,
		}))
		m.acme.Store(&a)
	}
	old, now := *m.names.Load(), make(map[string]*name, len(wanted))
	var begin []*name
	for _, w := range wanted {
		n := old[w]
		if n == nil || changed {
			if n != nil {
				n.stop()
			}
			n = m.newName(w, n)
			begin = append(begin, n)
		}
		now[w] = n
	}
	m.names.Store(&now)
	var gone []certmagic.SubjectIssuer
	for w, n := range old {
		if now[w] == nil {
			n.stop()
			gone = append(gone, certmagic.SubjectIssuer{Subject: w})
		}
	}
	m.cache.RemoveManaged(gone)
	for _, n := range begin {
		m.work.Go(func() { m.get(n) })
	}
}

// Retry tries again at once what failed before then.
func (m *Manager) Retry(then time.Time) {
	for _, n := range *m.names.Load() {
		if s := n.status(); !s.Retry.IsZero() && s.Failed.Before(then) {
			n.hurry()
		}
	}
}

// Close stops getting and renewing certificates, and waits until nothing is under
// way. Callers are served and authorities answered on, for the connections that a
// process that is replaced still has.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return
	}
	m.end()
	m.cache.Stop()
	m.work.Wait()
}

// Status tells how it is with each name, sorted.
func (m *Manager) Status() []vps.Certificate {
	names := *m.names.Load()
	out := make([]vps.Certificate, 0, len(names))
	for _, n := range names {
		out = append(out, m.status(n))
	}
	slices.SortFunc(out, func(a, b vps.Certificate) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (m *Manager) status(n *name) vps.Certificate {
	c := n.status()
	for _, cert := range m.own(n.name) {
		if cert.Leaf != nil && cert.Leaf.NotAfter.After(c.Expires) {
			c.State, c.Expires, c.Issuer = vps.CertificateValid, cert.Leaf.NotAfter, cert.Leaf.Issuer.CommonName
		}
	}
	if !c.Expires.IsZero() && time.Now().After(c.Expires) {
		c.State = vps.CertificateFailed
	}
	return c
}

// own returns the certificates that are kept for exactly this name.
func (m *Manager) own(name string) []certmagic.Certificate {
	all := m.cache.AllMatchingCertificates(name)
	return slices.DeleteFunc(all, func(c certmagic.Certificate) bool { return !slices.Contains(c.Names, name) })
}

// makeTLS makes the configurations that all domains share. Each process has
// tickets of its own: whoever comes back to another one makes a whole handshake.
func (m *Manager) makeTLS() {
	m.tls.challenge = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{edge.ChallengeProtocol}, GetCertificate: m.challengeCertificate}
	choose := func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Equal(h.SupportedProtos, m.tls.challenge.NextProtos) {
			return m.tls.challenge, nil
		}
		return nil, nil //nolint:nilnil // that is how crypto/tls is told to stay with what it has
	}
	m.tls.plain = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: m.certificate, GetConfigForClient: choose}
	m.tls.web = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: m.certificate, GetConfigForClient: choose, NextProtos: []string{"h2", "http/1.1"}}
}

// TLSConfig implements edge.Certificates.
func (m *Manager) TLSConfig(d *vps.Domain) *tls.Config {
	if d.Web() {
		return m.tls.web
	}
	return m.tls.plain
}

// certificate chooses one for a caller. crypto/tls makes the alert
// unrecognized_name of nil, and internal_error of an error.
func (m *Manager) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host := strings.ToLower(hello.ServerName)
	if !m.covers(host) {
		return nil, nil //nolint:nilnil // see above
	}
	choices := m.cache.AllMatchingCertificates(host)
	if len(choices) == 0 {
		return nil, fmt.Errorf("there is no certificate for %s yet", host)
	}
	c, err := certmagic.DefaultCertificateSelector(hello, choices)
	return &c.Certificate, err
}

// renew has certmagic look at the certificates when one was read that is due
// already; otherwise it does so by itself.
func (m *Manager) renew() {
	for {
		select {
		case <-m.due:
			if err := m.cache.RenewManagedCertificates(m.ctx); err != nil {
				m.log.Warn("certificates cannot be renewed", "error", err)
			}
		case <-m.ctx.Done():
			return
		}
	}
}

// clean removes what nobody needs from the folder, now and then.
func (m *Manager) clean() {
	tick := time.NewTicker(cleanEvery)
	defer tick.Stop()
	for {
		err := certmagic.CleanStorage(m.ctx, m.storage, certmagic.CleanStorageOptions{
			Logger: m.zap, Interval: cleanEvery / 2, OCSPStaples: true, ExpiredCerts: true, ExpiredCertGracePeriod: keepExpired,
		})
		if err != nil && m.ctx.Err() == nil {
			m.log.Warn("old certificates cannot be removed", "error", err)
		}
		select {
		case <-tick.C:
		case <-m.ctx.Done():
			return
		}
	}
}
