package daemon

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sublet/internal/vps"
)

// TestSilentPortsAreTold: an edit says when nothing answers where a domain leads to.
func TestSilentPortsAreTold(t *testing.T) {
	t.Parallel()
	const at, at6 = "10.213.0.2", "2001:db8::2"
	for name, tt := range map[string]struct {
		domains []string
		answer  []string // addresses; of others, those with port 1443 are silent and the rest refuse
		want    string   // "" for nothing
		took    time.Duration
	}{
		"both answer":       {[]string{"a.example.org"}, []string{at + ":443", at + ":80"}, "", 0},
		"over IPv6 alone":   {[]string{"a.example.org port=1443 http_port=80"}, []string{"[" + at6 + "]:1443", at + ":80"}, "", answerTime},
		"none":              {[]string{"a.example.org"}, nil, "ports 443 and 80 of alice do not answer yet, to which calls of a.example.org lead; `sublet domain test a.example.org` says more", 0},
		"one":               {[]string{"*.a.example.org"}, []string{at + ":80"}, "port 443 of alice does not answer yet, to which calls of *.a.example.org lead; `sublet domain test '*.a.example.org'` says more", 0},
		"one that is mute":  {[]string{"a.example.org port=1443"}, []string{at + ":80"}, "port 1443 of alice does not answer yet, to which calls of a.example.org lead; `sublet domain test a.example.org` says more", answerTime},
		"terminated":        {[]string{"a.example.org terminate http_port=8080"}, []string{at + ":8080"}, "", 0},
		"not for web":       {[]string{"a.example.org:993"}, nil, "port 993 of alice does not answer yet, to which calls of a.example.org:993 lead; `sublet domain test a.example.org --listen 993` says more", 0},
		"several":           {[]string{"a.example.org", "b.example.org", "b.example.org:993"}, []string{at + ":80"}, "ports 443 and 993 of alice do not answer yet, to which calls of a.example.org lead; `sublet domain test a.example.org` says more", 0},
		"the second of two": {[]string{"a.example.org", "b.example.org http_port=81"}, []string{at + ":80", at + ":443"}, "port 81 of alice does not answer yet, to which calls of b.example.org lead; `sublet domain test b.example.org` says more", 0},
		"no domain":         {nil, nil, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := vps.GuestSpec{Name: "alice", Address: netip.MustParseAddr(at)}
				var domains []vps.Domain
				for _, text := range tt.domains {
					d, err := vps.ParseDomain(text)
					if err != nil {
						t.Fatal(err)
					}
					domains = append(domains, d)
				}
				dial := func(ctx context.Context, _, address string) (net.Conn, error) {
					if slices.Contains(tt.answer, address) {
						ours, theirs := net.Pipe()
						_ = theirs.Close()
						return ours, nil
					}
					if to := netip.MustParseAddrPort(address); to.Port() != 1443 {
						return nil, syscall.ECONNREFUSED
					}
					<-ctx.Done()
					return nil, ctx.Err()
				}
				begun := time.Now()
				got := silence(t.Context(), dial, &g, netip.MustParseAddr(at6), domains)
				var want []string
				if tt.want != "" {
					want = []string{tt.want}
				}
				if took := time.Since(begun); !slices.Equal(got, want) || took != tt.took {
					t.Errorf("after %s:\n%q, want\n%q", took, got, want)
				}
			})
		})
	}
}
