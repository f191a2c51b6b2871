package terminate

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"sublet/internal/edge"
)

// httpChallengePath is where an authority asks (RFC 8555, 8.3).
const httpChallengePath = "/.well-known/acme-challenge/"

// stored is a solver that opens no port: it leaves the challenge in the folder
// that all processes of the edge share, and whichever the authority reaches
// answers from there.
type stored struct{ storage certmagic.Storage }

// Present implements acmez.Solver.
func (s stored) Present(ctx context.Context, c acme.Challenge) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.storage.Store(ctx, challengeKey(c.Type, c.Identifier.Value), b)
}

// CleanUp implements acmez.Solver.
func (s stored) CleanUp(ctx context.Context, c acme.Challenge) error {
	return s.storage.Delete(context.WithoutCancel(ctx), challengeKey(c.Type, c.Identifier.Value))
}

func challengeKey(kind, name string) string {
	return "challenges/" + kind + "/" + certmagic.StorageKeys.Safe(name) + ".json"
}

// challenge returns the one that waits for an answer for a name, ok false for none.
func (m *Manager) challenge(ctx context.Context, kind, name string) (c acme.Challenge, ok bool) {
	if !m.manages(name) { // what callers say never becomes a path
		return c, false
	}
	b, err := m.storage.Load(ctx, challengeKey(kind, name))
	if err != nil {
		return c, false
	}
	return c, json.Unmarshal(b, &c) == nil && c.Identifier.Value == name
}

// Challenged implements edge.Certificates.
func (m *Manager) Challenged(name string, alpn []string) bool {
	if len(alpn) != 1 || alpn[0] != edge.ChallengeProtocol { // RFC 8737, 3
		return false
	}
	_, ok := m.challenge(context.Background(), acme.ChallengeTypeTLSALPN01, strings.ToLower(name))
	return ok
}

// challengeCertificate answers a challenge in a handshake.
func (m *Manager) challengeCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, ok := m.challenge(hello.Context(), acme.ChallengeTypeTLSALPN01, strings.ToLower(hello.ServerName))
	if !ok {
		return nil, errors.New("no authority is to ask for " + hello.ServerName)
	}
	cert, err := acmez.TLSALPN01ChallengeCert(c)
	if err != nil {
		return nil, fmt.Errorf("challenge of %s: %w", hello.ServerName, err)
	}
	m.log.DebugContext(hello.Context(), "an authority was answered by TLS", "name", c.Identifier.Value)
	return cert, nil
}

// HTTPChallenge implements edge.Certificates.
func (m *Manager) HTTPChallenge(w http.ResponseWriter, r *http.Request) bool {
	token, ok := strings.CutPrefix(r.URL.Path, httpChallengePath)
	if !ok || r.Method != http.MethodGet {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	c, ok := m.challenge(r.Context(), acme.ChallengeTypeHTTP01, strings.TrimSuffix(strings.ToLower(host), "."))
	if !ok || subtle.ConstantTimeCompare([]byte(token), []byte(c.Token)) == 0 {
		return false
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, c.KeyAuthorization)
	m.log.DebugContext(r.Context(), "an authority was answered by HTTP", "name", c.Identifier.Value)
	return true
}
