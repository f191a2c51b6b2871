// Package storetest is the conformance suite of the store contract: what each
// sentence in package store means, as tests that every store has to pass.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/store"
	"sublet/internal/vps"
)

// patience bounds every wait, so that a broken store fails instead of
// hanging. No test depends on how long something takes.
const patience = 30 * time.Second

// Compacter is what the suite needs besides the contract: a way to make the
// store forget, which every store has but no caller of the contract uses.
type Compacter interface {
	// Compact forgets the changes up to and including a revision.
	Compact(ctx context.Context, upTo int64) error
}

// Run tests the stores that open makes: empty ones, apart from each other,
// closed by a Cleanup of the test. They must be Compacters too.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	t.Helper()
	tests := []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"get", testGet},
		{"list", testList},
		{"list is a snapshot", testSnapshot},
		{"revisions", testRevisions},
		{"conditions", testConditions},
		{"all or nothing", testAtomic},
		{"bad arguments", testBadArguments},
		{"values", testValues},
		{"racing commits", testRace},
		{"watch", testWatch},
		{"watch resumes", testWatchResumes},
		{"slow watcher", testSlowWatcher},
		{"watch ends", testWatchEnds},
		{"compaction", testCompaction},
		{"overtaken watcher", testOvertaken},
		{"random history", testHistory},
		{"revoke", testRevoke},
		{"lease runs out", testLeaseRunsOut},
		{"lease is rebound", testLeaseRebound},
		{"unknown lease", testUnknownLease},
		{"ended context", testEndedContext},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, open(t))
		})
	}
}

func set(key, value string) store.Write { return store.Write{Key: key, Value: []byte(value)} }

func del(key string) store.Write { return store.Write{Key: key, Delete: true} }

func commit(t *testing.T, s store.Store, writes ...store.Write) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), nil, writes)
	if err != nil {
		t.Fatalf("Commit(%v): %v", writes, err)
	}
	return rev
}

func get(t *testing.T, s store.Store, key string) store.Entry {
	t.Helper()
	e, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	return e
}

func wantCode(t *testing.T, err error, want vps.Code) {
	t.Helper()
	if got := vps.ErrorCode(err); got != want {
		t.Errorf("error %v has the code %q, want %q", err, got, want)
	}
}

// pairs lists keys and values as "key=value".
func pairs(t *testing.T, s store.Store, prefix string) []string {
	t.Helper()
	entries, _, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatalf("List(%q): %v", prefix, err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Key+"="+string(e.Value))
	}
	return out
}

func wantPairs(t *testing.T, s store.Store, prefix string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, pairs(t, s, prefix)); diff != "" {
		t.Errorf("List(%q) (-want +got):\n%s", prefix, diff)
	}
}

func testGet(t *testing.T, s store.Store) {
	_, err := s.Get(t.Context(), "a")
	wantCode(t, err, vps.CodeNotFound)
	r1 := commit(t, s, set("a", "1"))
	if diff := cmp.Diff(store.Entry{Key: "a", Value: []byte("1"), Created: r1, Modified: r1}, get(t, s, "a")); diff != "" {
		t.Error(diff)
	}
	r2 := commit(t, s, set("a", "2"))
	if diff := cmp.Diff(store.Entry{Key: "a", Value: []byte("2"), Created: r1, Modified: r2}, get(t, s, "a")); diff != "" {
		t.Error(diff)
	}
	commit(t, s, del("a"))
	_, err = s.Get(t.Context(), "a")
	wantCode(t, err, vps.CodeNotFound)
	r4 := commit(t, s, set("a", "3"))
	if e := get(t, s, "a"); e.Created != r4 {
		t.Errorf("a key made anew was created by %d, want %d", e.Created, r4)
	}
}

func testList(t *testing.T, s store.Store) {
	wantPairs(t, s, "")
	commit(t, s, set("g/b", "2"), set("g/a", "1"), set("g", "0"), set("g0", "9"), set("G/a", "7"), set("g/~", "8"))
	wantPairs(t, s, "", "G/a=7", "g=0", "g/a=1", "g/b=2", "g/~=8", "g0=9")
	wantPairs(t, s, "g/", "g/a=1", "g/b=2", "g/~=8")
	wantPairs(t, s, "g/a", "g/a=1")
	wantPairs(t, s, "x")
	_, rev, err := s.List(t.Context(), "x")
	if err != nil || rev != get(t, s, "g").Modified {
		t.Errorf("List: revision %d, %v; want that of the last commit", rev, err)
	}
}

