package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/store"
	"sublet/internal/vps"
)

func watch(t *testing.T, s store.Store, prefix string, from int64) <-chan store.Change {
	t.Helper()
	ch, err := s.Watch(t.Context(), prefix, from)
	if err != nil {
		t.Fatalf("Watch(%q, %d): %v", prefix, from, err)
	}
	return ch
}

// next waits for the next change; ok is false for a closed channel.
func next(t *testing.T, ch <-chan store.Change) (c store.Change, ok bool) {
	t.Helper()
	select {
	case c, ok = <-ch:
		return c, ok
	case <-time.After(patience):
		t.Fatal("a change does not arrive")
		return store.Change{}, false
	}
}

func wantChange(t *testing.T, ch <-chan store.Change, want store.Change) {
	t.Helper()
	got, ok := next(t, ch)
	if !ok || got.Err != nil {
		t.Fatalf("the watch ended with %v, want revision %d", got.Err, want.Revision)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("change (-want +got):\n%s", diff)
	}
}

func put(rev, created int64, key, value string) store.Update {
	return store.Update{Entry: store.Entry{Key: key, Value: []byte(value), Created: created, Modified: rev}}
}

func gone(rev, created int64, key string) store.Update {
	return store.Update{Entry: store.Entry{Key: key, Created: created, Modified: rev}, Deleted: true}
}

func testWatch(t *testing.T, s store.Store) {
	r1 := commit(t, s, set("g/a", "1"))
	ch := watch(t, s, "g/", r1)
	commit(t, s, set("other", "1"))
	r3 := commit(t, s, set("g/b", "1"), set("other", "2"), set("g/a", "2"))
	r4 := commit(t, s, del("g/a"))
	commit(t, s, del("g/none"))
	r5 := commit(t, s, set("g/a", "3"))
	wantChange(t, ch, store.Change{Revision: r3, Updates: []store.Update{put(r3, r3, "g/b", "1"), put(r3, r1, "g/a", "2")}})
	wantChange(t, ch, store.Change{Revision: r4, Updates: []store.Update{gone(r4, r1, "g/a")}})
	wantChange(t, ch, store.Change{Revision: r5, Updates: []store.Update{put(r5, r5, "g/a", "3")}})
	// A commit that comes while the watch waits arrives too.
	r6 := commit(t, s, set("g/", ""))
	c, _ := next(t, ch)
	if c.Revision != r6 || len(c.Updates) != 1 || c.Updates[0].Deleted {
		t.Errorf("an empty value arrives as %+v", c)
	}
}

func testWatchResumes(t *testing.T, s store.Store) {
	revs := []int64{0}
	for i := range 5 {
		revs = append(revs, commit(t, s, set("k", fmt.Sprint(i))))
	}
	for i, from := range revs[:5] {
		ch := watch(t, s, "", from)
		for j := i + 1; j <= 5; j++ {
			wantChange(t, ch, store.Change{Revision: revs[j], Updates: []store.Update{put(revs[j], revs[1], "k", fmt.Sprint(j-1))}})
		}
	}
}

// testSlowWatcher does not read for hundreds of commits, which must hold
// nobody up, and then misses none.
func testSlowWatcher(t *testing.T, s store.Store) {
	ch := watch(t, s, "k/", 0)
	const n = 600
	for i := range n {
		commit(t, s, set(fmt.Sprintf("k/%d", i%7), fmt.Sprint(i)))
	}
	for i := range n {
		c, ok := next(t, ch)
		if !ok || c.Err != nil || len(c.Updates) != 1 || string(c.Updates[0].Value) != fmt.Sprint(i) {
			t.Fatalf("change %d arrives as %+v, %v", i, c, ok)
		}
	}
}

