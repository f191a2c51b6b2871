package api

import (
	"context"
	"testing"

	"sublet/internal/vps"
)

// fakeDomains has the domains of one guest, alice.
type fakeDomains struct{ f *fake }

func aliceDomains() []GuestDomain {
	return []GuestDomain{
		{Guest: "alice", Tenant: "friends", Domain: vps.Domain{Name: "*.example.org", Listen: 993, Port: 1993, Caller: vps.CallerProxyV2, Wake: true}, State: vps.DomainPending, Message: "a proof is missing"},
		{Guest: "alice", Tenant: "friends", Domain: vps.Domain{Name: "blog.example.org", HTTPPort: 8080, Terminate: true, Vouched: true}, State: vps.DomainLive},
	}
}

func (d fakeDomains) Domains(_ context.Context, guest string) ([]GuestDomain, error) {
	if guest != "" && guest != "alice" {
		return nil, noGuest(guest)
	}
	return aliceDomains(), d.f.edit(func() error { return nil })
}

func (d fakeDomains) ExportDomains(_ context.Context, router, dir string) ([]RouterFile, error) {
	if dir == "/no" {
		return nil, vps.Errorf(vps.CodeConflict, "%s cannot do it", router)
	}
	return []RouterFile{{router + ".conf", "# in " + dir + "\n"}, {"names.map", ""}}, d.f.edit(func() error { return nil })
}

func TestDomainsExport(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	for router, dir := range map[string]string{RouterHAProxy: "", RouterNginx: "/etc/x y"} {
		same(t, must[[]RouterFile](t)(s.ExportDomains(ctx, router, dir)), []RouterFile{{router + ".conf", "# in " + dir + "\n"}, {"names.map", ""}})
	}
	_, err := s.ExportDomains(ctx, "apache", "")
	wantCode(t, err, vps.CodeInvalid)
	_, err = s.ExportDomains(ctx, RouterNginx, "/no")
	wantCode(t, err, vps.CodeConflict)
}

func TestDomainsRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	for _, guest := range []string{"", "alice"} {
		same(t, must[[]GuestDomain](t)(s.Domains(ctx, guest)), aliceDomains())
	}
	_, err := s.Domains(ctx, "zoe")
	wantCode(t, err, vps.CodeNotFound)
	_, err = s.Domains(ctx, "Not a name")
	wantCode(t, err, vps.CodeInvalid)
	// They are edited with the guest.
	first := []vps.Domain{{Name: "blog.example.org", Wake: true}}
	must[Change](t)(s.CreateGuest(ctx, CreateGuest{Name: "alice", Domains: first}, false))
	same(t, must[Guest](t)(s.Guest(ctx, "alice")).Spec.Domains, first)
	second := []vps.Domain{{Name: "*", Listen: 993}}
	must[Change](t)(s.UpdateGuest(ctx, "alice", UpdateGuest{Domains: &second, Expect: &Expect{Domains: &first}}, false))
	same(t, must[Guest](t)(s.Guest(ctx, "alice")).Spec.Domains, second)
	_, err = s.UpdateGuest(ctx, "alice", UpdateGuest{Domains: &first, Expect: &Expect{Domains: &first}}, false)
	if e := wantCode(t, err, vps.CodeConflict); !Changed(err) || e.Field != "expect.domains" {
		t.Errorf("%+v", e)
	}
	must[Change](t)(s.UpdateGuest(ctx, "alice", UpdateGuest{Domains: new([]vps.Domain)}, false))
	if got := must[Guest](t)(s.Guest(ctx, "alice")).Spec.Domains; len(got) > 0 {
		t.Errorf("%+v are left", got)
	}
}
