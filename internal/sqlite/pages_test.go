package sqlite

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// TestPageLinks keeps links over an end of the daemon, and drops revoked ones.
func TestPageLinks(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 30, 6, 0, 0, 7, time.UTC)
	bob, err := db.AddPageLink(t.Context(), vps.PageLink{Tenant: "bob", Note: "by mail", Created: at, TenantCreated: at.Add(-time.Hour)}, vps.HashPageKey("bob's"))
	if err != nil {
		t.Fatal(err)
	}
	owner, err := db.AddPageLink(t.Context(), vps.PageLink{Created: at}, vps.HashPageKey("owner's"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.AddPageLink(t.Context(), owner, vps.HashPageKey("owner's")); err == nil {
		t.Error("one key opens two pages")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(t.Context(), path, nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	links, err := db.PageLinks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]vps.PageLink{bob, owner}, links); diff != "" {
		t.Error(diff)
	}
	got, err := db.PageLink(t.Context(), vps.HashPageKey("bob's"))
	if diff := cmp.Diff(bob, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if err := db.DeletePageLink(t.Context(), bob.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := db.PageLink(t.Context(), vps.HashPageKey("bob's")); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("a revoked link: %v", err)
	}
	if err := db.DeletePageLink(t.Context(), bob.ID); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("revoked twice: %v", err)
	}
	again, err := db.AddPageLink(t.Context(), bob, vps.HashPageKey("another"))
	if err != nil || again.ID <= owner.ID {
		t.Errorf("the link %d comes after %d: %v", again.ID, owner.ID, err)
	}
}
