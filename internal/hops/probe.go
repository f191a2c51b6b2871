package hops

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"sublet/internal/vps"
)

// Verifier checks a chain of certificates, the server's own first, at a time, without
// its names.
type Verifier func(chain []*x509.Certificate, now time.Time) error

// SystemRoots is a Verifier by the system's roots, or by others.
func SystemRoots(roots *x509.CertPool) Verifier {
	return func(chain []*x509.Certificate, now time.Time) error {
		between := x509.NewCertPool()
		for _, c := range chain[1:] {
			between.AddCert(c)
		}
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now})
		return err
	}
}

// dial connects for as long as a probe may take.
func (t *tester) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := within(ctx)
	defer cancel()
	return t.p.Dial(ctx, "tcp", to.String())
}

// expiresSoon is how long before its end a certificate is told of.
const expiresSoon = 14 * 24 * time.Hour

// certificate shakes hands by TLS through the edge, with the name.
func (t *tester) certificate(ctx context.Context, reached, serves map[uint16]bool) {
	f := t.f
	port := f.Domain.Listen
	if f.Domain.Web() {
		port = vps.HTTPSPort
	}
	if !t.worth(vps.HopCertificate, port, f.Domain.TLSPort(), reached, serves) {
		return
	}
	chain, err := t.handshake(ctx, netip.AddrPortFrom(f.Target, port))
	if trouble := f.Certificate.Trouble(); err != nil && f.Certificate.Name != "" && trouble != "" {
		t.add(vps.HopCertificate, vps.HopFailed, "when that is mended, this command has it tried again", "%s", trouble)
		return
	}
	if err != nil {
		t.add(vps.HopCertificate, vps.HopFailed, tlsRemedy(err, f), "TLS with the name %s fails: %s", t.called(), whyTLS(err))
		return
	}
	t.judge(chain)
}

// worth tells whether the way to a port is open as far as was seen; if not, it says
// so.
func (t *tester) worth(hop vps.HopName, port, guestPort uint16, reached, serves map[uint16]bool) bool {
	f := t.f
	switch {
	case f.Header:
		t.add(hop, vps.HopUnknown, "", "this host is one of settings.edge.trusted_proxies, so that it cannot call as others do")
	case f.NotLive != "":
		t.add(hop, vps.HopUnknown, "", "not looked at, as the domain is not live")
	case f.Other[port] != "":
		t.add(hop, vps.HopUnknown, "", "not looked at, as calls on port %d go by the domain %s", port, f.Other[port])
	case !reached[port]:
		t.add(hop, vps.HopUnknown, "", "not looked at, as the edge does not take calls on port %d", port)
	case f.State != vps.StateRunning:
		t.add(hop, vps.HopUnknown, "", "not looked at, as the guest does not run")
	case !f.Domain.Terminate && !serves[guestPort]:
		t.add(hop, vps.HopUnknown, "", "not looked at, as port %d of the guest does not answer", guestPort)
	default:
		return true
	}
	return false
}

// handshake returns the certificates that a server shows.
func (t *tester) handshake(ctx context.Context, to netip.AddrPort) ([]*x509.Certificate, error) {
	ctx, cancel := within(ctx)
	defer cancel()
	conn, err := t.p.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	c := tls.Client(conn, &tls.Config{
		ServerName: t.f.Name, NextProtos: []string{"h2", "http/1.1"},
		InsecureSkipVerify: true, //nolint:gosec // what is wrong with it is told, and nothing sent
	})
	defer func() { _ = c.Close() }()
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return c.ConnectionState().PeerCertificates, nil
}

