package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
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
//
// An address, token or authority that cannot be one is vps.CodeInvalid. The
// calls are vps.CodeUnavailable when nobody answers, and vps.CodeDenied when
// the certificate is not the right one or the daemon does not take the token.
func NewRemoteClient(r Remote) (*Client, error) {
	if err := validAddress(r.Address); err != nil {
		return nil, err
	}
	token := strings.TrimSpace(r.Token)
	if token == "" {
		return nil, vps.Invalid("", "a daemon on the network asks for a token; its owner finds it on the host, in door/token of the state folder")
	}
	if strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return nil, vps.Invalid("", "the token has a blank or another character that no token has; give the line of the daemon's file as it stands there")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
	if len(r.Authority) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(r.Authority) {
			return nil, vps.Invalid("", "there is no certificate in the given authority; it is the daemon's door/cert.pem, or its authority's, in PEM")
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
	client.http.Transport = withToken{client.http.Transport, "Bearer " + token, r.Address}
	return client, nil
}

// validAddress checks what is no HOST:PORT before it is taken for a name that
// nobody knows.
func validAddress(text string) error {
	const example = "vps1.example.org:8443"
	if _, rest, isURL := strings.Cut(text, "://"); isURL {
		return vps.Invalid("", "%q is a URL; write HOST:PORT alone, for example %s (it is always TLS)", text, cmp.Or(strings.TrimRight(rest, "/"), example))
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" || strings.ContainsFunc(host, func(c rune) bool { return c <= ' ' || strings.ContainsRune("/@?#", c) }) {
		return vps.Invalid("", "%q is not a daemon's address; write HOST:PORT, for example %s or [2001:db8::5]:8443", text, example)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return vps.Invalid("", "%q in %q is not a port; write the number behind the last colon of `serve --listen`, for example %s", port, text, example)
	}
	return nil
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
	if err == nil || isDial(err) || isOver(err) {
		return err // lostRemote tells
	}
	return vps.Wrap(vps.CodeUnavailable, err, "what listens on %s ended the handshake, so nothing was sent; is it the address of `serve --listen`, and of a sublet that speaks TLS 1.3?", address)
}

// isOver tells whether the time was over.
func isOver(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.Canceled)
}

// lostRemote explains why a daemon elsewhere did not answer.
func (c *Client) lostRemote(err error) error {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && !dns.IsNotFound:
		return vps.Wrap(vps.CodeUnavailable, err, "the name in %s cannot be looked up, as no name server answers; write the host's address, or look at this machine's network", c.socket)
	case errors.As(err, &dns):
		return vps.Wrap(vps.CodeUnavailable, err, "the name in %s is not known; write the host's name or address", c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return vps.Wrap(vps.CodeUnavailable, err, "nobody listens on %s; the daemon there needs `sublet serve --listen`", c.socket)
	case isOver(err), isDial(err):
		return vps.Wrap(vps.CodeUnavailable, err, "%s cannot be reached; is the host up, and the port open in its firewall?", c.socket)
	default:
		return vps.Wrap(vps.CodeUnavailable, err, "the daemon on %s ended before it answered; whether anything was changed is not known, so look before you try again", c.socket)
	}
}

// isDial tells whether no connection came about.
func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
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

// withToken adds a token to every request, and tells when it was in vain.
type withToken struct {
	http.RoundTripper
	header, address string
}

func (t withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", t.header)
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		closeQuietly(resp.Body)
		return nil, vps.Errorf(vps.CodeDenied, "the daemon on %s does not take this token; its owner finds those that it takes on its host, in door/token of the state folder unless `serve --tokens` says otherwise", t.address)
	}
	return resp, err
}

// CloseIdleConnections lets http.Client close what lies below.
func (t withToken) CloseIdleConnections() {
	if c, ok := t.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