func testWatchEnds(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	waiting, err := s.Watch(ctx, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	unread, err := s.Watch(ctx, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, set("a", "1"))
	if c, ok := next(t, waiting); !ok || c.Err != nil {
		t.Fatalf("%+v, %v", c, ok)
	}
	cancel()
	if c, ok := next(t, waiting); ok {
		t.Errorf("an ended watch says %+v", c)
	}
	for c, ok := next(t, unread); ok; c, ok = next(t, unread) { // may still hand out what it held
		if c.Err != nil {
			t.Errorf("an ended watch says %v", c.Err)
		}
	}
}

func compact(t *testing.T, s store.Store, upTo int64) {
	t.Helper()
	c, ok := s.(Compacter)
	if !ok {
		t.Fatal("the store is no Compacter, which the suite needs")
	}
	if err := c.Compact(t.Context(), upTo); err != nil {
		t.Fatalf("Compact(%d): %v", upTo, err)
	}
}

func testCompaction(t *testing.T, s store.Store) {
	r1 := commit(t, s, set("a", "1"))
	r2 := commit(t, s, set("b", "1"))
	r3 := commit(t, s, set("a", "2"))
	compact(t, s, r2)
	for _, from := range []int64{0, r1} {
		_, err := s.Watch(t.Context(), "", from)
		wantCode(t, err, vps.CodeConflict)
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("Watch from %d: %v, want ErrCompacted", from, err)
		}
	}
	wantChange(t, watch(t, s, "", r2), store.Change{Revision: r3, Updates: []store.Update{put(r3, r1, "a", "2")}})
	wantPairs(t, s, "", "a=2", "b=1")
	compact(t, s, r1) // going back does nothing
	if _, err := s.Watch(t.Context(), "", r1); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("%v, want still ErrCompacted", err)
	}
}

// testOvertaken lets the log be cut while a watcher does not read.
func testOvertaken(t *testing.T, s store.Store) {
	// Watch a prefix that nothing touches: being quiet is not being late.
	quiet := watch(t, s, "q/", 0)
	slow := watch(t, s, "k/", 0)
	var last int64
	for i := range 700 {
		last = commit(t, s, set("k/a", fmt.Sprint(i)))
	}
	c, ok := next(t, slow)
	if !ok || c.Err != nil {
		t.Fatalf("%+v, %v", c, ok)
	}
	compact(t, s, last)
	seen := c.Revision
	for {
		c, ok := next(t, slow)
		if !ok {
			t.Fatal("the watch ended without a word")
		}
		if errors.Is(c.Err, store.ErrCompacted) {
			break
		}
		if c.Err != nil || c.Revision <= seen {
			t.Fatalf("revision %d after %d, %v", c.Revision, seen, c.Err)
		}
		if seen = c.Revision; seen == last {
			break // the store had it all in hand before the cut: nothing was lost
		}
	}
	rev := commit(t, s, set("q/a", "1"))
	got, ok := next(t, quiet)
	if !ok || errors.Is(got.Err, store.ErrCompacted) {
		return // allowed: it may not have looked at the log before the cut
	}
	if got.Revision != rev {
		t.Errorf("the quiet watch got %+v, want revision %d", got, rev)
	}
}

// testHistory makes random commits and replays them from a watch: the replay
// must give what List gives, at every revision that List is asked at.
func testHistory(t *testing.T, s store.Store) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	ch := watch(t, s, "", 0)
	replica := map[string]string{}
	at := int64(0)
	for range 30 {
		for range r.IntN(8) {
			var writes []store.Write
			for _, k := range r.Perm(6)[:1+r.IntN(4)] {
				w := set(fmt.Sprintf("k%d", k), fmt.Sprint(r.IntN(1000)))
				w.Delete = r.IntN(3) == 0
				writes = append(writes, w)
			}
			commit(t, s, writes...)
		}
		entries, rev, err := s.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		for at < rev {
			c, ok := next(t, ch)
			if !ok || c.Err != nil || c.Revision <= at || len(c.Updates) == 0 {
				t.Fatalf("after revision %d: %+v, %v", at, c, ok)
			}
			at = c.Revision
			for _, u := range c.Updates {
				if u.Deleted {
					delete(replica, u.Key)
				} else {
					replica[u.Key] = string(u.Value)
				}
			}
		}
		want := map[string]string{}
		for _, e := range entries {
			want[e.Key] = string(e.Value)
		}
		if diff := cmp.Diff(want, replica); diff != "" {
			t.Fatalf("revision %d (-list +replay):\n%s", rev, diff)
		}
	}
}
