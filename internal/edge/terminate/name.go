package terminate

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"sublet/internal/vps"
)

// name is a name that a certificate is needed for.
type name struct {
	name string
	ctx  context.Context //nolint:containedctx // until the name is gone or begun anew
	stop context.CancelFunc
	now  chan struct{} // holds one to try again at once

	mu   sync.Mutex
	last vps.Certificate // without what the certificate itself says
}

// newName makes a name; before is the same one until now, nil for none.
func (m *Manager) newName(w string, before *name) *name {
	n := &name{name: w, now: make(chan struct{}, 1), last: vps.Certificate{Name: w, State: vps.CertificateGetting}}
	if before != nil {
		n.last = before.status()
		n.last.Retry = time.Time{}
	}
	n.ctx, n.stop = context.WithCancel(m.ctx)
	return n
}

func (n *name) status() vps.Certificate {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last
}

func (n *name) hurry() {
	select {
	case n.now <- struct{}{}:
	default:
	}
}

// failed keeps what went wrong; retry is when it is tried again, zero where that is
// certmagic's to say.
func (n *name) failed(sentence string, retry time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last.State, n.last.Error, n.last.Failed, n.last.Retry = vps.CertificateFailed, sentence, time.Now(), retry
}

func (n *name) fine() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = vps.Certificate{Name: n.name, State: vps.CertificateGetting}
}

// get reads a name's certificate from the folder, or gets one, until that is
// done or the name is gone. From then on certmagic renews it.
func (m *Manager) get(n *name) {
	attempts := 0
	ctx := context.WithValue(n.ctx, certmagic.AttemptsCtxKey, &attempts)
	for {
		err := m.try(ctx, n.name)
		select {
		case <-n.now: // that was this one
		default:
		}
		switch {
		case n.ctx.Err() != nil:
			return
		case err == nil:
			n.fine()
			return
		}
		wait := m.retries[min(attempts, len(m.retries)-1)]
		attempts++
		sentence := m.sentence(n.name, err)
		n.failed(sentence, time.Now().Add(wait))
		m.log.Warn("no certificate was got", "name", n.name, "why", sentence, "error", err, "retry_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-n.now:
			timer.Stop()
		case <-n.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// try reads or gets a certificate once, and lets it be served.
func (m *Manager) try(ctx context.Context, name string) error {
	cfg := m.config.Load()
	cert, err := cfg.CacheManagedCertificate(ctx, name)
	if err != nil {
		if cert, err = m.obtain(ctx, cfg, name, errors.Is(err, fs.ErrNotExist)); err != nil {
			return err
		}
		m.log.InfoContext(ctx, "a certificate was got", "name", name, "issuer", cert.Leaf.Issuer.CommonName, "expires", cert.Leaf.NotAfter)
	}
	// One of an authority that was asked before has served until now.
	var old []string
	for _, c := range m.own(name) {
		if c.Hash() != cert.Hash() {
			old = append(old, c.Hash())
		}
	}
	m.cache.Remove(old)
	if ctx.Err() != nil { // Set did not see it
		m.forget(name)
		return ctx.Err()
	}
	if cert.NeedsRenewal(cfg) {
		select {
		case m.due <- struct{}{}:
		default:
		}
	}
	return nil
}

func (m *Manager) forget(name string) {
	if !m.manages(name) {
		m.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
	}
}

// obtain gets a certificate, a new one also when what is in the folder cannot be
// used.
func (m *Manager) obtain(ctx context.Context, cfg *certmagic.Config, name string, missing bool) (certmagic.Certificate, error) {
	select {
	case m.slot <- struct{}{}:
		defer func() { <-m.slot }()
	case <-ctx.Done():
		return certmagic.Certificate{}, ctx.Err()
	}
	var err error
	if missing {
		err = cfg.ObtainCertSync(ctx, name)
	} else {
		err = cfg.RenewCertSync(ctx, name, true)
	}
	if err != nil {
		return certmagic.Certificate{}, err
	}
	return cfg.CacheManagedCertificate(ctx, name)
}

// onEvent hears from certmagic what comes of renewals; what comes of the first
// certificate, get knows.
func (m *Manager) onEvent(ctx context.Context, event string, data map[string]any) error {
	subject, _ := data["identifier"].(string)
	n := (*m.names.Load())[subject]
	renewal, _ := data["renewal"].(bool)
	switch {
	case event == "cert_obtaining" && n == nil:
		return errors.New("the name is gone")
	case n == nil || !renewal:
	case event == "cert_failed":
		err, _ := data["error"].(error)
		sentence := m.sentence(subject, err)
		n.failed(sentence, time.Time{})
		m.log.WarnContext(ctx, "a certificate was not renewed", "name", subject, "why", sentence, "error", err)
	case event == "cert_obtained":
		n.fine()
		m.log.InfoContext(ctx, "a certificate was renewed", "name", subject)
	}
	return nil
}
