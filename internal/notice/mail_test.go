package notice

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

// smtpServer is a small SMTP server (RFC 5321) for one test. It takes mail for
// everybody but nobody@.
type smtpServer struct {
	net.Listener
	secure           *tls.Config
	implicit, starts bool   // TLS from the first byte on, or STARTTLS
	login            string // what AUTH PLAIN has to carry; empty for no AUTH
	silent           bool   // it takes connections and says nothing

	mu    sync.Mutex
	mails []string // envelope and content
	conns []net.Conn
}

// startSMTP serves until the test ends. Its certificate is that of an
// httptest server, which Go's own pool of them vouches for.
func startSMTP(t *testing.T, s *smtpServer) (*smtpServer, *httptest.Server) {
	t.Helper()
	certificate := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(certificate.Close)
	var err error
	if s.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	s.secure = &tls.Config{Certificates: certificate.TLS.Certificates, MinVersion: tls.VersionTLS12}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := s.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			work.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = s.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			_ = c.Close()
		}
		s.mu.Unlock()
		work.Wait()
	})
	return s, certificate
}

func (s *smtpServer) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if s.silent {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	encrypted := s.implicit
	if s.implicit {
		conn = tls.Server(conn, s.secure)
	}
	in := bufio.NewReader(conn)
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(conn, format+"\r\n", args...) }
	say("220 test ESMTP")
	envelope := ""
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb := strings.ToUpper(strings.Fields(line + " x")[0])
		switch {
		case verb == "EHLO":
			say("250-test")
			if s.starts && !encrypted {
				say("250-STARTTLS")
			}
			if s.login != "" && encrypted {
				say("250-AUTH PLAIN")
			}
			say("250 8BITMIME")
		case verb == "STARTTLS" && s.starts:
			say("220 go on")
			conn, encrypted = tls.Server(conn, s.secure), true
			in = bufio.NewReader(conn)
		case verb == "AUTH":
			if want := base64.StdEncoding.EncodeToString([]byte("\x00" + s.login)); line != "AUTH PLAIN "+want {
				say("535 5.7.8 wrong")
				continue
			}
			say("235 welcome")
		case verb == "RCPT" && strings.Contains(line, "nobody@"):
			say("550 5.1.1 nobody is here")
		case verb == "MAIL" || verb == "RCPT":
			envelope += line + "\n"
			say("250 fine")
		case verb == "DATA":
			say("354 go on")
			content := ""
			for {
				l, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if l == ".\r\n" {
					break
				}
				content += strings.TrimPrefix(l, ".")
			}
			s.mu.Lock()
			s.mails = append(s.mails, envelope+"\n"+content)
			s.mu.Unlock()
			say("250 taken")
		case verb == "QUIT":
			say("221 bye")
			return
		default:
			say("250 fine")
		}
	}
}

var ownerMail = vps.NoticeTo{Channel: vps.ChannelMail}

