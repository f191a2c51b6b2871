package vps

import (
	"fmt"
	"time"
)

// CertificateState says how it is with a certificate.
type CertificateState string

// The states.
const (
	CertificateGetting CertificateState = "getting" // there is none, and it is being got
	CertificateFailed  CertificateState = "failed"  // there is none that is good, and getting it failed
	CertificateValid   CertificateState = "valid"   // there is one; Error tells when renewing it failed
)

// Certificate is how it is with the certificate of a name that the edge gets.
type Certificate struct {
	Name  string           `json:"name" doc:"What it is for: a host name, or *.SUFFIX."`
	State CertificateState `json:"state" enum:"getting,failed,valid" doc:"Whether there is one, it is being got, or that failed."`
	// Issuer and Expires are those of the certificate that is there.
	Issuer  string    `json:"issuer,omitempty" doc:"Who gave the one that is there."`
	Expires time.Time `json:"expires,omitzero" doc:"When the one that is there ends."`
	// Error is a sentence for the owner: why it failed at Failed. Retry is when it is
	// tried again, the zero value when that is not known: a renewal.
	Error  string    `json:"error,omitempty" doc:"Why getting or renewing it failed last."`
	Failed time.Time `json:"failed,omitzero" doc:"When it failed last."`
	Retry  time.Time `json:"retry,omitzero" doc:"When it is tried again."`
}

// Trouble says what is wrong, in a sentence without its end; "" for nothing.
func (c *Certificate) Trouble() string {
	const day = "2006-01-02 15:04"
	again := ""
	if !c.Retry.IsZero() {
		again = fmt.Sprintf("; it is tried again at %s UTC", c.Retry.UTC().Format(day))
	}
	switch {
	case c.State == CertificateGetting:
		return "the certificate is being got"
	case c.State == CertificateValid && c.Error == "":
		return ""
	case c.State == CertificateValid:
		return fmt.Sprintf("the certificate, which is good until %s UTC, was not renewed: %s%s", c.Expires.UTC().Format(day), c.Error, again)
	case c.Error == "":
		return "there is no good certificate"
	}
	return fmt.Sprintf("there is no certificate: %s%s", c.Error, again)
}
