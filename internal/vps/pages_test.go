package vps_test

import (
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

func TestPageKeys(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		key := vps.NewPageKey()
		if len(key) != vps.PageKeyLength || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz234567") != "" || seen[key] {
			t.Fatalf("the key %q", key)
		}
		seen[key] = true
	}
}

func TestPageLinkOpens(t *testing.T) {
	t.Parallel()
	made := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	host := vps.Host{Tenants: []vps.Tenant{{Name: "bob", Created: made}, {Name: vps.DefaultTenant}}}
	for name, tt := range map[string]struct {
		link vps.PageLink
		want bool
	}{
		"a tenant's":              {vps.PageLink{Tenant: "bob", TenantCreated: made.Local()}, true},
		"of the owner as tenant":  {vps.PageLink{Tenant: vps.DefaultTenant}, true},
		"over all":                {vps.PageLink{}, true},
		"a tenant who is gone":    {vps.PageLink{Tenant: "carol", TenantCreated: made}, false},
		"an earlier one's of bob": {vps.PageLink{Tenant: "bob", TenantCreated: made.Add(-time.Hour)}, false},
	} {
		if got := tt.link.Opens(&host); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestPageLinkValidate(t *testing.T) {
	t.Parallel()
	for _, l := range []vps.PageLink{{Tenant: "No Name"}, {Note: strings.Repeat("x", vps.MaxPageNote+1)}} {
		if err := l.Validate(); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%v: %v", l, err)
		}
	}
}
