package vps

import (
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// NoticeSettings are where the owner is told of what happens, and how mail to
// him and to tenants goes out. The zero value means that nobody is told.
type NoticeSettings struct {
	// Webhook is an http or https URL, empty for none.
	Webhook string `json:"webhook"`
	// AllowPrivate lets webhooks, the owner's and tenants', lead to addresses
	// that are not public: see PublicAddress.
	AllowPrivate bool `json:"allow_private"`
	// To is the owner's mail address, empty for no mail to him.
	To string `json:"to"`
	// Server is the SMTP server that takes mail, HOST:PORT; empty means that no
	// mail is sent. TLS says how the connection is encrypted; empty means
	// MailStartTLS.
	Server string      `json:"smtp_server"`
	TLS    MailTLSMode `json:"smtp_tls"`
	// From is the sender's address. User is who logs in to the server, empty
	// for nobody, with the password in PasswordFile: one line, read for each
	// mail by the daemon.
	From         string `json:"from"`
	User         string `json:"smtp_user"`
	PasswordFile string `json:"smtp_password_file"`
}

// MailTLSMode says how a connection to an SMTP server is encrypted.
type MailTLSMode string

// The ways to encrypt. Certificates are checked in each.
const (
	// MailStartTLS begins in the clear and insists on STARTTLS (RFC 3207), as
	// on port 587.
	MailStartTLS MailTLSMode = "starttls"
	// MailTLS encrypts from the first byte on (RFC 8314), as on port 465.
	MailTLS MailTLSMode = "tls"
	// MailNoTLS encrypts nothing: for a server on this host.
	MailNoTLS MailTLSMode = "none"
)

// Bounds of the text of addresses: that of a path is SMTP's (RFC 5321,
// 4.5.3.1.3).
const (
	maxWebhook = 2048
	maxEmail   = 254
)

func (s *NoticeSettings) validate() error {
	const field = "settings.notices."
	if err := ValidWebhook(field+"webhook", s.Webhook, s.AllowPrivate); err != nil {
		return err
	}
	for _, a := range []struct{ field, address string }{{"to", s.To}, {"from", s.From}} {
		if err := ValidEmail(field+a.field, a.address); err != nil {
			return err
		}
	}
	switch s.TLS {
	case MailStartTLS, MailTLS, MailNoTLS, "":
	default:
		return Invalid(field+"smtp_tls", "%q is not a way to encrypt; use starttls, tls or none", string(s.TLS))
	}
	switch {
	case s.PasswordFile != "" && (!filepath.IsAbs(s.PasswordFile) || len(s.PasswordFile) > 1024 || hasControl(s.PasswordFile)):
		return Invalid(field+"smtp_password_file", "%q is not an absolute path, and it is the daemon that reads it", s.PasswordFile)
	case len(s.User) > maxEmail || hasControl(s.User):
		return Invalid(field+"smtp_user", "this is not a user's name of at most %d characters", maxEmail)
	case s.Server == "":
		return nil
	}
	return s.validateServer(field)
}

// validateServer checks what a server needs beside its own name.
func (s *NoticeSettings) validateServer(field string) error {
	host, port, err := net.SplitHostPort(s.Server)
	if err != nil || len(s.Server) > 300 || !validMailHost(host) {
		return Invalid(field+"smtp_server", "%q is not HOST:PORT; write for example smtp.example.org:587", s.Server)
	}
	if _, err := parsePort(port); err != nil {
		return Invalid(field+"smtp_server", "%q is not a port; write for example smtp.example.org:587", port)
	}
	switch {
	case s.From == "":
		return Invalid(field+"from", "mail needs a sender's address")
	case (s.User == "") != (s.PasswordFile == ""):
		return Invalid(field+"smtp_password_file", "a user and the file with the password go together; give both or neither")
	case s.User != "" && s.TLS == MailNoTLS && !isLocal(host):
		return Invalid(field+"smtp_tls", "the password would go over the network in the clear; use starttls or tls")
	}
	return nil
}

func validMailHost(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil || len(host) <= 253 && hostnamePattern.MatchString(strings.ToLower(host))
}

func isLocal(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
}

// ValidEmail wants a bare mail address, "bob@example.org", or nothing.
func ValidEmail(field, address string) error {
	if address == "" {
		return nil
	}
	a, err := mail.ParseAddress(address)
	// A display name or a comment parses as well, and so does a quoted local part.
	if err != nil || a.Address != address || len(address) > maxEmail || hasControl(address) || strings.ContainsAny(address, "\"<>(),;: ") {
		return Invalid(field, "%q is not a mail address; write for example bob@example.org", address)
	}
	at := strings.LastIndexByte(address, '@')
	switch {
	case !isASCII(address[:at]): // it would take SMTPUTF8 (RFC 6531) all the way to the mailbox
		return Invalid(field, "%q has letters before the @ that few mail servers take; name an address of plain ones", address)
	case !isASCII(address[at:]):
		return Invalid(field, "%q has a domain with other letters; write it in its form of xn--", address)
	}
	return nil
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// ValidWebhook wants an http or https URL, or nothing. A host that is not
// public is refused unless private ones are allowed; what a name leads to is
// checked when a notice is sent.
func ValidWebhook(field, text string, allowPrivate bool) error {
	if text == "" {
		return nil
	}
	const example = "write for example https://example.org/hooks/sublet"
	u, err := url.Parse(text)
	switch {
	case len(text) > maxWebhook:
		return Invalid(field, "a webhook has at most %d characters", maxWebhook)
	case err != nil || hasControl(text) || u.Hostname() == "" || u.Opaque != "":
		return Invalid(field, "this is not a URL; %s", example)
	case u.Scheme != "https" && u.Scheme != "http":
		return Invalid(field, "a webhook has a URL with https or http, not %q; %s", u.Scheme, example)
	case u.User != nil:
		return Invalid(field, "a webhook has no user or password in its URL; the signature tells who sends")
	case u.Fragment != "":
		return Invalid(field, "the part behind # is never sent; leave it out")
	}
	if port := u.Port(); port != "" {
		if _, err := parsePort(port); err != nil {
			return Invalid(field, "%q is not a port; %s", port, example)
		}
	}
	return validWebhookHost(field, u.Hostname(), allowPrivate)
}

func validWebhookHost(field, host string, allowPrivate bool) error {
	const allow = "allow that with `sublet host set --allow-private-webhooks`, or name a public one"
	if a, err := netip.ParseAddr(host); err == nil {
		if !allowPrivate && !PublicAddress(a) {
			return Invalid(field, "%s is not a public address; %s", a, allow)
		}
		return nil
	}
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	last := name[strings.LastIndexByte(name, '.')+1:]
	switch {
	case len(name) > 253 || !hostnamePattern.MatchString(strings.ReplaceAll(name, "_", "-")):
		return Invalid(field, "%q is not the name of a host; names with other letters are written in their form of xn--", host)
	case endsInNumber(last):
		// Some resolvers take such for an IPv4 address (WHATWG URL, "ends in a number").
		return Invalid(field, "%q is neither a name nor an address", host)
	case !allowPrivate && (last == "localhost" || last == "localdomain" || name == "ip6-localhost" || name == "ip6-loopback"):
		return Invalid(field, "%s is this host itself; %s", host, allow)
	}
	return nil
}

func endsInNumber(label string) bool {
	digits, hex := strings.CutPrefix(label, "0x")
	return !strings.ContainsFunc(digits, func(r rune) bool {
		return (r < '0' || r > '9') && (!hex || r < 'a' || r > 'f')
	})
}

// notPublic are the special-purpose blocks (IANA's registries, RFC 6890) that
// no public server has, and those where clouds keep their metadata: two of
// these blocks, and the one address that Azure has for it.
var notPublic = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
	"2001::/23", "2001:db8::/32", "3fff::/20",
)

func prefixes(all ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(all))
	for i, p := range all {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

// PublicAddress tells whether an address is one of the public Internet: global
// unicast that is not kept for a special purpose. An IPv6 address that leads
// to an IPv4 one (mapped, NAT64 of RFC 6052, 6to4 of RFC 3056) counts as that.
func PublicAddress(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	if a.Is6() {
		b := a.As16()
		switch {
		case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
			return PublicAddress(netip.AddrFrom4([4]byte(b[12:])))
		case netip.MustParsePrefix("2002::/16").Contains(a):
			return PublicAddress(netip.AddrFrom4([4]byte(b[2:6])))
		case !netip.MustParsePrefix("2000::/3").Contains(a):
			return false
		}
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return a.IsValid()
}

// validateNotices checks where a tenant is told.
func (t *Tenant) validateNotices(i int, allowPrivate bool) error {
	if err := ValidEmail(fmt.Sprintf("tenants[%d].email", i), t.Email); err != nil {
		return err
	}
	return ValidWebhook(fmt.Sprintf("tenants[%d].webhook", i), t.Webhook, allowPrivate)
}
