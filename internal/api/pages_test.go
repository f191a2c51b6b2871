package api

import (
	"context"
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

// fakeLinks is a daemon with links that are made by hand.
type fakeLinks struct{ links []vps.PageLink }

func (f *fakeLinks) PageLinks(context.Context) ([]vps.PageLink, error) { return f.links, nil }

func (f *fakeLinks) CreatePageLink(_ context.Context, c CreatePageLink) (CreatedPageLink, error) {
	l := vps.PageLink{ID: 7, Tenant: c.Tenant, Note: c.Note, Created: time.Unix(0, 0).UTC(), TenantCreated: time.Unix(1, 0)}
	f.links = append(f.links, l)
	return CreatedPageLink{Schema: SchemaVersion, PageLink: l, Address: "/t/secret"}, nil
}

func (f *fakeLinks) RevokePageLink(_ context.Context, id int64) error {
	if id != 7 {
		return vps.Errorf(vps.CodeNotFound, "there is no link %d", id)
	}
	f.links = nil
	return nil
}

func TestPageLinks(t *testing.T) {
	t.Parallel()
	f := newFake()
	b := f.backend()
	b.PageLinks = &fakeLinks{}
	s := startWith(t, f, &b)
	if _, body := s.raw(t, "GET", "/v1/page-links", "", ""); strings.Contains(body, "null") {
		t.Errorf("a null in %s", body)
	}
	made, err := s.CreatePageLink(t.Context(), CreatePageLink{Tenant: "bob", Note: "by mail"})
	check(t, err)
	if made.Address != "/t/secret" || made.ID != 7 {
		t.Errorf("%+v", made)
	}
	if _, body := s.raw(t, "GET", "/v1/page-links", "", ""); strings.Contains(body, "secret") || strings.Contains(body, "1970-01-01T00:00:01Z") {
		t.Errorf("more than a list needs in %s", body)
	}
	for _, bad := range []CreatePageLink{{}, {Tenant: "bob", All: true}, {Tenant: "No name"}, {All: true, Note: strings.Repeat("x", 2000)}} {
		if _, err := s.CreatePageLink(t.Context(), bad); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for id, want := range map[int64]vps.Code{0: vps.CodeInvalid, 8: vps.CodeNotFound} {
		if err := s.RevokePageLink(t.Context(), id); vps.ErrorCode(err) != want {
			t.Errorf("%d: %v", id, err)
		}
	}
	check(t, s.RevokePageLink(t.Context(), 7))
	links, err := s.PageLinks(t.Context())
	check(t, err)
	if len(links) != 0 {
		t.Errorf("%v are left", links)
	}
}
