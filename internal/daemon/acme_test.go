package daemon

import (
	"context"
	"strings"
	"testing"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// TestCheckACME: files that cannot be used are told of when they are named, and do
// not stand in the way of other changes.
func TestCheckACME(t *testing.T) {
	t.Parallel()
	bad := vps.ACMESettings{CAFile: t.TempDir() + "/none"}
	if err := checkACME(vps.ACMESettings{}, bad); err == nil || !strings.Contains(err.Error(), "settings.edge.acme: the certificates of the authority's own cannot be read") {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := checkACME(bad, bad); err != nil {
		t.Errorf("nothing changed: %v", err)
	}
	if err := checkACME(bad, vps.ACMESettings{AgreeTerms: true}); err != nil {
		t.Errorf("mended: %v", err)
	}
}

// certificateView is an edge that tells of certificates.
type certificateView struct {
	openPorts
	all []vps.Certificate
}

func (v certificateView) Certificates(context.Context) []vps.Certificate { return v.all }

// TestAddCertificates: domains whose TLS ends at the edge say how it is with theirs.
func TestAddCertificates(t *testing.T) {
	t.Parallel()
	b := backend{&parts{edgeView: certificateView{all: []vps.Certificate{
		{Name: "a.example.org", State: vps.CertificateFailed, Error: "it is down"}, {Name: "b.example.org", State: vps.CertificateValid}, {Name: "c.example.org", State: vps.CertificateGetting},
	}}}}
	all := []api.GuestDomain{
		{Domain: vps.Domain{Name: "a.example.org", Terminate: true}, Message: "its guest does not run"},
		{Domain: vps.Domain{Name: "b.example.org", Terminate: true}},
		{Domain: vps.Domain{Name: "c.example.org"}},
		{Domain: vps.Domain{Name: "c.example.org", Listen: 993, Terminate: true}},
		{Domain: vps.Domain{Name: "d.example.org", Terminate: true}},
	}
	b.addCertificates(t.Context(), all)
	for i, want := range []string{"its guest does not run; there is no certificate: it is down", "", "", "the certificate is being got", ""} {
		if all[i].Message != want || (all[i].Certificate == nil) != (i == 2 || i == 4) {
			t.Errorf("%d: %+v", i, all[i])
		}
	}
	b.edgeView = nil
	b.addCertificates(t.Context(), all)
}
