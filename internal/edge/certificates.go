package edge

import (
	"cmp"
	"crypto/tls"
	"maps"
	"net/http"
	"slices"

	"sublet/internal/vps"
)

// Certificates end TLS for domains with Terminate. All methods may be called at
// once, and none waits for an authority.
type Certificates interface {
	// TLSConfig is how TLS of a domain with Terminate ends: HTTP/2 and HTTP/1.1 are
	// offered for web, nothing by name for other listeners. A handshake fails with
	// the alert internal_error while there is no certificate yet, and with
	// unrecognized_name for a name that none is got for. When NegotiatedProtocol is
	// ChallengeProtocol, the handshake was all that the authority wanted: close.
	TLSConfig(d *vps.Domain) *tls.Config
	// Challenged tells whether an authority asks by TLS for this name right now,
	// whatever listener the domain is on; alpn are the protocols that the caller
	// offers. Such a connection, on HTTPSPort, is for TLSConfig.
	Challenged(name string, alpn []string) bool
	// HTTPChallenge answers a request of an authority, and tells whether it was one
	// that waits for an answer. Any other is the guest's.
	HTTPChallenge(w http.ResponseWriter, r *http.Request) bool
}

// ChallengeProtocol is the application protocol of TLS-ALPN-01 (RFC 8737).
const ChallengeProtocol = "acme-tls/1"

// newer tells whether c says more of the same name than o, which another process
// tells: one that is replaced does not hear of what the next one got.
func newer(c, o *vps.Certificate) bool {
	return cmp.Or(c.Expires.Compare(o.Expires), c.Failed.Compare(o.Failed)) > 0
}

// ACME is where certificates come from, with the secrets that the daemon read
// for the edge. It is never logged or stored.
type ACME struct {
	vps.ACMESettings
	// Roots are the PEM text of CAFile, empty for the system's. EABKey and DNSKey
	// are what EABKeyFile and DNSKeyFile hold.
	Roots  string `json:"roots,omitempty"`
	EABKey string `json:"eab_key,omitempty"`
	DNSKey string `json:"dns_key,omitempty"`
	// Fault is a sentence for the owner when a file cannot be read. What is there
	// stays, and nothing new is got.
	Fault string `json:"fault,omitempty"`
}

// Terminated are the names that certificates are needed for, sorted, each once.
func (c *Config) Terminated() []string {
	names := map[string]bool{}
	for i := range c.Guests {
		for j := range c.Guests[i].Domains {
			if d := &c.Guests[i].Domains[j]; d.Terminate {
				names[d.Name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}
