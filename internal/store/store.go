// Package store is the contract of what keeps the desired state: keys and
// values with transactions, a watch and leases.
//
// One host keeps its state in SQLite; many hosts may later share an etcd. The
// contract therefore asks for nothing that only one of the two can do, and
// the suite in storetest says in code what every sentence here means.
//
// # Revisions
//
// A store counts its commits. Each commit that changes anything gets the next
// revision, and everything it wrote carries that number. Revisions never go
// back and are never used twice, also across restarts.
//
// # Keys
//
// A key is 1 to 512 printable ASCII characters without spaces; "/" groups
// keys by custom ("guests/alice") and has no meaning to the store. Keys sort
// byte by byte. A value is any bytes, also none, up to 1 MiB.
package store

import (
	"context"
	"errors"
	"time"

	"sublet/internal/vps"
)

// Limits that every store keeps. A host file may change every guest of a host
// in one commit, so an etcd would have to be started with --max-txn-ops=4096
// (its default is 128) and --max-request-bytes to match.
const (
	MaxKey    = 512
	MaxValue  = 1 << 20
	MaxWrites = 4096
)

// The causes that callers tell apart. They arrive wrapped in a vps.Error with
// a sentence for the user, so test for them with errors.Is.
var (
	// ErrChanged says that a condition of a Commit did not hold
	// (vps.CodeConflict). Read again and try again.
	ErrChanged = errors.New("a precondition does not hold")
	// ErrCompacted says that the changes after the asked revision are not all
	// kept any more (vps.CodeConflict). List, and watch from what List says.
	ErrCompacted = errors.New("the revision is compacted")
	// ErrNoLease says that a lease is unknown, revoked or run out
	// (vps.CodeNotFound).
	ErrNoLease = errors.New("no such lease")
	// ErrClosed says that the store was closed (vps.CodeUnavailable).
	ErrClosed = errors.New("the store is closed")
)

// Entry is one key with its value as a reader finds it.
type Entry struct {
	Key   string
	Value []byte
	// Created and Modified are the revisions that made the key and that wrote
	// it last. A key deleted and made anew has a new Created.
	Created, Modified int64
	// Lease is the lease that the key ends with, 0 for none.
	Lease LeaseID
}

// Cond is a precondition of a Commit: the key was last written by the
// revision Modified. 0 means that the key must not exist.
type Cond struct {
	Key      string
	Modified int64
}

// Write is one write of a Commit: set Key to Value, or delete it. Deleting a
// key that does not exist is allowed and does nothing. A key that is set is
// bound to Lease, or to none when that is 0, whatever it was bound to before.
type Write struct {
	Key    string
	Value  []byte
	Delete bool
	Lease  LeaseID
}

// Update is what one commit did to one key.
type Update struct {
	// Entry is the key as the commit left it. For a deleted key it holds the
	// Key, no Value, and the commit's revision as Modified.
	Entry
	Deleted bool
}

// Change is one commit as a watcher sees it: whole, so that a watcher who
// remembers Revision can go on from there and misses nothing.
type Change struct {
	Revision int64
	// Updates are in the order of the Commit's writes and never empty, except
	// beside an Err.
	Updates []Update
	// Err is set in the last Change of a watch that ended before its context
	// did: ErrCompacted for a watcher that was overtaken, ErrClosed, or a
	// fault of the store. The channel is closed after it.
	Err error
}

// LeaseID names a lease; 0 is none. IDs are never used again.
type LeaseID int64

