package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// TestFullLedger samples until the disk is full, goes on while it is, and then
// makes room: nothing is lost.
func TestFullLedger(t *testing.T) {
	t.Parallel()
	cmd := again(t, "full ledger", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func runFullLedger(ctx context.Context, dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=700"); err != nil {
		return fmt.Errorf("mounting a small file system (needs root): %w", err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	db, err := Open(ctx, filepath.Join(dir, "state.db"), nil)
	if err != nil {
		return err
	}
	s := busy(20, time.Date(2026, 10, 12, 12, 0, 0, 0, time.UTC))
	s.Quotas = []vps.Quota{vps.NewQuota(vps.QuotaGuest, s.Guests[0].Name, "Etc/UTC")}
	for err == nil { // each sample closes a step, and makes the file longer
		later(&s, 5*time.Minute)
		_, err = db.AddTraffic(ctx, s)
	}
	if err := errors.Join(wantFull(dir, err), fill(filler)); err != nil {
		return err
	}
	const more = 3
	for range more {
		later(&s, 5*time.Minute)
		if _, err := db.AddTraffic(ctx, s); err != nil {
			if err := wantFull(dir, err); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	later(&s, 5*time.Minute)
	accounts, err := db.AddTraffic(ctx, s)
	if err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	return errors.Join(wantCounted(ctx, db, &s, accounts), db.Close())
}

// wantCounted wants the ledger to have what all counters show.
func wantCounted(ctx context.Context, db *DB, s *TrafficSample, accounts []vps.QuotaAccount) error {
	var want, used vps.TrafficCount
	for _, c := range s.Counters.Links {
		want = want.Add(c.TrafficCount)
		if c.Link == s.Guests[0].Link && c.Class.Billed() {
			used = used.Add(c.TrafficCount)
		}
	}
	if len(accounts) != 1 || accounts[0].In != used.InBytes || accounts[0].Out != used.OutBytes {
		return fmt.Errorf("the accounts are %+v; want %+v in one", accounts, used)
	}
	for _, step := range vps.TrafficSteps() {
		rows, err := db.Traffic(ctx, vps.TrafficQuery{Step: step})
		if err != nil {
			return err
		}
		var got vps.TrafficCount
		for _, r := range rows {
			got = got.Add(r.TrafficCount)
		}
		if got != want {
			return fmt.Errorf("by %s the ledger has %+v; want %+v", step, got, want)
		}
	}
	return nil
}
