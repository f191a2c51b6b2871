// Package flock gives back locks of flock(2).
package flock

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Release gives a lock on an open file back, and closes the file. Closing is
// not enough: a child that is being started has a copy of the descriptor until
// its exec, and the lock would last as long. Safe without a lock; the file must
// not be used by others at the time.
func Release(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}