// judge says what is to be said of certificates.
func (t *tester) judge(chain []*x509.Certificate) {
	if len(chain) == 0 {
		t.add(vps.HopCertificate, vps.HopFailed, "", "the server shows no certificate")
		return
	}
	leaf, now := chain[0], t.p.Now()
	verify := t.p.Verify
	if verify == nil {
		verify = SystemRoots(nil)
	}
	names := "no name"
	if len(leaf.DNSNames) > 0 {
		shown := leaf.DNSNames[:min(len(leaf.DNSNames), 5)]
		quoted := make([]string, len(shown))
		for i, n := range shown {
			quoted[i] = printable(n)
		}
		names = strings.Join(quoted, ", ")
		if more := len(leaf.DNSNames) - len(shown); more > 0 {
			names += fmt.Sprintf(" and %d more", more)
		}
	}
	until := leaf.NotAfter.UTC().Format(time.DateOnly)
	who := "get another one in the guest"
	if t.f.Domain.Terminate {
		who = cmp.Or(t.f.Certificate.Trouble(), "see what the edge's log says of certificates")
	}
	fail := func(format string, args ...any) {
		t.add(vps.HopCertificate, vps.HopFailed, who, format, args...)
	}
	err := verify(chain, now)
	switch {
	case now.After(leaf.NotAfter):
		fail("the certificate expired on %s", until)
	case now.Before(leaf.NotBefore):
		fail("the certificate is valid from %s on, and not now; is a clock wrong?", leaf.NotBefore.UTC().Format(time.DateOnly))
	case t.f.Name != "" && leaf.VerifyHostname(t.f.Name) != nil:
		fail("the certificate is for %s, and not for %s", names, t.f.Name)
	case err != nil && slices.Equal(leaf.RawIssuer, leaf.RawSubject) && leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil:
		fail("the certificate is signed by itself, so that browsers warn of it; it is for %s, until %s", names, until)
	case err != nil && len(chain) == 1:
		fail("nobody whom this host trusts signed the certificate, or it is shown without the certificates between them: %s", issuer(leaf))
	case err != nil:
		fail("nobody whom this host trusts signed the certificate: %s", issuer(chain[len(chain)-1]))
	case leaf.NotAfter.Sub(now) < expiresSoon:
		t.add(vps.HopCertificate, vps.HopOK, "see that it is renewed", "the certificate is for %s and good, but only until %s", names, until)
	default:
		t.add(vps.HopCertificate, vps.HopOK, "", "the certificate is for %s and good until %s; %s", names, until, issuer(leaf))
	}
}

func issuer(c *x509.Certificate) string { return "its issuer is " + printable(c.Issuer.String()) }

// http asks for a page through the edge.
func (t *tester) http(ctx context.Context, reached, serves map[uint16]bool) {
	f := t.f
	if !f.Domain.Web() {
		t.add(vps.HopHTTP, vps.HopUnknown, "", "not looked at, as port %d is for TLS alone", f.Domain.Listen)
		return
	}
	if !t.worth(vps.HopHTTP, vps.HTTPPort, f.Domain.PlainPort(), reached, serves) {
		return
	}
	status, err := t.request(ctx, netip.AddrPortFrom(f.Target, vps.HTTPPort))
	switch {
	case err != nil:
		t.add(vps.HopHTTP, vps.HopFailed, "see what serves port "+fmt.Sprint(f.Domain.PlainPort())+" in the guest", "HTTP is not answered: %s", why(err))
	case status == http.StatusMisdirectedRequest:
		t.add(vps.HopHTTP, vps.HopFailed, "see what the daemon's log says of the edge", "the edge does not know the name %s", t.called())
	case status >= http.StatusInternalServerError:
		t.add(vps.HopHTTP, vps.HopFailed, "see what serves port "+fmt.Sprint(f.Domain.PlainPort())+" in the guest", "HTTP is answered with status %d", status)
	default:
		t.add(vps.HopHTTP, vps.HopOK, "", "HTTP is answered with status %d", status)
	}
}

// request returns the status of the page at "/".
func (t *tester) request(ctx context.Context, to netip.AddrPort) (int, error) {
	ctx, cancel := within(ctx)
	defer cancel()
	const maxHeader = 64 << 10
	client := &http.Client{
		Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return t.p.Dial(ctx, "tcp", to.String()) },
			DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	host := t.f.Name
	if host == "" {
		host = to.Addr().String()
		if to.Addr().Is6() {
			host = "[" + host + "]"
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("User-Agent", "sublet")
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// why says for people why a probe failed.
func why(err error) string {
	timeout, ok := errors.AsType[net.Error](err)
	switch {
	case refused(err):
		return "connections are refused"
	case ok && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return "nothing comes back"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no way to it"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the connection is cut"
	default:
		return "the connection ends before there is an answer"
	}
}

// whyTLS says why a handshake failed. The alerts are those of RFC 8446, 6.
func whyTLS(err error) string {
	const unrecognizedName, internalError = 112, 80
	// The library's own type of alerts is shown to nobody, but its text is that of
	// the one that it has for QUIC.
	alert := ""
	if o, ok := errors.AsType[*net.OpError](err); ok && o.Op == "remote error" {
		alert = o.Err.Error()
	}
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case alert == tls.AlertError(unrecognizedName).Error():
		return "the edge, or the guest, does not know the name"
	case alert == tls.AlertError(internalError).Error():
		return "the edge does not reach the guest, or the guest has a fault"
	case alert != "":
		return "the other side says " + strings.TrimPrefix(alert, "tls: ")
	case noTLS:
		return "what answers does not speak TLS"
	default:
		return why(err)
	}
}

func tlsRemedy(err error, f *Facts) string {
	if _, noTLS := errors.AsType[tls.RecordHeaderError](err); noTLS {
		return fmt.Sprintf("let port %d of the guest speak TLS, or name another one with --port", f.Domain.TLSPort())
	}
	return "see what serves the name in the guest, and what the daemon's log says of the edge"
}
