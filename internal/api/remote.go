package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"sublet/internal/vps"
)

// Remote says how to reach a daemon over the network (`serve --listen`).
type Remote struct {
	// Address is HOST:PORT.
	Address string
	// Token lets the caller in.
	Token string
	// Authority is the certificate, in PEM, that the daemon's is checked
	// against: the one the daemon made itself, or that of its authority. Empty
	// means the authorities that this system trusts.
	Authority []byte
}

// dialTimeout bounds connecting and the handshake.
const dialTimeout = 15 * time.Second

// NewRemoteClient returns a client of a daemon elsewhere. The token is sent
// only to who has the right certificate. Nothing is dialled before the first
// call.
func NewRemoteClient(r Remote) (*Client, error) {
	if _, _, err := net.SplitHostPort(r.Address); err != nil {
		return nil, vps.Invalid("host", "%q is not a daemon's address; write HOST:PORT", r.Address)
	}
	if strings.TrimSpace(r.Token) == "" {
		return nil, vps.Invalid("token", "a daemon on the network asks for a token; its owner finds it on the host in /var/lib/sublet/door/token")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
	if len(r.Authority) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(r.Authority) {
			return nil, vps.Invalid("ca", "there is no certificate in the given file; it is the daemon's door/cert.pem, or its authority's")
		}
		config.ServerName = ownName(r.Authority)
	}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: config}
	client := newClient(r.Address, func(ctx context.Context, _, _ string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		conn, err := dialer.DialContext(ctx, "tcp", r.Address)
		if _, unknown := errors.AsType[*tls.CertificateVerificationError](err); unknown {
			return nil, vps.Wrap(vps.CodeDenied, err, "%s has a certificate that is not trusted, so nothing was sent; give the daemon's own certificate, door/cert.pem on its host, as the authority", r.Address)
		}
		return conn, err
	})
	client.http.Transport = withToken{client.http.Transport, "Bearer " + strings.TrimSpace(r.Token)}
	return client, nil
}

// ownName returns the name in a certificate that the daemon made itself,
// which does not hold its addresses; "" for other certificates, which are
// checked for the host that was dialled.
func ownName(authority []byte) string {
	block, _ := pem.Decode(authority)
	if block == nil {
		return ""
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(cert.DNSNames) != 1 || cert.DNSNames[0] != certificateName {
		return ""
	}
	return certificateName
}

// certificateName is the name in certificates that the daemon makes (package
// door).
const certificateName = "sublet.internal"

// withToken adds a token to every request.
type withToken struct {
	http.RoundTripper
	header string
}

func (t withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", t.header)
	return t.RoundTripper.RoundTrip(r)
}

// CloseIdleConnections lets http.Client close what lies below.
func (t withToken) CloseIdleConnections() {
	if c, ok := t.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
