package terminate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/sys/unix"

	"sublet/internal/flock"
)

// storage keeps keys and certificates in files of mode 0600 in folders of 0700.
// Its locks are the kernel's (flock(2)) and not certmagic's files with times in
// them: they end with the process that holds them, however it ends, and a clock
// that was once ahead does not hold them for ever.
type storage struct {
	certmagic.FileStorage

	mu   sync.Mutex
	held map[string]*os.File
}

// pollLock is how often a lock of another process is looked at.
const pollLock = 100 * time.Millisecond

func openStorage(dir string) (*storage, error) {
	if err := os.MkdirAll(filepath.Join(dir, "locks"), 0o700); err != nil {
		return nil, fmt.Errorf("folder of certificates: %w", err)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("folder of certificates: %w", err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("folder of certificates: %s has mode %04o, and keys in it are for its owner alone: it needs 0700", dir, fi.Mode().Perm())
	}
	return &storage{FileStorage: certmagic.FileStorage{Path: dir}, held: map[string]*os.File{}}, nil
}

// Lock implements certmagic.Locker.
func (s *storage) Lock(ctx context.Context, name string) error {
	for {
		ok, err := s.TryLock(ctx, name)
		if ok || err != nil {
			return err
		}
		timer := time.NewTimer(pollLock)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// TryLock implements certmagic.TryLocker.
func (s *storage) TryLock(_ context.Context, name string) (bool, error) {
	path := s.lockPath(name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("lock: %w", err)
	}
	// Who had it before may have removed the file in between.
	if now, err := os.Stat(path); err != nil || !sameFile(f, now) {
		return false, errors.Join(flock.Release(f), ignoreNotExist(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[name] = f
	return true, nil
}

// Unlock implements certmagic.Locker.
func (s *storage) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	f := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if f == nil {
		return fmt.Errorf("unlock: %s is not locked", name)
	}
	return errors.Join(os.Remove(s.lockPath(name)), flock.Release(f))
}

func (s *storage) lockPath(name string) string {
	return filepath.Join(s.Path, "locks", certmagic.StorageKeys.Safe(name)+".lock")
}

func sameFile(f *os.File, other fs.FileInfo) bool {
	fi, err := f.Stat()
	return err == nil && os.SameFile(fi, other)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
