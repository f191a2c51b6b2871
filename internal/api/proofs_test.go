package api

import (
	"context"
	"testing"
	"time"

	"sublet/internal/vps"
)

type fakeChecks struct{ *fake }

func (f fakeChecks) VerifyDomain(_ context.Context, name string) (DomainProof, error) {
	if name == "none" {
		return DomainProof{}, vps.Errorf(vps.CodeNotFound, "no guest has the domain none")
	}
	at := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	return DomainProof{
		Proof: vps.Proof{Name: name, Tenant: "bob", TenantCreated: at, Since: at, Checked: at, Message: "nothing is there"}, Guest: "alice", State: vps.DomainPending, Needed: true,
		Steps: &vps.ProofSteps{Record: "_sublet." + name, Value: "sublet=x"},
	}, nil
}

func (f fakeChecks) TestDomain(_ context.Context, name string, listen uint16) ([]vps.Hop, error) {
	if listen == 993 {
		return nil, nil
	}
	return []vps.Hop{{Hop: vps.HopSpec, State: vps.HopFailed, Message: name, Remedy: "add it"}}, nil
}

func TestDomainChecks(t *testing.T) {
	t.Parallel()
	f := newFake()
	b := f.backend()
	b.DomainChecks = fakeChecks{f}
	c := startWith(t, f, &b).Client
	p, err := c.VerifyDomain(t.Context(), "*.bücher.example")
	if err != nil || p.Name != "*.bücher.example" || p.State != vps.DomainPending || p.Steps == nil || p.Steps.Value != "sublet=x" || p.Checked.IsZero() || !p.Needed {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := c.VerifyDomain(t.Context(), "none"); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("%v", err)
	}
	hops, err := c.TestDomain(t.Context(), "a.example.org", 0)
	if err != nil || len(hops) != 1 || hops[0] != (vps.Hop{Hop: vps.HopSpec, State: vps.HopFailed, Message: "a.example.org", Remedy: "add it"}) {
		t.Errorf("%+v, %v", hops, err)
	}
	if hops, err := c.TestDomain(t.Context(), "a.example.org", 993); err != nil || len(hops) != 0 {
		t.Errorf("%+v, %v", hops, err)
	}
}