// testSnapshot moves one token between two keys: no reader may ever see none
// or two of it.
func testSnapshot(t *testing.T, s store.Store) {
	commit(t, s, set("p/a", "x"))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		defer close(stop)
		for i := range 100 {
			from, to := "p/a", "p/b"
			if i%2 == 1 {
				from, to = to, from
			}
			if _, err := s.Commit(t.Context(), nil, []store.Write{del(from), set(to, "x")}); err != nil {
				t.Errorf("Commit: %v", err)
				return
			}
		}
	})
	for running := true; running; {
		select {
		case <-stop:
			running = false
		default:
		}
		entries, rev, err := s.List(t.Context(), "p/")
		if err != nil || len(entries) != 1 || entries[0].Modified != rev {
			t.Fatalf("List: %v at revision %d, %v", entries, rev, err)
		}
	}
	wg.Wait()
}

func testRevisions(t *testing.T, s store.Store) {
	r1 := commit(t, s, set("a", "1"), set("b", "1"))
	if a, b := get(t, s, "a").Modified, get(t, s, "b").Modified; a != r1 || b != r1 {
		t.Errorf("one commit has the revisions %d and %d, want %d", a, b, r1)
	}
	r2 := commit(t, s, set("a", "1"))
	if r2 <= r1 {
		t.Errorf("revision %d after %d: a write of the same value is a change", r2, r1)
	}
	if r := commit(t, s, del("none")); r != r2 {
		t.Errorf("a commit that changes nothing has the revision %d, want still %d", r, r2)
	}
	if r := commit(t, s); r != r2 {
		t.Errorf("an empty commit has the revision %d, want still %d", r, r2)
	}
	if r := commit(t, s, del("none"), set("c", "1")); r <= r2 || get(t, s, "c").Modified != r {
		t.Errorf("revision %d, want one after %d and in the key", r, r2)
	}
}

func testConditions(t *testing.T, s store.Store) {
	r1 := commit(t, s, set("a", "1"))
	r2 := commit(t, s, set("b", "1"))
	tests := []struct {
		name  string
		conds []store.Cond
		holds bool
	}{
		{"unchanged", []store.Cond{{Key: "a", Modified: r1}}, true},
		{"absent", []store.Cond{{Key: "c"}}, true},
		{"all", []store.Cond{{Key: "a", Modified: r1}, {Key: "b", Modified: r2}, {Key: "c"}}, true},
		{"there already", []store.Cond{{Key: "a"}}, false},
		{"changed", []store.Cond{{Key: "b", Modified: r1}}, false},
		{"not there", []store.Cond{{Key: "c", Modified: r1}}, false},
		{"one of many", []store.Cond{{Key: "a", Modified: r1}, {Key: "b"}}, false},
	}
	for _, tt := range tests {
		_, err := s.Commit(t.Context(), tt.conds, []store.Write{set("out", tt.name)})
		if tt.holds {
			if err != nil || string(get(t, s, "out").Value) != tt.name {
				t.Errorf("%s: %v, want it done", tt.name, err)
			}
			continue
		}
		wantCode(t, err, vps.CodeConflict)
		if !errors.Is(err, store.ErrChanged) {
			t.Errorf("%s: %v, want ErrChanged", tt.name, err)
		}
		if string(get(t, s, "out").Value) == tt.name {
			t.Errorf("%s: written nevertheless", tt.name)
		}
	}
	commit(t, s, del("a"))
	_, err := s.Commit(t.Context(), []store.Cond{{Key: "a", Modified: r1}}, []store.Write{set("a", "2")})
	if !errors.Is(err, store.ErrChanged) {
		t.Errorf("deleted in the meantime: %v, want ErrChanged", err)
	}
	// A condition alone is a question.
	if _, err := s.Commit(t.Context(), []store.Cond{{Key: "b", Modified: r2}}, nil); err != nil {
		t.Errorf("a condition without writes: %v", err)
	}
}

func testAtomic(t *testing.T, s store.Store) {
	r1 := commit(t, s, set("a", "1"), set("b", "1"))
	_, err := s.Commit(t.Context(), nil, []store.Write{set("a", "2"), del("b"), {Key: "c", Value: []byte("2"), Lease: 9999}})
	if !errors.Is(err, store.ErrNoLease) {
		t.Fatalf("%v, want ErrNoLease", err)
	}
	wantPairs(t, s, "", "a=1", "b=1")
	if _, rev, _ := s.List(t.Context(), ""); rev != r1 {
		t.Errorf("revision %d after a failed commit, want %d", rev, r1)
	}
}

