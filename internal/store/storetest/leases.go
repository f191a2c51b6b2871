package storetest

import (
	"errors"
	"testing"
	"time"

	"sublet/internal/store"
	"sublet/internal/vps"
)

func grant(t *testing.T, s store.Store, ttl time.Duration) store.LeaseID {
	t.Helper()
	id, err := s.Grant(t.Context(), ttl)
	if err != nil || id == 0 {
		t.Fatalf("Grant(%s): %d, %v", ttl, id, err)
	}
	return id
}

func testRevoke(t *testing.T, s store.Store) {
	a, b := grant(t, s, time.Hour), grant(t, s, time.Hour)
	if a == b {
		t.Fatalf("two leases share the id %d", a)
	}
	rev := commit(t, s, store.Write{Key: "a1", Value: []byte("1"), Lease: a}, store.Write{Key: "a2", Value: []byte("1"), Lease: a},
		store.Write{Key: "b", Value: []byte("1"), Lease: b}, set("free", "1"))
	if got := get(t, s, "a1").Lease; got != a {
		t.Errorf("the key says lease %d, want %d", got, a)
	}
	ch := watch(t, s, "", rev)
	if err := s.Renew(t.Context(), a); err != nil {
		t.Errorf("Renew: %v", err)
	}
	if err := s.Revoke(t.Context(), a); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	wantPairs(t, s, "", "b=1", "free=1")
	c, _ := next(t, ch)
	if len(c.Updates) != 2 || !c.Updates[0].Deleted || !c.Updates[1].Deleted {
		t.Errorf("the end of a lease arrives as %+v, want both deletions in one change", c)
	}
	for name, err := range map[string]error{"Revoke": s.Revoke(t.Context(), a), "Renew": s.Renew(t.Context(), a)} {
		wantCode(t, err, vps.CodeNotFound)
		if !errors.Is(err, store.ErrNoLease) {
			t.Errorf("%s of a revoked lease: %v, want ErrNoLease", name, err)
		}
	}
	if c := grant(t, s, time.Hour); c == a || c == b {
		t.Errorf("the id %d is used again", c)
	}
	// A lease without keys can be revoked too.
	if err := s.Revoke(t.Context(), grant(t, s, time.Hour)); err != nil {
		t.Errorf("Revoke of an empty lease: %v", err)
	}
}

func testLeaseRunsOut(t *testing.T, s store.Store) {
	short, long := grant(t, s, time.Second), grant(t, s, time.Hour)
	rev := commit(t, s, store.Write{Key: "s1", Lease: short}, store.Write{Key: "s2", Lease: short},
		store.Write{Key: "l", Lease: long})
	c, ok := next(t, watch(t, s, "", rev))
	if !ok || c.Err != nil || len(c.Updates) != 2 || !c.Updates[0].Deleted || !c.Updates[1].Deleted {
		t.Fatalf("a lease that ran out arrives as %+v", c)
	}
	wantPairs(t, s, "", "l=")
	if err := s.Renew(t.Context(), short); !errors.Is(err, store.ErrNoLease) {
		t.Errorf("Renew of a lease that ran out: %v, want ErrNoLease", err)
	}
	_, err := s.Commit(t.Context(), nil, []store.Write{{Key: "s1", Lease: short}})
	if !errors.Is(err, store.ErrNoLease) {
		t.Errorf("Commit with a lease that ran out: %v, want ErrNoLease", err)
	}
}

// testLeaseRebound: the last write says which lease a key has.
func testLeaseRebound(t *testing.T, s store.Store) {
	a, b := grant(t, s, time.Hour), grant(t, s, time.Hour)
	commit(t, s, store.Write{Key: "k1", Lease: a}, store.Write{Key: "k2", Lease: a}, store.Write{Key: "k3", Lease: a})
	commit(t, s, set("k1", "freed"), store.Write{Key: "k2", Value: []byte("moved"), Lease: b})
	if err := s.Revoke(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	wantPairs(t, s, "", "k1=freed", "k2=moved")
	if err := s.Revoke(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	wantPairs(t, s, "", "k1=freed")
}

func testUnknownLease(t *testing.T, s store.Store) {
	for _, id := range []store.LeaseID{0, -1, 4711} {
		if err := s.Renew(t.Context(), id); !errors.Is(err, store.ErrNoLease) {
			t.Errorf("Renew(%d): %v, want ErrNoLease", id, err)
		}
		if err := s.Revoke(t.Context(), id); !errors.Is(err, store.ErrNoLease) {
			t.Errorf("Revoke(%d): %v, want ErrNoLease", id, err)
		}
	}
	_, err := s.Commit(t.Context(), nil, []store.Write{{Key: "a", Lease: 4711}})
	wantCode(t, err, vps.CodeNotFound)
	wantPairs(t, s, "")
}
