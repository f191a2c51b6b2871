package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/store"
	"sublet/internal/store/storetest"
	"sublet/internal/vps"
)

func openAt(t *testing.T, path string) *DB {
	t.Helper()
	db, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return db
}

func openNew(t *testing.T) *DB {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "state.db"))
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { t.Helper(); return openNew(t) })
}

func mustCommit(t *testing.T, db *DB, writes ...store.Write) int64 {
	t.Helper()
	rev, err := db.Commit(t.Context(), nil, writes)
	if err != nil {
		t.Fatalf("Commit: %v", err)
	}
	return rev
}

func wantError(t *testing.T, err error, code vps.Code, parts ...string) {
	t.Helper()
	if vps.ErrorCode(err) != code {
		t.Errorf("%v has the code %q, want %q", err, vps.ErrorCode(err), code)
	}
	for _, part := range parts {
		if !strings.Contains(vps.ErrorMessage(err), part) {
			t.Errorf("%q does not say %q", vps.ErrorMessage(err), part)
		}
	}
}

func TestReopen(t *testing.T) {
	t.Parallel()
	// A name with the characters that mean something in a URI.
	path := filepath.Join(t.TempDir(), "a b?c%20#d.db")
	db := openAt(t, path)
	lease, err := db.Grant(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r1 := mustCommit(t, db, store.Write{Key: "a", Value: []byte("1"), Lease: lease})
	mustCommit(t, db, store.Write{Key: "b"})
	mustCommit(t, db, store.Write{Key: "b", Delete: true})
	if _, err := db.AddEvent(t.Context(), vps.Event{Kind: vps.EventCreated}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	db = openAt(t, path)
	entries, rev, err := db.List(t.Context(), "")
	if err != nil || rev != r1+2 {
		t.Fatalf("revision %d, %v; want %d", rev, err, r1+2)
	}
	want := []store.Entry{{Key: "a", Value: []byte("1"), Created: r1, Modified: r1, Lease: lease}}
	if diff := cmp.Diff(want, entries); diff != "" {
		t.Error(diff)
	}
	ch, err := db.Watch(t.Context(), "", r1)
	if err != nil {
		t.Fatal(err)
	}
	if c := <-ch; c.Revision != r1+1 {
		t.Errorf("the log is gone: %+v", c)
	}
	if err := db.Renew(t.Context(), lease); err != nil {
		t.Errorf("the lease is gone: %v", err)
	}
	if events, err := db.Events(t.Context(), EventQuery{}); err != nil || len(events) != 1 {
		t.Errorf("events %v, %v", events, err)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if info, err := n.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, want 0600", n.Name(), info.Mode())
		}
	}
}

func TestOpenTakesRightsAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	openAt(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOpenTwice(t *testing.T) {
	t.Parallel()
	db := openNew(t)
	_, err := Open(t.Context(), db.path, nil)
	wantError(t, err, vps.CodeConflict, "another sublet", db.path)
	mustCommit(t, db, store.Write{Key: "a"})
}

// TestOpenBesideFork: a program that is being started has a copy of every
// descriptor until its exec, which is when closing alone unlocks nothing.
func TestOpenBesideFork(t *testing.T) {
	t.Parallel()
	db := openNew(t)
	fork, err := unix.FcntlInt(db.lock.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fork) }()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	openAt(t, db.path)
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	foreign := func(t *testing.T, path, script string) {
		t.Helper()
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), script); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ours := func(t *testing.T, path string) {
		t.Helper()
		db := openAt(t, path)
		for i := range 200 {
			mustCommit(t, db, store.Write{Key: fmt.Sprintf("k%d", i), Value: make([]byte, 2000)})
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name    string
		prepare func(t *testing.T, path string)
		code    vps.Code
		says    string
	}{
		{"text", func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(strings.Repeat("not a database ", 99)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, vps.CodeInvalid, "no SQLite database"},
		{"cut short", func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path, []byte("SQLite format 3\x00"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, vps.CodeInvalid, "damaged"},
		{"another program's", func(t *testing.T, path string) {
			t.Helper()
			foreign(t, path, "PRAGMA application_id=7; CREATE TABLE x(y)")
		}, vps.CodeInvalid, "another program"},
		{"another program's without an id", func(t *testing.T, path string) {
			t.Helper()
			foreign(t, path, "CREATE TABLE x(y)")
		}, vps.CodeInvalid, "another program"},
		{"newer", func(t *testing.T, path string) {
			t.Helper()
			ours(t, path)
			foreign(t, path, "PRAGMA user_version=99")
		}, vps.CodeConflict, "newer sublet"},
		{"damaged", func(t *testing.T, path string) {
			t.Helper()
			ours(t, path)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte(strings.Repeat("\xa5", 64<<10)), 8192); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}, vps.CodeInternal, "damaged and was left as it is"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "state.db")
			tt.prepare(t, path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Open(t.Context(), path, nil)
			wantError(t, err, tt.code, tt.says, path)
			// SQLite may note the journal mode in the first page's header.
			after, err := os.ReadFile(path)
			if err != nil || len(before) != len(after) || string(before[min(100, len(before)):]) != string(after[min(100, len(after)):]) {
				t.Errorf("the file was changed, %v", err)
			}
		})
	}
	_, err := Open(t.Context(), filepath.Join(t.TempDir(), "none", "state.db"), nil)
	wantError(t, err, vps.CodeNotFound, "does not exist")
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	db := openNew(t)
	version := func() (v int) {
		if err := db.read.QueryRowContext(t.Context(), "PRAGMA user_version").Scan(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	script := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	from := fstest.MapFS{}
	first := version()
	for i := range first {
		from[fmt.Sprintf("%04d_there.sql", i+1)] = script("not run again")
	}
	more, bad := fmt.Sprintf("%04d_more.sql", first+1), fmt.Sprintf("%04d_bad.sql", first+2)
	from[more] = script("CREATE TABLE two(a); INSERT INTO two VALUES (1);")
	from[bad] = script("CREATE TABLE three(a); INSERT INTO nowhere VALUES (1);")
	if err := db.migrate(t.Context(), from); err == nil {
		t.Error("a bad migration is no error")
	}
	if v := version(); v != first+1 {
		t.Errorf("version %d, want %d: the good one stays, the bad one leaves nothing", v, first+1)
	}
	from[bad] = script("CREATE TABLE three(a)")
	if err := db.migrate(t.Context(), from); err != nil || version() != first+2 {
		t.Errorf("version %d, %v; want %d", version(), err, first+2)
	}
	delete(from, more)
	if err := db.migrate(t.Context(), from); err == nil {
		t.Error("a gap in the numbers is no error")
	}
}

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	count := func(db *DB) (n, floor int64) {
		if err := db.read.QueryRowContext(t.Context(), "SELECT (SELECT count(*) FROM change), compacted FROM store").Scan(&n, &floor); err != nil {
			t.Fatal(err)
		}
		return n, floor
	}
	t.Run("commits", func(t *testing.T) {
		t.Parallel()
		db := openNew(t)
		db.keep = limits{revisions: 20, bytes: 1 << 20, every: 5, events: 10}
		for range 100 {
			mustCommit(t, db, store.Write{Key: "k"})
		}
		if n, floor := count(db); n != 20 || floor != 80 {
			t.Errorf("%d changes from %d on, want 20 from 80 on", n, floor)
		}
		_, err := db.Watch(t.Context(), "", 79)
		wantError(t, err, vps.CodeConflict)
	})
	t.Run("bytes", func(t *testing.T) {
		t.Parallel()
		db := openNew(t)
		db.keep = limits{revisions: 1000, bytes: 1000, every: 5, events: 10}
		for range 100 {
			mustCommit(t, db, store.Write{Key: "k", Value: make([]byte, 100)})
		}
		if n, floor := count(db); n != 10 || floor != 90 {
			t.Errorf("%d changes from %d on, want 10 from 90 on", n, floor)
		}
		for range 5 {
			mustCommit(t, db, store.Write{Key: "k", Value: make([]byte, 5000)})
		}
		if n, _ := count(db); n != 5 {
			t.Errorf("%d changes, want the newest 5 whatever they weigh", n)
		}
	})
}

func TestEvents(t *testing.T) {
	t.Parallel()
	db := openNew(t)
	db.keep.events = 10
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	for i := range 25 {
		ev := vps.Event{Time: at, Guest: []string{"alice", "bob", ""}[i%3], Kind: vps.EventStarted, Message: fmt.Sprint(i)}
		got, err := db.AddEvent(t.Context(), ev)
		if err != nil || got.ID != int64(i+1) || !got.Time.Equal(at) {
			t.Fatalf("AddEvent: %+v, %v", got, err)
		}
	}
	tests := []struct {
		name string
		q    EventQuery
		want []int64
	}{
		{"bounded, oldest first", EventQuery{}, []int64{16, 17, 18, 19, 20, 21, 22, 23, 24, 25}},
		{"the newest", EventQuery{Limit: 3}, []int64{23, 24, 25}},
		{"the first after", EventQuery{After: 18, Limit: 3}, []int64{19, 20, 21}},
		{"after all", EventQuery{After: 25}, nil},
		{"of a guest", EventQuery{Guest: "bob"}, []int64{17, 20, 23}},
		{"the newest of a guest", EventQuery{Guest: "bob", Limit: 1}, []int64{23}},
		{"of a guest, after", EventQuery{Guest: "alice", After: 16, Limit: 2}, []int64{19, 22}},
		{"of nobody", EventQuery{Guest: "carol"}, nil},
		{"more than there may be", EventQuery{Limit: 1 << 30, After: 24}, []int64{25}},
	}
	for _, tt := range tests {
		events, err := db.Events(t.Context(), tt.q)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		var got []int64
		for _, ev := range events {
			got = append(got, ev.ID)
			if ev.Message != fmt.Sprint(ev.ID-1) || !ev.Time.Equal(at) || ev.Kind != vps.EventStarted {
				t.Errorf("%s: %+v", tt.name, ev)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if _, err := db.Events(t.Context(), EventQuery{Limit: -1}); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("%v", err)
	}
	if ev, err := db.AddEvent(t.Context(), vps.Event{Kind: vps.EventDrift}); err != nil || ev.Time.IsZero() {
		t.Errorf("%+v, %v: want the present", ev, err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	db := openNew(t)
	waiting, err := db.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	abandoned, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	mustCommit(t, db, store.Write{Key: "a"})
	if _, err := db.Watch(abandoned, "", 0); err != nil {
		t.Fatal(err)
	}
	if c := <-waiting; c.Err != nil {
		t.Fatal(c.Err)
	}
	if err := errors.Join(db.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	if c := <-waiting; !errors.Is(c.Err, store.ErrClosed) {
		t.Errorf("the watch ends with %v, want ErrClosed", c.Err)
	}
	if _, open := <-waiting; open {
		t.Error("the channel stays open")
	}
	_, err = db.Commit(t.Context(), nil, []store.Write{{Key: "b"}})
	wantError(t, err, vps.CodeUnavailable, "closed")
	_, err = db.Get(t.Context(), "a")
	wantError(t, err, vps.CodeUnavailable)
	wantError(t, db.Renew(t.Context(), 1), vps.CodeUnavailable)
	_, err = db.Watch(t.Context(), "", 0)
	wantError(t, err, vps.CodeUnavailable)
	openAt(t, db.path) // the lock is free again
}

// TestRenewKeepsALease runs on a clock of its own.
func TestRenewKeepsALease(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	synctest.Test(t, func(t *testing.T) {
		db := openAt(t, path)
		id, err := db.Grant(t.Context(), 1500*time.Millisecond) // counts as 2 s
		if err != nil {
			t.Fatal(err)
		}
		mustCommit(t, db, store.Write{Key: "k", Lease: id})
		for range 10 {
			<-time.After(1999 * time.Millisecond)
			if err := db.Renew(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := db.Get(t.Context(), "k"); err != nil {
			t.Fatalf("the key of a renewed lease: %v", err)
		}
		<-time.After(2 * time.Second)
		if err := db.Renew(t.Context(), id); !errors.Is(err, store.ErrNoLease) {
			t.Errorf("Renew too late: %v", err)
		}
		synctest.Wait()
		if _, err := db.Get(t.Context(), "k"); vps.ErrorCode(err) != vps.CodeNotFound {
			t.Errorf("the key outlives its lease: %v", err)
		}
	})
}
