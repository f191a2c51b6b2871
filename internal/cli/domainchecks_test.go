package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (f *fake) VerifyDomain(_ context.Context, name string) (api.DomainProof, error) {
	p := api.DomainProof{
		Proof: vps.Proof{Name: name, Tenant: "bob", Since: now, Checked: now, Message: "there is no TXT record _sublet." + name}, Guest: "alice", State: vps.DomainPending, Needed: true,
		Steps: &vps.ProofSteps{Record: "_sublet." + name, Value: "sublet=abc", URL: "http://" + name + "/.well-known/sublet-abc", Content: "abc"},
	}
	switch name {
	case "none.example.org":
		return api.DomainProof{}, vps.Errorf(vps.CodeNotFound, "no guest has the domain %s", name)
	case "live.example.org":
		p.Proved, p.Method, p.State, p.Message = now, vps.ProofDNS, vps.DomainLive, "the TXT record has the token"
	case "failing.example.org":
		p.Proved, p.Failing, p.State = now.Add(-time.Hour), now, vps.DomainFailing
	case "mine.example.org":
		p = api.DomainProof{Proof: vps.Proof{Name: name, Tenant: "owner"}, Guest: "shop", State: vps.DomainLive}
	case "*.example.org":
		p.Steps = &vps.ProofSteps{Record: "_sublet.example.org", Value: "sublet=abc"}
	}
	return p, f.failure
}

func (f *fake) TestDomain(_ context.Context, name string, listen uint16) ([]vps.Hop, error) {
	hops := []vps.Hop{{Hop: vps.HopSpec, State: vps.HopOK, Message: "it is there"}, {Hop: vps.HopDNS, State: vps.HopUnknown, Message: "it leads\x1b[31m elsewhere", Remedy: "think"}}
	if listen == 993 {
		hops = append(hops, vps.Hop{Hop: vps.HopGuest, State: vps.HopFailed, Message: name + " is down", Remedy: "start it"})
	}
	return hops, f.failure
}

func TestDomainChecks(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		args     string
		code     int
		out, err string // parts of what is written
	}{
		"live":            {"domain verify live.example.org", 0, "live.example.org  alice  bob     live   the TXT record has the token", ""},
		"pending":         {"domain verify a.example.org", 1, "pending", "_sublet.a.example.org  \"sublet=abc\""},
		"and its file":    {"domain verify a.example.org", 1, "there is no TXT record", "http://a.example.org/.well-known/sublet-abc  with abc"},
		"a suffix":        {"domain verify *.example.org", 1, "pending", "the domain is not live yet"},
		"some":            {"domain verify live.example.org a.example.org", 8, "pending", "1 of 2 are not live yet"},
		"none of two":     {"domain verify b.example.org a.example.org", 1, "pending", "all 2 domains are not live yet"},
		"failing":         {"domain verify failing.example.org", 0, "failing", "To prove that failing.example.org is bob's"},
		"the owner's":     {"domain verify mine.example.org", 0, "no proof is needed", ""},
		"nobody's":        {"domain verify none.example.org", 3, "", "no guest has the domain"},
		"as JSON":         {"domain verify live.example.org -o json", 0, `"proved": "2`, ""},
		"nothing":         {"domain verify", 2, "", "needs the names of domains"},
		"a way":           {"domain test live.example.org", 0, "unknown  dns   it leads\ufffd[31m elsewhere\n               to mend it: think", ""},
		"a way that ends": {"domain test live.example.org --listen 993", 1, "failed   guest  live.example.org is down", ""},
		"only what fails": {"domain test live.example.org --listen 993 -q", 1, "failed  guest  live.example.org is down\n               to mend it: start it\n", ""},
		"a way as JSON":   {"domain test live.example.org -o json", 0, `"hop": "spec"`, ""},
		"no port":         {"domain test live.example.org --listen 99999", 2, "", "--listen"},
		"a way to two":    {"domain test a b", 2, "", "is too much"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			code := w.run(t.Context(), strings.Fields(test.args)...)
			out, errs := w.out.String(), w.errors.String()
			if code != test.code || !strings.Contains(out, test.out) || !strings.Contains(errs, test.err) {
				t.Errorf("%d\n%s\n%s", code, out, errs)
			}
		})
	}
}
