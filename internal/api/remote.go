package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
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
		return conn, handshake(r.Address, err)
	})
	client.remote = true
	client.http.Transport = withToken{client.http.Transport, "Bearer " + strings.TrimSpace(r.Token)}
	return client, nil
}

// handshake explains why there is no connection that the token may be sent on;
// nil stays nil.
func handshake(address string, err error) error {
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return vps.Wrap(vps.CodeDenied, err, "the certificate of %s has expired or is not valid yet, so nothing was sent; look at the clocks of both machines, and renew it", address)
	}
	// A daemon's own certificate is for no name that anybody calls.
	if e, other := errors.AsType[x509.HostnameError](err); other && !isOwn(e.Certificate) {
		return vps.Wrap(vps.CodeDenied, err, "the certificate of %s is for another name, so nothing was sent; call the daemon by a name that is in its certificate", address)
	}
	if _, unknown := errors.AsType[*tls.CertificateVerificationError](err); unknown {
		return vps.Wrap(vps.CodeDenied, err, "%s has a certificate that is not trusted, so nothing was sent; give the daemon's own certificate, door/cert.pem in its state folder, as the authority", address)
	}
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain {
		return vps.Wrap(vps.CodeUnavailable, err, "what listens on %s does not speak TLS; is it the address of `serve --listen`?", address)
	}
	return err
}

// lostRemote explains why a daemon elsewhere did not answer.
func (c *Client) lostRemote(err error) error {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return vps.Wrap(vps.CodeUnavailable, err, "the name in %s is not known; write the host's name or address", c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return vps.Wrap(vps.CodeUnavailable, err, "nobody listens on %s; the daemon there needs `sublet serve --listen`", c.socket)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return vps.Wrap(vps.CodeUnavailable, err, "%s cannot be reached; is the host up, and the port open in its firewall?", c.socket)
	default:
		return vps.Wrap(vps.CodeUnavailable, err, "the daemon on %s ended before it answered; whether anything was changed is not known, so look before you try again", c.socket)
	}
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
	if err != nil || !isOwn(cert) {
		return ""
	}
	return certificateName
}

// isOwn tells whether a daemon made the certificate itself.
func isOwn(cert *x509.Certificate) bool {
	return len(cert.DNSNames) == 1 && cert.DNSNames[0] == certificateName
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
