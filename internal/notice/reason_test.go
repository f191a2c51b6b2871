package notice

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sublet/internal/vps"
)

// nobodyListens returns an address of this machine where nobody does: it is
// taken by a socket that does not, so that nobody else comes to listen there.
func nobodyListens(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(bound.(*syscall.SockaddrInet4).Port))
}

// nobodyAnswers returns an address of this machine where connections are taken,
// and nothing comes of them.
func nobodyAnswers(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String() // the kernel takes them
}

// TestNobodyAnswers: a port that takes the connection and does not speak TLS.
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	const late = "the server took the connection, and did not answer in time"
	address := nobodyAnswers(t)
	h := hostWith("https://"+address, "", true)
	h.Settings.Notices.To, h.Settings.Notices.From, h.Settings.Notices.Server, h.Settings.Notices.TLS = "owner@example.org", "host@example.org", address, vps.MailTLS
	s := senderFor(newOutbox(), h, nil)
	s.handshake = time.Millisecond
	failures := s.Test(t.Context(), &h, vps.Notice{Kind: "test", Time: time.Now(), Message: "x"}, []vps.NoticeTo{ownerHook, ownerMail})
	for i, want := range []string{late, late + "; use `sublet host set --smtp-tls starttls` for a server that begins in the clear, as on port 587"} {
		if got := vps.ErrorMessage(failures[i]); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestExplainCall: what people read when a call fails, however it failed.
func TestExplainCall(t *testing.T) {
	t.Parallel()
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	to := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 443}
	for want, err := range map[string]error{
		"the name hook.example could not be resolved in time: this host's name server does not answer": dial(&net.DNSError{Name: "hook.example", Server: "192.0.2.53:53", Err: "i/o timeout", IsTimeout: true, UnwrapErr: context.DeadlineExceeded}),
		"there is no name hook.example, or it has no address":                                          dial(&net.DNSError{Name: "hook.example", Err: "no such host", IsNotFound: true}),
		"the name hook.example could not be resolved: server misbehaving":                              dial(&net.DNSError{Name: "hook.example", Err: "server misbehaving"}),
		"203.0.113.7:443 did not take the connection within 10s":                                       &net.OpError{Op: "dial", Net: "tcp", Addr: to, Err: os.ErrDeadlineExceeded},
		"203.0.113.7:443 refuses the connection: nothing listens there":                                &net.OpError{Op: "dial", Net: "tcp", Addr: to, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
		"this host has no way to 203.0.113.7:443":                                                      &net.OpError{Op: "dial", Net: "tcp", Addr: to, Err: os.NewSyscallError("connect", syscall.ENETUNREACH)},
		"it leads elsewhere":          dial(vps.Errorf(vps.CodeDenied, "it leads elsewhere")),
		"something that nobody knows": errors.New("something that nobody knows"),
	} {
		if got := reason(explainCall(t.Context(), err)); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	late, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	if got := reason(explainCall(late, late.Err())); got != "there was no answer within 20s" {
		t.Errorf("too late: %q", got)
	}
}

// TestCallsFail calls what is no webhook.
func TestCallsFail(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	mail, _ := startSMTP(t, &smtpServer{})
	for address, want := range map[string]string{
		"http://" + nobodyListens(t) + "/":             "refuses the connection: nothing listens there",
		strings.Replace(plain.URL, "http", "https", 1): "the server does not speak TLS on this port; write http:// or name another one",
		secure.URL: "its certificate is not trusted: certificate signed by unknown authority",
		(&url.URL{Scheme: "http", Host: mail.Addr().String()}).String(): "what answers there is no web server",
	} {
		h := hostWith(address, "", true)
		failures := senderFor(newOutbox(), h, nil).Test(t.Context(), &h, vps.Notice{Kind: "test", Time: time.Now(), Message: "x"}, []vps.NoticeTo{ownerHook})
		if got := vps.ErrorMessage(failures[0]); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}

// TestMailsFail sends mail through what does not take it.
func TestMailsFail(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		server    *smtpServer // nil for none
		mode      vps.MailTLSMode
		login, to string
		want      string
	}{
		"nobody is there": {nil, vps.MailStartTLS, "", "owner@example.org", "refuses the connection: nothing listens there"},
		"no STARTTLS":     {&smtpServer{}, vps.MailStartTLS, "", "owner@example.org", "the mail server does not offer STARTTLS; use `sublet host set --smtp-tls tls` for one"},
		"no TLS":          {&smtpServer{starts: true}, vps.MailTLS, "", "owner@example.org", "the server does not speak TLS on this port; use `sublet host set --smtp-tls starttls`"},
		"wrong password":  {&smtpServer{starts: true, login: "user\x00right"}, vps.MailStartTLS, "user\x00wrong", "owner@example.org", "the mail server does not accept user and password: 535 5.7.8 wrong"},
		"no login":        {&smtpServer{starts: true}, vps.MailStartTLS, "user\x00wrong", "owner@example.org", "the mail server does not let anybody log in this way"},
		"no such box":     {&smtpServer{starts: true}, vps.MailStartTLS, "", "nobody@example.org", "the mail server does not take mail for nobody@example.org: 550 5.1.1 nobody is here"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener := x.server
			if listener == nil {
				listener = &smtpServer{}
			}
			server, certificate := startSMTP(t, listener)
			h := mailHost(t, server, x.mode, x.login)
			h.Settings.Notices.To = x.to
			if x.server == nil {
				h.Settings.Notices.Server = nobodyListens(t)
			}
			failures := senderFor(newOutbox(), h, rootsOf(certificate)).Test(t.Context(), &h, vps.Notice{Kind: "test", Time: time.Now(), Message: "x"}, []vps.NoticeTo{ownerMail})
			if got := vps.ErrorMessage(failures[0]); !strings.Contains(got, x.want) || strings.Contains(got, "affected") {
				t.Errorf("%q, want %q", got, x.want)
			}
		})
	}
}