// mailHost is a host that sends mail through a server.
func mailHost(t *testing.T, s *smtpServer, mode vps.MailTLSMode, login string) vps.Host {
	t.Helper()
	h := hostWith("", "", false)
	n := &h.Settings.Notices
	n.To, n.From, n.Server, n.TLS = "owner@example.org", "sublet@example.org", s.Addr().String(), mode
	if user, password, ok := strings.Cut(login, "\x00"); ok {
		n.User, n.PasswordFile = user, filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(n.PasswordFile, []byte(password+"\nsecond line\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.Tenants[0].Email = "bob@example.org"
	if err := h.Settings.Validate(); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestMail(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		server *smtpServer
		mode   vps.MailTLSMode
		login  string
	}{
		"STARTTLS":      {&smtpServer{starts: true, login: "user\x00pass word"}, vps.MailStartTLS, "user\x00pass word"},
		"as by default": {&smtpServer{starts: true}, "", ""},
		"TLS":           {&smtpServer{implicit: true, login: "u\x00p"}, vps.MailTLS, "u\x00p"},
		"without TLS":   {&smtpServer{}, vps.MailNoTLS, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, certificate := startSMTP(t, x.server)
			w := waiting("msg_1", ownerMail)
			w.Message = "75 % of it – 出流量 – are used"
			o := newOutbox(w, waiting("msg_2", vps.NoticeTo{Recipient: "bob", Channel: vps.ChannelMail}))
			s := senderFor(o, mailHost(t, server, x.mode, x.login), rootsOf(certificate))
			run(t, s)
			for range 2 {
				if got := o.hear(t); !strings.HasPrefix(got, "done") {
					t.Fatal(got)
				}
			}
			server.mu.Lock()
			defer server.mu.Unlock()
			first := server.mails[0]
			if !strings.Contains(first, "RCPT TO:<owner@example.org>") {
				first = server.mails[1]
			}
			checkMail(t, first)
		})
	}
}

// checkMail reads the mail as others do.
func checkMail(t *testing.T, text string) {
	t.Helper()
	envelope, content, _ := strings.Cut(text, "\n\n")
	if !strings.Contains(envelope, "MAIL FROM:<sublet@example.org>") || !strings.Contains(envelope, "RCPT TO:<owner@example.org>") {
		t.Errorf("envelope %q", envelope)
	}
	m, err := mail.ReadMessage(strings.NewReader(content))
	if err != nil {
		t.Fatalf("%v:\n%s", err, content)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	if err != nil || subject != "sublet: 75 % of it – 出流量 – are used" {
		t.Errorf("subject %q, %v", subject, err)
	}
	if id := m.Header.Get("Message-Id"); id != "<msg_1@example.org>" {
		t.Errorf("id %q", id)
	}
	if m.Header.Get("Auto-Submitted") != "auto-generated" || !strings.Contains(m.Header.Get("From"), "<sublet@example.org>") || m.Header.Get("Date") == "" {
		t.Errorf("header %v", m.Header)
	}
	kind, _, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	body, berr := io.ReadAll(quotedprintable.NewReader(m.Body))
	for _, want := range []string{"75 % of it – 出流量 – are used", "Guest:  alice", "Host:   big", "because you own this host"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the mail lacks %q:\n%s", want, body)
		}
	}
	if kind != "text/plain" || err != nil || berr != nil {
		t.Errorf("%s, %v, %v", kind, err, berr)
	}
}

// TestMailRefused: what does not go through says why, and nothing is sent in
// the clear that should not be.
func TestMailRefused(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		server *smtpServer
		mode   vps.MailTLSMode
		login  string
		to     string
		want   string
	}{
		"no STARTTLS":    {&smtpServer{}, vps.MailStartTLS, "", "", "failed m: "},
		"wrong password": {&smtpServer{starts: true, login: "user\x00right"}, vps.MailStartTLS, "user\x00wrong", "", "failed m: the mail server does not accept user and password: 535"},
		"no such box":    {&smtpServer{starts: true}, vps.MailStartTLS, "", "nobody@example.org", "given up m"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, certificate := startSMTP(t, x.server)
			h := mailHost(t, server, x.mode, x.login)
			if x.to != "" {
				h.Settings.Notices.To = x.to
			}
			o := newOutbox(waiting("m", ownerMail))
			run(t, senderFor(o, h, rootsOf(certificate)))
			if got := o.hear(t); !strings.HasPrefix(got, x.want) {
				t.Errorf("%q, want %q", got, x.want)
			}
			if len(server.mails) > 0 {
				t.Errorf("it took %q", server.mails)
			}
		})
	}
	t.Run("a stranger's certificate", func(t *testing.T) {
		t.Parallel()
		server, _ := startSMTP(t, &smtpServer{starts: true})
		o := newOutbox(waiting("m", ownerMail))
		run(t, senderFor(o, mailHost(t, server, vps.MailStartTLS, ""), nil))
		if got := o.hear(t); !strings.Contains(got, "certificate") || !strings.HasPrefix(got, "failed") {
			t.Error(got)
		}
	})
}

// TestMailEnds: a server that says nothing is left when the daemon stops.
func TestMailEnds(t *testing.T) {
	t.Parallel()
	server, _ := startSMTP(t, &smtpServer{silent: true})
	o := newOutbox(waiting("m", ownerMail))
	s := senderFor(o, mailHost(t, server, vps.MailNoTLS, ""), nil)
	run(t, s)
	deadline := time.After(hang.After)
	for connected := false; !connected; {
		select {
		case <-deadline:
			t.Fatal("nobody connects")
		case <-time.After(time.Millisecond):
		}
		server.mu.Lock()
		connected = len(server.conns) > 0
		server.mu.Unlock()
	}
} // run's clean-up waits for the sender to end

// TestMailKeepsItsShape: whatever a notice holds, the mail has the headers and
// the recipients that it should, and no others.
func TestMailKeepsItsShape(t *testing.T) {
	t.Parallel()
	server, certificate := startSMTP(t, &smtpServer{starts: true})
	w := waiting("m", ownerMail)
	w.Message = "x\r\nBcc: victim@example.org\r\n\r\n.\r\nMAIL FROM:<evil@example.org>\r\n" + strings.Repeat("long ", 1000)
	w.Guest = "a\r\nX-Evil: 1"
	o := newOutbox(w)
	run(t, senderFor(o, mailHost(t, server, vps.MailStartTLS, ""), rootsOf(certificate)))
	if got := o.hear(t); got != "done m" {
		t.Fatal(got)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if len(server.mails) != 1 {
		t.Fatalf("%d mails", len(server.mails))
	}
	envelope, content, _ := strings.Cut(server.mails[0], "\n\n")
	m, err := mail.ReadMessage(strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(envelope, "victim") || strings.Contains(envelope, "evil") || m.Header.Get("Bcc") != "" || m.Header.Get("X-Evil") != "" {
		t.Errorf("%q\n%v", envelope, m.Header)
	}
}