func testBadArguments(t *testing.T, s store.Store) {
	long := string(bytes.Repeat([]byte("k"), store.MaxKey+1))
	for _, key := range []string{"", " ", "a b", "a\x00", "ä", "a\n", "\x7f", long} {
		_, err := s.Commit(t.Context(), nil, []store.Write{set(key, "1")})
		wantCode(t, err, vps.CodeInvalid)
		_, err = s.Commit(t.Context(), []store.Cond{{Key: key}}, nil)
		wantCode(t, err, vps.CodeInvalid)
		_, err = s.Get(t.Context(), key)
		wantCode(t, err, vps.CodeInvalid)
		if key != "" {
			_, _, err = s.List(t.Context(), key)
			wantCode(t, err, vps.CodeInvalid)
			_, err = s.Watch(t.Context(), key, 0)
			wantCode(t, err, vps.CodeInvalid)
		}
	}
	_, err := s.Commit(t.Context(), nil, []store.Write{set("a", "1"), del("a")})
	wantCode(t, err, vps.CodeInvalid)
	_, err = s.Commit(t.Context(), nil, []store.Write{{Key: "a", Value: make([]byte, store.MaxValue+1)}})
	wantCode(t, err, vps.CodeInvalid)
	_, err = s.Commit(t.Context(), nil, make([]store.Write, store.MaxWrites+1))
	wantCode(t, err, vps.CodeInvalid)
	_, err = s.Watch(t.Context(), "", -1)
	wantCode(t, err, vps.CodeInvalid)
	_, err = s.Watch(t.Context(), "", 1<<40)
	wantCode(t, err, vps.CodeInvalid)
	_, err = s.Grant(t.Context(), time.Second-1)
	wantCode(t, err, vps.CodeInvalid)
	wantPairs(t, s, "")
}

func testValues(t *testing.T, s store.Store) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	big := bytes.Repeat([]byte{0xff, 0}, store.MaxValue/2)
	for name, value := range map[string][]byte{"none": nil, "empty": {}, "every": every, "big": big} {
		commit(t, s, store.Write{Key: name, Value: value})
		if got := get(t, s, name).Value; !bytes.Equal(got, value) {
			t.Errorf("%s: %d bytes come back changed", name, len(value))
		}
	}
	// What was handed over or out belongs to its owner.
	value := []byte("mine")
	commit(t, s, store.Write{Key: "own", Value: value})
	copy(value, "xxxx")
	copy(get(t, s, "own").Value, "yyyy")
	if got := string(get(t, s, "own").Value); got != "mine" {
		t.Errorf("a value changed from outside to %q", got)
	}
}

// testRace counts with many goroutines, each repeating when it lost.
func testRace(t *testing.T, s store.Store) {
	commit(t, s, store.Write{Key: "n", Value: []byte{0}})
	const workers, rounds = 4, 10
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < rounds; {
				e, err := s.Get(t.Context(), "n")
				if err != nil {
					t.Errorf("Get: %v", err)
					return
				}
				_, err = s.Commit(t.Context(), []store.Cond{{Key: "n", Modified: e.Modified}},
					[]store.Write{{Key: "n", Value: []byte{e.Value[0] + 1}}})
				if err == nil {
					done++
				} else if !errors.Is(err, store.ErrChanged) {
					t.Errorf("Commit: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := get(t, s, "n").Value[0]; n != workers*rounds {
		t.Errorf("counted to %d, want %d: an update was lost", n, workers*rounds)
	}
}

func testEndedContext(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Commit(ctx, nil, []store.Write{set("a", "1")}); err == nil {
		t.Error("Commit works with an ended context")
	}
	if _, err := s.Get(ctx, "a"); err == nil || vps.ErrorCode(err) == vps.CodeNotFound {
		t.Errorf("Get with an ended context: %v", err)
	}
	if _, _, err := s.List(ctx, ""); err == nil {
		t.Error("List works with an ended context")
	}
	if _, err := s.Watch(ctx, "", 0); err == nil {
		t.Error("Watch works with an ended context")
	}
	wantPairs(t, s, "")
	commit(t, s, set("b", fmt.Sprint(1))) // and the store goes on working
}
