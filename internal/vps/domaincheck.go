package vps

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// MaxDomains bounds the domains of a host, MaxGuestDomains those of one guest,
// MaxTrustedProxies the proxies in front of the edge, and MaxResolvers the name
// servers that are asked for proofs.
const (
	MaxDomains        = 10_000
	MaxGuestDomains   = 1_000
	MaxTrustedProxies = 64
	MaxResolvers      = 4
)

// validDomainName checks that a name is in its canonical form.
func validDomainName(field, name string) error {
	if name == DefaultDomain || canonicalHost(strings.TrimPrefix(name, "*.")) {
		return nil
	}
	return Invalid(field, "%q is not a domain in its canonical form; write for example blog.example.org, *.example.org, or *", name)
}

// canonicalHost tells whether a name is one of a host as the edge compares them:
// at most 253 letters, in labels of at most 63 lower-case letters, digits and
// hyphens that neither begin nor end with a hyphen (RFC 1123, 2.1). The last one
// has not digits alone, so that no IPv4 address is one.
func canonicalHost(name string) bool {
	const maxName, maxLabel = 253, 63
	if len(name) > maxName {
		return false
	}
	digits := true
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		digits = true
		for _, c := range []byte(label) {
			digit, letter := c >= '0' && c <= '9', c >= 'a' && c <= 'z'
			if !digit && !letter && c != '-' {
				return false
			}
			digits = digits && digit
		}
	}
	return !digits
}

// Validate checks what can be told from the domain alone; field is where it is, ""
// for nowhere.
func (d *Domain) Validate(field string) error {
	if field != "" {
		field += "."
	}
	if err := validDomainName(field+"name", d.Name); err != nil {
		return err
	}
	switch {
	case d.Listen == HTTPPort:
		return Invalid(field+"listen", "port %d is a part of web; leave out the port of %s, or use %d for TLS alone", HTTPPort, d.Name, HTTPSPort)
	case d.HTTPPort != 0 && !d.Web():
		return Invalid(field+"http_port", "%s is not for web; use port for the guest's port", d)
	case d.Caller != "" && !slices.Contains(CallerModes(), d.Caller):
		return Invalid(field+"caller", "%q is no way to learn who calls; use transparent, proxy-v1, proxy-v2 or hidden", d.Caller)
	case d.Terminate && d.Name == DefaultDomain:
		return Invalid(field+"terminate", "no certificate is there for all names at once; name those whose TLS is to end at the edge")
	case d.Terminate && d.Web() && d.Port != 0:
		return Invalid(field+"port", "calls of %s lead to the guest's port for HTTP when TLS ends at the edge; use http_port", d.Name)
	}
	return nil
}

// validateDomains checks those of one guest.
func (s *GuestSpec) validateDomains() error {
	if len(s.Domains) > MaxGuestDomains {
		return Invalid("domains", "%d domains are more than the limit of %d for one guest; a suffix such as *.example.org stands for many", len(s.Domains), MaxGuestDomains)
	}
	seen := make(map[string]bool, len(s.Domains))
	for i := range s.Domains {
		d, field := &s.Domains[i], fmt.Sprintf("domains[%d]", i)
		if err := d.Validate(field); err != nil {
			return err
		}
		if seen[d.String()] {
			return Invalid(field, "the domain %s is there twice", d)
		}
		seen[d.String()] = true
	}
	return nil
}

// validate checks the edge's settings.
func (s *EdgeSettings) validate() error {
	switch {
	case !slices.Contains(CallerModes(), s.Caller):
		return Invalid("settings.edge.caller", "%q is no way to learn who calls; use transparent, proxy-v1, proxy-v2 or hidden", s.Caller)
	case len(s.TrustedProxies) > MaxTrustedProxies:
		return Invalid("settings.edge.trusted_proxies", "%d are more than the limit of %d", len(s.TrustedProxies), MaxTrustedProxies)
	case s.AccessLog != AccessCombined && s.AccessLog != AccessJSON && s.AccessLog != AccessOff:
		return Invalid("settings.edge.access_log", "%q is neither combined, json nor off", s.AccessLog)
	}
	if len(s.Resolvers) > MaxResolvers {
		return Invalid("settings.edge.resolvers", "%d are more than the limit of %d", len(s.Resolvers), MaxResolvers)
	}
	for i, r := range s.Resolvers {
		if !r.IsValid() || r.Port() == 0 || r.Addr().IsUnspecified() || r.Addr().IsMulticast() || r.Addr().Is4In6() {
			return Invalid(fmt.Sprintf("settings.edge.resolvers[%d]", i), "%s is not a name server; write for example 9.9.9.9 or 127.0.0.1:5353", r)
		}
	}
	for i, p := range s.TrustedProxies {
		field := fmt.Sprintf("settings.edge.trusted_proxies[%d]", i)
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			return Invalid(field, "%q is not a prefix; write for example 192.0.2.7/32", p)
		case p != p.Masked():
			return Invalid(field, "%s has bits set behind its length; write %s", p, p.Masked())
		}
	}
	for _, v := range []struct {
		name                   string
		value, lowest, highest int
	}{
		{"caller_connections", s.CallerConnections, 1, 1_000_000},
		{"caller_rate", s.CallerRate, 1, 1_000_000},
		{"metric_domains", s.MetricDomains, 0, MaxDomains},
	} {
		if v.value < v.lowest || v.value > v.highest {
			return Invalid("settings.edge."+v.name, "%d is out of range; use %d to %d", v.value, v.lowest, v.highest)
		}
	}
	for _, v := range []struct {
		name            string
		value           Duration
		lowest, highest time.Duration
	}{
		{"handshake_timeout", s.HandshakeTimeout, time.Second, 2 * time.Minute},
		{"idle_timeout", s.IdleTimeout, 10 * time.Second, 7 * 24 * time.Hour},
		{"drain_timeout", s.DrainTimeout, 0, 24 * time.Hour},
		{"wake_timeout", s.WakeTimeout, time.Second, 10 * time.Minute},
	} {
		if d := time.Duration(v.value); d < v.lowest || d > v.highest {
			return Invalid("settings.edge."+v.name, "%s is out of range; use %s to %s", d, v.lowest, v.highest)
		}
	}
	return s.ACME.validate()
}
