package vps

import (
	"slices"
	"testing"
	"time"
)

func TestCertificateTrouble(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 30, 17, 5, 0, 0, time.UTC)
	for want, c := range map[string]Certificate{
		"":                             {State: CertificateValid, Expires: at},
		"the certificate is being got": {State: CertificateGetting},
		"there is no certificate: it is down; it is tried again at 2026-11-30 17:05 UTC": {State: CertificateFailed, Error: "it is down", Retry: at},
		"there is no good certificate": {State: CertificateFailed, Expires: at},
		"the certificate, which is good until 2026-11-30 17:05 UTC, was not renewed: it is down": {State: CertificateValid, Error: "it is down", Expires: at},
	} {
		if got := c.Trouble(); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}

// TestListens: an authority asks on the ports of web, whatever the domain's is.
func TestListens(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		d    Domain
		want []uint16
	}{
		{Domain{Name: "a.example"}, []uint16{443, 80}},
		{Domain{Name: "a.example", Terminate: true}, []uint16{443, 80}},
		{Domain{Name: "a.example", Listen: 993}, []uint16{993}},
		{Domain{Name: "a.example", Listen: 993, Terminate: true}, []uint16{993, 443, 80}},
		{Domain{Name: "a.example", Listen: 443, Terminate: true}, []uint16{443, 80}},
		{Domain{Name: "*.example", Listen: 993, Terminate: true}, []uint16{993}},
	} {
		if got := slices.Collect(tt.d.Listens()); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %v", tt.d, got)
		}
		for range tt.d.Listens() {
			break
		}
	}
}
