package terminate

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/mholt/acmez/v3/acme"

	"sublet/internal/vps"
)

// maxDetail bounds what an authority says, in characters.
const maxDetail = 400

// sentence says to the owner why there is no certificate for a name, and what to
// do.
func (m *Manager) sentence(name string, err error) string {
	authority := m.acme.Load().Authority()
	if u, err := url.Parse(authority); err == nil && u.Host != "" {
		authority = u.Host
	}
	if e, ok := errors.AsType[*vps.Error](err); ok {
		return e.Message
	}
	if p, ok := errors.AsType[acme.Problem](err); ok {
		return problem(authority, name, &p)
	}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var hostname x509.HostnameError
	var resolve *net.DNSError
	var network net.Error
	switch {
	case says(err, syscall.ENOSPC) || says(err, syscall.EDQUOT):
		return "the disk is full, and a certificate that cannot be kept is not asked for; make room"
	case says(err, syscall.EROFS):
		return fmt.Sprintf("the folder of certificates cannot be written: %s", tidy(err.Error()))
	case errors.As(err, &unknown):
		return fmt.Sprintf("the certificate of %s itself is signed by nobody that this host trusts; name the file with its root (settings.edge.acme.ca_file)", authority)
	case errors.As(err, &invalid):
		return fmt.Sprintf("the certificate of %s itself is not valid now (%s); look at this host's clock", authority, tidy(invalid.Error()))
	case errors.As(err, &hostname):
		return fmt.Sprintf("the certificate of %s itself is for another name (%s)", authority, tidy(hostname.Error()))
	case errors.As(err, &resolve):
		return fmt.Sprintf("%s is not found in the DNS (%s); look at this host's resolver, or at the directory's name", resolve.Name, tidy(resolve.Err))
	case errors.As(err, &network):
		return fmt.Sprintf("%s cannot be reached: %s", authority, tidy(cause(err).Error()))
	}
	return fmt.Sprintf("no certificate came from %s: %s", authority, tidy(err.Error()))
}

// problem says what an authority's answer means (RFC 8555, 6.7).
func problem(authority, name string, p *acme.Problem) string {
	detail := p.Detail
	for _, s := range p.Subproblems {
		detail += " " + s.Detail
	}
	detail = tidy(detail)
	ways := "lead it to this host by A and AAAA records, and let ports 80 and 443 through"
	if zone, wildcard := strings.CutPrefix(name, "*."); wildcard {
		ways = "look at the DNS server that takes updates, and at _acme-challenge." + zone
	}
	switch p.Type {
	case acme.ProblemTypeRateLimited:
		return fmt.Sprintf("%s takes no more requests for now: %s", authority, detail)
	case acme.ProblemTypeCAA:
		return fmt.Sprintf("a CAA record says that %s may not give certificates for %s: %s", authority, name, detail)
	case acme.ProblemTypeExternalAccountRequired:
		return fmt.Sprintf("%s gives certificates to accounts that it knows only; set the key that it gave you (settings.edge.acme.eab_key_id and eab_key_file): %s", authority, detail)
	case acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedIdentifier:
		return fmt.Sprintf("%s gives no certificate for %s: %s", authority, name, detail)
	case acme.ProblemTypeUserActionRequired:
		return fmt.Sprintf("%s wants its terms to be agreed to anew, see %s: %s", authority, tidy(p.Instance), detail)
	case acme.ProblemTypeConnection, acme.ProblemTypeDNS, acme.ProblemTypeIncorrectResponse, acme.ProblemTypeTLS, acme.ProblemTypeUnauthorized:
		return fmt.Sprintf("%s could not check that %s is served here; %s; it says: %s", authority, name, ways, detail)
	}
	return fmt.Sprintf("%s refused to give a certificate for %s: %s", authority, name, detail)
}

// says tells whether an error is of this number, or tells of one: certmagic hands
// on some as text.
func says(err error, number syscall.Errno) bool {
	return errors.Is(err, number) || strings.Contains(err.Error(), number.Error())
}

// cause is the innermost error.
func cause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// tidy makes one line of bounded length of what others said.
func tidy(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > maxDetail {
		s = string(r[:maxDetail]) + "…"
	}
	return s
}
