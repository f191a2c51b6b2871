package notice

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"sublet/internal/vps"
)

const (
	mailTimeout = 60 * time.Second
	// maxSubject is how many characters of a message a subject has: a line of
	// a header should stay below 78 (RFC 5322, 2.1.1), and folds beyond.
	maxSubject  = 120
	maxPassword = 4 << 10
)

// mail sends a notice by mail once.
func (s *Sender) mail(ctx context.Context, n *vps.NoticeSettings, address string, w vps.WaitingNotice) error {
	message, err := s.message(n.From, address, w)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mailTimeout)
	defer cancel()
	client, err := s.mailClient(ctx, n)
	if err != nil {
		return err
	}
	if err = client.DialWithContext(ctx); err == nil {
		err = client.Send(message)
		_ = client.Close()
	}
	switch {
	case message.IsDelivered(): // whatever came after
		return nil
	case err != nil:
		return explainMail(ctx, n, address, err)
	}
	return nil
}

// mailClient makes a client for one mail. Its connection ends with ctx,
// however far the two have come.
func (s *Sender) mailClient(ctx context.Context, n *vps.NoticeSettings) (*mail.Client, error) {
	host, text, err := net.SplitHostPort(n.Server)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	secure := &tls.Config{ServerName: host, RootCAs: s.roots, MinVersion: tls.VersionTLS12}
	options := []mail.Option{
		mail.WithPort(port), mail.WithTimeout(mailTimeout), mail.WithTLSConfig(secure), mail.WithoutNoop(), mail.WithTLSPolicy(mail.TLSMandatory),
		mail.WithDialContextFunc(func(dial context.Context, network, address string) (net.Conn, error) {
			return s.dialMail(dial, ctx, network, address, n.TLS, secure)
		}),
	}
	switch n.TLS {
	case vps.MailTLS:
		options = append(options, mail.WithSSL())
	case vps.MailNoTLS:
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	case vps.MailStartTLS:
	}
	if n.User != "" {
		password, err := readPassword(n.PasswordFile)
		if err != nil {
			return nil, err
		}
		// The library refuses the last two without TLS, but for this very host.
		methods := mail.WithOpportunisticSMTPAuth(mail.SMTPAuthSCRAMSHA256, mail.SMTPAuthSCRAMSHA1, mail.SMTPAuthPlain, mail.SMTPAuthLogin)
		options = append(options, methods, mail.WithUsername(n.User), mail.WithPassword(password))
	}
	return mail.NewClient(host, options...)
}

// dialMail connects until dial ends, and closes the connection when life ends.
func (s *Sender) dialMail(dial, life context.Context, network, address string, mode vps.MailTLSMode, secure *tls.Config) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(dial, network, address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(life, func() { _ = conn.Close() })
	if mode != vps.MailTLS {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(dial, s.handshake)
	defer cancel()
	secured := tls.Client(conn, secure)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

// message writes the mail. Whatever a text holds, it stays in its place: the
// library encodes what could end a line of a header, and the body.
func (s *Sender) message(from, to string, w vps.WaitingNotice) (*mail.Msg, error) {
	m := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := m.FromFormat("sublet on "+s.hostname, from); err != nil {
		return nil, err
	}
	if err := m.To(to); err != nil {
		return nil, err
	}
	_, domain, _ := strings.Cut(from, "@")
	m.SetMessageIDWithValue(w.UID + "@" + domain)
	m.SetDateWithValue(w.Time)
	m.Subject(subject(w.Message))
	m.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no answer, please
	m.SetBodyString(mail.TypeTextPlain, s.text(w))
	return m, nil
}

// subject is the begin of a message, in one line.
func subject(message string) string {
	line := []rune("sublet: " + strings.Join(strings.Fields(message), " "))
	if len(line) > maxSubject {
		line = append(line[:maxSubject-1], '…')
	}
	return string(line)
}

func (s *Sender) text(w vps.WaitingNotice) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", w.Message)
	for _, line := range [][2]string{
		{"Host", s.hostname},
		{"Guest", w.Guest},
		{"Tenant", w.Tenant},
		{"Kind", w.Kind},
		{"Time", w.Time.UTC().Format("2006-01-02 15:04:05 UTC")},
	} {
		if line[1] != "" {
			fmt.Fprintf(&b, "%-8s%s\n", line[0]+":", line[1])
		}
	}
	why := "You get this mail because you own this host and set it up with `sublet host set`."
	if w.Recipient != "" {
		why = "You get this mail because you have guests on this host, as the tenant " + w.Recipient + ". Its owner can end that."
	}
	fmt.Fprintf(&b, "\n-- \n%s\n", why)
	return b.String()
}

// readPassword returns the first line of a file.
func readPassword(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", vps.Wrap(vps.CodeDenied, err, "the file %s with the mail server's password cannot be read", path)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err != nil {
		return "", vps.Wrap(vps.CodeDenied, err, "the file %s with the mail server's password cannot be read", path)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}
