package vps

import (
	"cmp"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// LetsEncrypt is the directory of the certificate authority that an empty
// ACMESettings.Directory means.
const LetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// ACMESettings say where the edge gets certificates for domains with Terminate,
// by ACME (RFC 8555). Secrets are in files that the daemon reads, and nowhere
// else. The zero value is good as long as no domain has Terminate.
type ACMESettings struct {
	// Directory is the https URL of the authority's directory, empty for
	// LetsEncrypt. CAFile has the certificates (PEM) that the directory's own is
	// checked with, empty for those of the system.
	Directory string `json:"directory,omitempty"`
	CAFile    string `json:"ca_file,omitempty"`
	// Email is told to the authority, empty for none.
	Email string `json:"email,omitempty"`
	// AgreeTerms is the owner's word that he agrees to the authority's terms.
	// Without it no account is made, and no domain may have Terminate.
	AgreeTerms bool `json:"agree_terms,omitempty"`
	// EABKeyID and EABKeyFile bind the account to one that the authority knows
	// (RFC 8555, 7.3.4); the file has the key in base64url, in one line.
	EABKeyID   string `json:"eab_key_id,omitempty"`
	EABKeyFile string `json:"eab_key_file,omitempty"`
	// DNSServer takes dynamic updates (RFC 2136): HOST or HOST:PORT, empty for
	// none. They are signed (TSIG, RFC 8945) with the key of DNSKeyName in
	// DNSKeyFile, in base64 in one line; DNSAlgorithm empty means
	// hmac-sha256. Suffixes such as *.example.org need it: the authority asks for a
	// record in the DNS.
	DNSServer    string `json:"dns_server,omitempty"`
	DNSKeyName   string `json:"dns_key_name,omitempty"`
	DNSAlgorithm string `json:"dns_algorithm,omitempty"`
	DNSKeyFile   string `json:"dns_key_file,omitempty"`
}

// DNSAlgorithms are those that updates can be signed with, the usual one first.
func DNSAlgorithms() []string {
	return []string{"hmac-sha256", "hmac-sha224", "hmac-sha384", "hmac-sha512"}
}

// Authority is the URL of the directory that is meant.
func (s *ACMESettings) Authority() string { return cmp.Or(s.Directory, LetsEncrypt) }

// DNSAddress is DNSServer with its port, empty for none.
func (s *ACMESettings) DNSAddress() string {
	if s.DNSServer == "" {
		return ""
	}
	if _, _, err := net.SplitHostPort(s.DNSServer); err == nil {
		return s.DNSServer
	}
	return net.JoinHostPort(strings.Trim(s.DNSServer, "[]"), "53")
}

func (s *ACMESettings) validate() error {
	const field = "settings.edge.acme."
	if s.Directory != "" {
		u, err := url.Parse(s.Directory)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || len(s.Directory) > maxWebhook || hasControl(s.Directory) {
			return Invalid(field+"directory", "this is not the https URL of an ACME directory; write for example %s", LetsEncrypt)
		}
	}
	if err := ValidEmail(field+"email", s.Email); err != nil {
		return err
	}
	for _, f := range []struct{ field, path string }{{"ca_file", s.CAFile}, {"eab_key_file", s.EABKeyFile}, {"dns_key_file", s.DNSKeyFile}} {
		if f.path != "" && (!filepath.IsAbs(f.path) || len(f.path) > 1024 || hasControl(f.path)) {
			return Invalid(field+f.field, "%q is not an absolute path, and it is the daemon that reads it", f.path)
		}
	}
	switch {
	case len(s.EABKeyID) > 256 || hasControl(s.EABKeyID):
		return Invalid(field+"eab_key_id", "this is not the name of a key of at most 256 characters")
	case (s.EABKeyID == "") != (s.EABKeyFile == ""):
		return Invalid(field+"eab_key_file", "the name of the key that the authority gave and the file with it go together; give both or neither")
	case s.DNSAlgorithm != "" && !slices.Contains(DNSAlgorithms(), s.DNSAlgorithm):
		return Invalid(field+"dns_algorithm", "%q is not a way to sign updates; use %s", s.DNSAlgorithm, strings.Join(DNSAlgorithms(), ", "))
	case s.DNSServer == "" && s.DNSKeyName == "" && s.DNSKeyFile == "":
		return nil
	case s.DNSServer == "" || s.DNSKeyName == "" || s.DNSKeyFile == "":
		return Invalid(field+"dns_server", "the DNS server that takes updates, the name of the key and the file with it go together; give all three or none")
	case !validMailHost(strings.TrimSuffix(strings.ReplaceAll(s.DNSKeyName, "_", "-"), ".")):
		return Invalid(field+"dns_key_name", "%q is not the name of a key; write for example sublet.example.org", s.DNSKeyName)
	}
	host, port, err := net.SplitHostPort(s.DNSAddress())
	if err != nil || !validMailHost(host) || strings.Contains(host, "%") {
		return Invalid(field+"dns_server", "%q is not a server; write for example ns1.example.org, or 192.0.2.53:5353", s.DNSServer)
	}
	if _, err := parsePort(port); err != nil {
		return Invalid(field+"dns_server", "%q is not a port; write for example 192.0.2.53:5353", port)
	}
	return nil
}

// canTerminate tells why a domain cannot have Terminate with these settings, so
// that nothing is tried that cannot succeed.
func (s *ACMESettings) canTerminate(field string, d *Domain) error {
	_, suffix := d.Suffix()
	switch {
	case !d.Terminate:
		return nil
	case !s.AgreeTerms:
		return Invalid(field, "a certificate for %s comes from %s, whose terms you have to agree to: read them, then `sublet host set --acme-agree-terms`", d.Name, s.authorityName())
	case suffix && s.DNSServer == "":
		return Invalid(field, "certificates for suffixes such as %s are given for a record in the DNS only, and no DNS server takes updates from here; set one (`sublet host set --acme-dns-server`, see docs/domains.md), or name each host", d.Name)
	case !strings.Contains(strings.TrimPrefix(d.Name, "*."), "."):
		return Invalid(field, "no authority gives certificates for %s, a name without a dot", d.Name)
	}
	return nil
}

func (s *ACMESettings) authorityName() string {
	if s.Authority() == LetsEncrypt {
		return "Let's Encrypt"
	}
	u, err := url.Parse(s.Directory)
	if err != nil {
		return s.Directory
	}
	return u.Host
}
