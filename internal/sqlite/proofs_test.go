package sqlite

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// TestProofs keeps proofs over an end of the daemon, with what is told of them.
func TestProofs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 30, 6, 0, 0, 7, time.UTC)
	old := vps.Proof{Name: "a.example.org", Tenant: "bob", TenantCreated: at, Since: at, Proved: at.Add(1), Method: vps.ProofDNS, Checked: at.Add(2), Message: "so", Failing: at.Add(3), Failures: 4}
	anew := vps.Proof{Name: "a.example.org", Tenant: "bob", TenantCreated: at.Add(1), Since: at}
	owner := vps.Proof{Name: "a.example.org", Tenant: "owner"}
	news := &ProofNews{vps.Event{Kind: vps.EventDomain, Guest: "x", Message: "it is live", Time: at}, []AddressedNotice{
		{vps.Notice{Kind: vps.EventDomain, Message: "yours is live", Time: at}, []vps.NoticeTo{{Recipient: "bob", Channel: vps.ChannelMail}}},
	}}
	for _, p := range []vps.Proof{anew, owner, {Name: old.Name, Tenant: old.Tenant, TenantCreated: at, Message: "before"}} {
		if err := db.KeepProof(t.Context(), p, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.KeepProof(t.Context(), old, news); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(t.Context(), path, nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	check := func(want ...vps.Proof) {
		t.Helper()
		got, err := db.Proofs(t.Context())
		slices.SortFunc(got, func(a, b vps.Proof) int {
			if a.Tenant != b.Tenant {
				return strings.Compare(a.Tenant, b.Tenant)
			}
			return a.TenantCreated.Compare(b.TenantCreated)
		})
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	check(old, anew, owner)
	if err := db.ForgetProofs(t.Context(), []vps.Proof{anew, anew, {Name: "none"}}); err != nil {
		t.Error(err)
	}
	check(old, owner)
	events, err := db.Events(t.Context(), EventQuery{Guest: "x"})
	if err != nil || len(events) != 1 || events[0].Kind != "domain" || events[0].Message != "it is live" {
		t.Errorf("%v, %v", events, err)
	}
	notices, err := db.Notices(t.Context())
	if err != nil || len(notices) != 1 || notices[0].Recipient != "bob" || notices[0].Message != "yours is live" {
		t.Errorf("%v, %v", notices, err)
	}
}
