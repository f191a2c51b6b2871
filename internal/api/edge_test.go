package api

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// TestUpdateEdge: what is named is changed, each field to its own, and no other.
func TestUpdateEdge(t *testing.T) {
	t.Parallel()
	want := vps.EdgeSettings{
		Disabled: true, Caller: vps.CallerProxyV1, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, CallerConnections: 1, CallerRate: 2,
		HandshakeTimeout: vps.Duration(3 * time.Second), IdleTimeout: vps.Duration(4 * time.Minute), DrainTimeout: vps.Duration(5 * time.Minute), WakeTimeout: vps.Duration(6 * time.Minute),
		AccessLog: vps.AccessJSON, MetricDomains: 7, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:53")}, AllowPrivate: true,
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var u UpdateHost
	if err := json.Unmarshal([]byte(`{"edge":`+string(text)+`}`), &u); err != nil {
		t.Fatal(err)
	}
	s := vps.DefaultSettings()
	s.Edge.ACME.Email = "a@b.example"
	want.ACME.Email = "a@b.example"
	equal := cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })}
	u.Apply(&s)
	if diff := cmp.Diff(want, s.Edge, equal); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
	(UpdateHost{Edge: UpdateEdge{QUIC: new(true), TrustedProxies: &[]netip.Prefix{}}}).Apply(&s)
	want.QUIC, want.TrustedProxies = true, nil
	if diff := cmp.Diff(want, s.Edge, equal); diff != "" {
		t.Errorf("two (-want +got):\n%s", diff)
	}
}