// Store keeps keys and values. Every method may be called by many goroutines
// at the same time, and by their end everything returned belongs to the
// caller. A context that ends while a Commit is under way may leave the
// caller not knowing whether it was done; it is never half done.
type Store interface {
	// Get returns one key, or vps.CodeNotFound.
	Get(ctx context.Context, key string) (Entry, error)

	// List returns all keys that start with prefix, sorted, and the store's
	// revision at that moment: one consistent snapshot. A Watch from that
	// revision continues it without a gap. An empty prefix means all keys; no
	// match is no error.
	List(ctx context.Context, prefix string) (entries []Entry, revision int64, err error)

	// Commit does all writes or none, and none when one of the conditions does
	// not hold (ErrChanged). It returns when the writes are durable: they then
	// survive a kill of the process and a loss of power. It returns the
	// commit's revision, or the current one when the writes changed nothing.
	// Naming a key in two writes is vps.CodeInvalid.
	Commit(ctx context.Context, conds []Cond, writes []Write) (revision int64, err error)

	// Watch sends every commit after the revision from that touches a key
	// with this prefix: in order, each once, none lost, however slow the
	// reader is. It fails with ErrCompacted when from is older than the store
	// remembers and with vps.CodeInvalid when it lies in the future. The
	// channel is closed when ctx ends, with nothing said, or after a Change
	// with Err. A reader that stops reading must end ctx.
	Watch(ctx context.Context, prefix string, from int64) (<-chan Change, error)

	// Grant makes a lease that lasts at least ttl, and about as long, counted
	// from its last Renew. ttl is at least one second; a fraction of a second
	// is rounded up. When a lease ends all its keys are deleted in one commit.
	// A restart of the store gives every lease its whole ttl again.
	Grant(ctx context.Context, ttl time.Duration) (LeaseID, error)

	// Renew starts the lease's time anew, or fails with ErrNoLease.
	Renew(ctx context.Context, id LeaseID) error

	// Revoke ends a lease and deletes its keys, or fails with ErrNoLease.
	Revoke(ctx context.Context, id LeaseID) error
}

// CheckKey tells whether a store takes this key; the error is
// vps.CodeInvalid.
func CheckKey(key string) error {
	if key == "" {
		return vps.Errorf(vps.CodeInvalid, "a key of the store must not be empty")
	}
	return CheckPrefix(key)
}

// CheckPrefix is CheckKey for a prefix, which may be empty.
func CheckPrefix(prefix string) error {
	if len(prefix) > MaxKey {
		return vps.Errorf(vps.CodeInvalid, "a key of the store has %d characters, over the limit of %d", len(prefix), MaxKey)
	}
	for _, b := range []byte(prefix) {
		if b <= ' ' || b > '~' {
			return vps.Errorf(vps.CodeInvalid, "the key %q has a character that is not printable ASCII", prefix)
		}
	}
	return nil
}

// CheckCommit does the checks on the arguments of a Commit that need no
// store; the error is vps.CodeInvalid.
func CheckCommit(conds []Cond, writes []Write) error {
	if len(conds) > MaxWrites || len(writes) > MaxWrites {
		return vps.Errorf(vps.CodeInvalid, "one commit takes at most %d conditions and %d writes", MaxWrites, MaxWrites)
	}
	for _, c := range conds {
		if err := CheckKey(c.Key); err != nil {
			return err
		}
	}
	seen := make(map[string]struct{}, len(writes))
	for _, w := range writes {
		if err := CheckKey(w.Key); err != nil {
			return err
		}
		if _, twice := seen[w.Key]; twice {
			return vps.Errorf(vps.CodeInvalid, "one commit writes the key %q twice", w.Key)
		}
		seen[w.Key] = struct{}{}
		if len(w.Value) > MaxValue {
			return vps.Errorf(vps.CodeInvalid, "the value of %q has %d bytes, over the limit of %d", w.Key, len(w.Value), MaxValue)
		}
	}
	return nil
}

// CheckTTL returns ttl in whole seconds, rounded up; the error for one that
// is too short is vps.CodeInvalid.
func CheckTTL(ttl time.Duration) (seconds int64, err error) {
	if ttl < time.Second {
		return 0, vps.Errorf(vps.CodeInvalid, "a lease lasts at least one second, not %s", ttl)
	}
	seconds = int64(ttl / time.Second)
	if ttl%time.Second != 0 {
		seconds++
	}
	return seconds, nil
}
