package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

func notices(t *testing.T, db *DB, get string) []vps.WaitingNotice {
	t.Helper()
	all, err := db.Notices(t.Context())
	if get == "next" {
		all, err = db.NextNotices(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestNotices: what is put in comes out in its order, for each recipient by
// itself, until it is done with, also by the next daemon.
func TestNotices(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	owner, bob := vps.NoticeTo{Channel: vps.ChannelMail}, vps.NoticeTo{Recipient: "bob", Channel: vps.ChannelWebhook}
	at := time.Date(2026, 11, 30, 6, 0, 0, 5e6, time.UTC)
	first := vps.Notice{Kind: "quota", Time: at, Guest: "alice", Tenant: "bob", Message: "80 % are used", Data: json.RawMessage(`{"percent":80}`)}
	second := vps.Notice{Kind: "quota", Time: at.Add(time.Second), Message: "100 % are used"}
	for _, n := range []vps.Notice{first, second} {
		if err := db.AddNotice(t.Context(), n, []vps.NoticeTo{owner, bob}); err != nil {
			t.Fatal(err)
		}
	}
	all := notices(t, db, "all")
	uids := map[string]bool{}
	for i, w := range all {
		uids[w.UID] = true
		want := vps.WaitingNotice{UID: w.UID, NoticeTo: []vps.NoticeTo{owner, bob}[i%2], Notice: []vps.Notice{first, second}[i/2]}
		want.Next = want.Time
		if diff := cmp.Diff(want, w); diff != "" {
			t.Errorf("%d: %s", i, diff)
		}
	}
	if len(all) != 4 || len(uids) != 4 {
		t.Fatalf("%d notices with %d ids", len(all), len(uids))
	}
	if err := db.NoticeFailed(t.Context(), all[0].UID, "refused", at.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := db.NoticeDone(t.Context(), all[1].UID, nil); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(t.Context(), path, nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	next := notices(t, db, "next")
	if len(next) != 2 || next[0].UID != all[0].UID || next[1].UID != all[3].UID {
		t.Fatalf("next are %+v", next)
	}
	if next[0].Tries != 1 || next[0].Error != "refused" || !next[0].Next.Equal(at.Add(time.Minute)) {
		t.Errorf("after a failure: %+v", next[0])
	}
	if err := db.NoticeDone(t.Context(), all[0].UID, &vps.Event{Kind: vps.EventNotice, Message: "given up"}); err != nil {
		t.Fatal(err)
	}
	if n, err := db.NoticesWaiting(t.Context()); n != 2 || err != nil {
		t.Errorf("%d wait, %v", n, err)
	}
	if events, err := db.Events(t.Context(), EventQuery{}); err != nil || len(events) != 1 || events[0].Message != "given up" {
		t.Errorf("events %+v, %v", events, err)
	}
	for range 2 { // a second time is no error
		if err := db.NoticeDone(t.Context(), "msg_gone", nil); err != nil {
			t.Error(err)
		}
	}
}

// TestNoticesAreBounded: a recipient who takes nothing fills his own queue
// only.
func TestNoticesAreBounded(t *testing.T) {
	t.Parallel()
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	owner, bob := vps.NoticeTo{Channel: vps.ChannelMail}, vps.NoticeTo{Recipient: "bob", Channel: vps.ChannelMail}
	if err := db.AddNotice(t.Context(), vps.Notice{Kind: "k", Message: "the owner's"}, []vps.NoticeTo{owner}); err != nil {
		t.Fatal(err)
	}
	err = db.change(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		for i := range maxNotices + 2 {
			if err := db.addNotice(ctx, tx, vps.Notice{Kind: "k", Message: fmt.Sprint(i)}, []vps.NoticeTo{bob}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	next := notices(t, db, "next")
	if all := notices(t, db, "all"); len(all) != maxNotices+1 || len(next) != 2 || next[0].Message != "the owner's" || next[1].Message != "2" {
		t.Errorf("%d wait, next are %+v", len(all), next)
	}
	events, err := db.Events(t.Context(), EventQuery{})
	if err != nil || len(events) != 2 || !strings.Contains(events[0].Message, "1 notices to bob by mail were given up") {
		t.Errorf("events %+v, %v", events, err)
	}
}
