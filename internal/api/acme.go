package api

import "sublet/internal/vps"

// UpdateACME changes vps.ACMESettings. A nil field stays as it is.
type UpdateACME struct {
	Directory    *string `json:"directory,omitempty" doc:"The https URL of the certificate authority's ACME directory; empty for Let's Encrypt."`
	CAFile       *string `json:"ca_file,omitempty" doc:"A file on the host with the certificates that the directory's own is checked with; empty for the system's."`
	Email        *string `json:"email,omitempty" doc:"An address that the authority is told; empty for none."`
	AgreeTerms   *bool   `json:"agree_terms,omitempty" doc:"Whether the owner agrees to the authority's terms."`
	EABKeyID     *string `json:"eab_key_id,omitempty" doc:"The name of the key that the authority gave for its accounts; empty for none."`
	EABKeyFile   *string `json:"eab_key_file,omitempty" doc:"A file on the host with that key, in base64url in one line."`
	DNSServer    *string `json:"dns_server,omitempty" doc:"A DNS server that takes dynamic updates, HOST or HOST:PORT; empty for none."`
	DNSKeyName   *string `json:"dns_key_name,omitempty" doc:"The name of the key that updates are signed with."`
	DNSAlgorithm *string `json:"dns_algorithm,omitempty" enum:"hmac-sha256,hmac-sha224,hmac-sha384,hmac-sha512" doc:"How updates are signed."`
	DNSKeyFile   *string `json:"dns_key_file,omitempty" doc:"A file on the host with that key, in base64 in one line."`
}

// Apply puts what a request names over the settings as they are.
func (u UpdateACME) Apply(s vps.ACMESettings) vps.ACMESettings {
	set(&s.Directory, u.Directory)
	set(&s.CAFile, u.CAFile)
	set(&s.Email, u.Email)
	set(&s.AgreeTerms, u.AgreeTerms)
	set(&s.EABKeyID, u.EABKeyID)
	set(&s.EABKeyFile, u.EABKeyFile)
	set(&s.DNSServer, u.DNSServer)
	set(&s.DNSKeyName, u.DNSKeyName)
	set(&s.DNSAlgorithm, u.DNSAlgorithm)
	set(&s.DNSKeyFile, u.DNSKeyFile)
	return s
}
