// Package sqlite keeps the state of one host in one SQLite file: the desired
// state as a store.Store, and beside it the history of events.
//
// A commit is on the disk when it returns (write-ahead log, synchronous=FULL),
// so a kill or a loss of power at any instant leaves the state as the last
// acknowledged commit left it. The driver is modernc.org/sqlite: SQLite itself
// in pure Go, without cgo.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver registers itself with database/sql

	"sublet/internal/durable"
	"sublet/internal/flock"
	"sublet/internal/store"
	"sublet/internal/vps"
)

// readers is the number of connections for reading. Each costs some hundred
// KiB; the daemon as a whole has to stay under 40 MiB.
const readers = 2

// limits bound what grows with time.
type limits struct {
	revisions int64 // commits that the change log remembers
	bytes     int64 // values that the change log remembers, for all but the newest commits
	every     int64 // the log is cut once in so many commits
	events    int64 // events kept
}

func defaultLimits() limits {
	return limits{revisions: 2048, bytes: 16 << 20, every: 64, events: 20_000}
}

// DB is an open state database. All methods may be called by many goroutines
// at the same time; after Close they fail with vps.CodeUnavailable.
type DB struct {
	path  string
	log   *slog.Logger
	lock  *os.File
	write *sql.DB // one connection: SQLite has one writer
	read  *sql.DB
	keep  limits

	ledger ledger

	stop context.CancelFunc
	done <-chan struct{} // closed when Close begins
	wg   sync.WaitGroup  // the lease clock

	mu      sync.Mutex
	closed  bool
	changed chan struct{} // closed and replaced after each commit
	leases  map[store.LeaseID]*lease
	wake    chan struct{} // tells the lease clock of a new deadline; holds one
}

var _ store.Store = (*DB)(nil)

// Open opens the database at path, makes it (mode 0600) if it is missing, and
// brings its schema up to date. The folder must exist. A nil log discards.
//
// Only one process at a time may have it open: a second one is told so
// (vps.CodeConflict). A damaged file, a file that is something else, and one
// written by a newer sublet are refused with a sentence and left as they are.
// ctx bounds the opening only. The caller calls Close.
func Open(ctx context.Context, path string, log *slog.Logger) (*DB, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the path of the state database, %s, cannot be resolved", path)
	}
	lock, err := lockFile(abs)
	if err != nil {
		return nil, err
	}
	db := &DB{
		path: abs, log: log, lock: lock, keep: defaultLimits(),
		changed: make(chan struct{}),
		leases:  make(map[store.LeaseID]*lease),
		wake:    make(chan struct{}, 1),
	}
	if err := db.open(ctx); err != nil {
		return nil, errors.Join(err, db.closeFiles())
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	db.stop, db.done = stop, background.Done()
	db.wg.Go(func() { db.runLeases(background) })
	return db, nil
}

// open does the part of Open that needs cleaning up when it fails.
func (db *DB) open(ctx context.Context) error {
	if err := createFile(db.path); err != nil {
		return db.explain(err)
	}
	if err := recognise(db.path); err != nil {
		return err
	}
	var err error
	if db.write, err = db.connect(1, false); err != nil {
		return err
	}
	if db.read, err = db.connect(readers, true); err != nil {
		return err
	}
	if err := db.check(ctx); err != nil {
		return err
	}
	if err := db.migrate(ctx, embedded()); err != nil {
		return err
	}
	return db.loadLeases(ctx)
}

// connect makes a pool; no file is touched before its first use.
func (db *DB) connect(connections int, readOnly bool) (*sql.DB, error) {
	q := url.Values{}
	q.Set("_txlock", "immediate") // a write transaction never has to upgrade its lock
	q.Set("_busy_timeout", "5000")
	q.Set("_journal_mode", "WAL")
	q.Set("_synchronous", "FULL")
	q.Set("_foreign_keys", "on")
	for _, pragma := range []string{
		"cache_size(-2000)",           // KiB for each connection
		"mmap_size(0)",                // a fault in a mapped file would be a signal, not an error
		"temp_store(memory)",          // no files elsewhere
		"wal_autocheckpoint(256)",     // pages: the log stays near 1 MiB
		"journal_size_limit(1048576)", // bytes it is cut to after it grew
		"trusted_schema(off)",
	} {
		q.Add("_pragma", pragma)
	}
	if readOnly {
		q.Set("_query_only", "on")
	}
	dsn := "file:" + (&url.URL{Path: db.path}).EscapedPath() + "?" + q.Encode()
	pool, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, db.explain(err)
	}
	pool.SetMaxOpenConns(connections)
	pool.SetMaxIdleConns(connections)
	return pool, nil
}

// check reads the whole file once. It takes some milliseconds for each MiB.
func (db *DB) check(ctx context.Context) error {
	var verdict string
	if err := db.write.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return db.explain(err)
	}
	if verdict != "ok" {
		return db.damaged(errors.New(verdict))
	}
	return nil
}

// Close ends all watches and releases the file. Calling it again does
// nothing.
func (db *DB) Close() error {
	db.mu.Lock()
	again := db.closed
	db.closed = true
	db.mu.Unlock()
	if again {
		return nil
	}
	db.stop()
	db.wg.Wait()
	return db.closeFiles()
}

func (db *DB) closeFiles() error {
	var errs []error
	for _, pool := range []*sql.DB{db.read, db.write} { // the last one to close removes the log
		if pool != nil {
			errs = append(errs, pool.Close())
		}
	}
	errs = append(errs, flock.Release(db.lock))
	if err := errors.Join(errs...); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the state database %s could not be closed cleanly; nothing is lost", db.path)
	}
	return nil
}

// lockFile makes sure that this is the only process with the database. The
// kernel drops the lock when the process ends, however it ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, vps.Wrap(vps.CodeNotFound, err, "the state folder %s does not exist; make it, or name another one", filepath.Dir(path))
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return nil, full(path, err)
	case err != nil:
		return nil, vps.Wrap(vps.CodeDenied, err, "the state database %s cannot be locked; sublet has to run as root, and the folder must be writable", path)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, vps.Wrap(vps.CodeConflict, err, "another sublet daemon is using %s; stop it first, or give this one another state folder", path)
		}
		return nil, vps.Wrap(vps.CodeInternal, err, "the state database %s cannot be locked", path)
	}
	return f, nil
}

// createFile makes an empty database file that only its owner may read, or
// takes the rights of others away from one that is there: it holds password
// hashes. SQLite gives its two side files the same mode.
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	if info.Mode().Perm() != 0o600 {
		if err := f.Chmod(0o600); err != nil {
			return err
		}
	}
	return durable.SyncDir(filepath.Dir(path))
}
