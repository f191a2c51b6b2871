package notice

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"syscall"

	"github.com/wneessen/go-mail"

	"sublet/internal/vps"
)

// reason is why a try failed, in one line for people.
func reason(err error) string {
	text := explain(err)
	if e, ok := errors.AsType[*vps.Error](err); ok {
		text = vps.ErrorMessage(e)
	}
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if r := []rune(text); len(r) > maxReason {
		text = string(r[:maxReason-1]) + "…"
	}
	return text
}

// explain says for people why a server could not be reached, or broke off. What
// it does not know it leaves as it is.
func explain(err error) string {
	if name, ok := errors.AsType[*net.DNSError](err); ok {
		return explainName(name)
	}
	where := "the server"
	if op, ok := errors.AsType[*net.OpError](err); ok {
		if op.Addr != nil {
			where = op.Addr.String()
		}
		if op.Op == "dial" && op.Timeout() {
			return fmt.Sprintf("%s did not take the connection within %s", where, dialTimeout)
		}
	}
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its certificate is not trusted: " + strings.TrimPrefix(bad.Err.Error(), "x509: ")
	}
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case silent(err):
		return "the server took the connection, and did not answer in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return where + " refuses the connection: nothing listens there"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "this host has no way to " + where
	case noTLS, errors.Is(err, http.ErrSchemeMismatch):
		return "the server does not speak TLS on this port"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the server closed the connection before it had answered"
	}
	return err.Error()
}

// silent tells whether a server that had taken the connection did not answer.
func silent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	dialed := !ok || op.Op != "dial"
	late, ok := errors.AsType[net.Error](err)
	return dialed && ok && late.Timeout()
}

// explainName says why the addresses of a name are not known.
func explainName(e *net.DNSError) string {
	switch {
	case e.IsNotFound:
		return fmt.Sprintf("there is no name %s, or it has no address", e.Name)
	case e.IsTimeout:
		return fmt.Sprintf("the name %s could not be resolved in time: this host's name server does not answer", e.Name)
	}
	return fmt.Sprintf("the name %s could not be resolved: %s", e.Name, e.Err)
}

// explainCall says why a webhook did not take a notice. ctx is that of the call.
func explainCall(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*vps.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return vps.Wrap(vps.CodeTimeout, err, "there was no answer within %s", webhookTimeout)
	case strings.Contains(err.Error(), "malformed HTTP"):
		return vps.Wrap(vps.CodeUnavailable, err, "what answers there is no web server, or one that speaks TLS: check the port, and http or https")
	}
	text := explain(err)
	if errors.Is(err, http.ErrSchemeMismatch) {
		text += "; write http:// or name another one"
	}
	return vps.Wrap(vps.CodeUnavailable, err, "%s", text)
}

// explainMail says why a mail server did not take a mail to an address. ctx is
// that of the mail.
func explainMail(ctx context.Context, n *vps.NoticeSettings, to string, err error) error {
	const set = "`sublet host set --smtp-tls "
	if _, ok := errors.AsType[*vps.Error](err); ok {
		return err
	}
	failed, _ := errors.AsType[*mail.SendError](err)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		text := fmt.Sprintf("the mail server did not take it within %s", mailTimeout)
		if failed == nil && n.TLS != vps.MailTLS {
			text += "; if it speaks TLS from the first byte on, as on port 465, use " + set + "tls`"
		}
		return vps.Wrap(vps.CodeTimeout, err, "%s", text)
	}
	text := explain(err)
	_, said := errors.AsType[*textproto.Error](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case failed != nil:
		text = explainSend(failed, n.From, to)
	case noTLS, n.TLS == vps.MailTLS && silent(err):
		text += "; use " + set + "starttls` for a server that begins in the clear, as on port 587"
	case strings.Contains(text, "does not support STARTTLS"):
		text = "the mail server does not offer STARTTLS; use " + set + "tls` for one that speaks TLS from the first byte on, as on port 465, or " + set + "none` for one on this host"
	case errors.Is(err, mail.ErrNoSupportedAuthDiscovered), strings.Contains(text, "does not support SMTP AUTH"):
		text = "the mail server does not let anybody log in this way; leave --smtp-user and --smtp-password-file empty, or use its port for mail that is submitted, as 587"
	case strings.HasPrefix(text, "SMTP AUTH failed: "):
		text = "the mail server does not accept user and password: " + answer(strings.TrimPrefix(text, "SMTP AUTH failed: "))
	case said:
		text = "the mail server does not want to talk: " + answer(text)
	}
	return vps.Wrap(vps.CodeUnavailable, err, "%s", text)
}

// explainSend says what of a mail was refused, with the server's own words.
func explainSend(e *mail.SendError, from, to string) string {
	words, _, _ := strings.Cut(strings.TrimPrefix(e.Error(), e.Reason.String()+": "), ", affected ")
	if e.ErrorCode() == 0 { // it said nothing
		return "the connection to the mail server broke off: " + words
	}
	what := "this mail"
	switch e.Reason { //nolint:exhaustive // the others are about the mail
	case mail.ErrSMTPRcptTo:
		what = "mail for " + to
	case mail.ErrSMTPMailFrom:
		what = "mail from " + from
	}
	return "the mail server does not take " + what + ": " + answer(words)
}

// answer is what a server said, with its code, and without the quotes that the
// library may put around it.
func answer(text string) string {
	code, words, _ := strings.Cut(text, " ")
	if plain, err := strconv.Unquote(words); err == nil {
		return code + " " + plain
	}
	return text
}
