package sqlite

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	driver "modernc.org/sqlite"
	code "modernc.org/sqlite/lib"

	"sublet/internal/store"
	"sublet/internal/vps"
)

// explain turns an error of SQLite or of the file system into one with a code
// and a sentence. Errors that have both, and ends of a context, stay.
func (db *DB) explain(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*vps.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return vps.Wrap(vps.CodeTimeout, err, "the work on the state database was broken off")
	case errors.Is(err, sql.ErrConnDone), db.isClosed():
		return vps.Wrap(vps.CodeUnavailable, errors.Join(store.ErrClosed, err), "the state database is closed; the daemon is shutting down")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return full(db.path, err)
	}
	e, ok := errors.AsType[*driver.Error](err)
	if !ok {
		return vps.Wrap(vps.CodeInternal, err, "the state database %s cannot be used", db.path)
	}
	return db.explainCode(e)
}

// explainCode tells the result codes of SQLite apart. The low byte is the
// primary code (https://www.sqlite.org/rescode.html).
func (db *DB) explainCode(e *driver.Error) error {
	switch e.Code() & 0xff {
	case code.SQLITE_FULL:
		return full(db.path, e)
	case code.SQLITE_IOERR, code.SQLITE_CANTOPEN, code.SQLITE_PROTOCOL:
		// A full disk has other names too where a side file cannot be made
		// or grow.
		if noSpace(db.path) {
			return full(db.path, e)
		}
		return vps.Wrap(vps.CodeInternal, e, "the state database %s cannot be read or written; look for disk errors with dmesg", db.path)
	case code.SQLITE_CORRUPT, code.SQLITE_NOTADB:
		return db.damaged(e)
	case code.SQLITE_READONLY, code.SQLITE_PERM, code.SQLITE_AUTH:
		return vps.Wrap(vps.CodeDenied, e, "the state database %s cannot be written; its file system may be mounted read-only", db.path)
	case code.SQLITE_BUSY, code.SQLITE_LOCKED:
		return vps.Wrap(vps.CodeConflict, e, "another program holds the state database %s locked; end it and try again", db.path)
	default:
		return vps.Wrap(vps.CodeInternal, e, "the state database %s cannot be used", db.path)
	}
}

func (db *DB) damaged(cause error) error {
	return vps.Wrap(vps.CodeInternal, cause,
		"the state database %s is damaged and was left as it is; move it and its -wal and -shm files away, then put a backup in its place or start afresh and apply an exported host file; running guests are not touched", db.path)
}

func (db *DB) isClosed() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.closed
}

func full(path string, cause error) error {
	return vps.Wrap(vps.CodeDenied, cause,
		"the file system %s, which holds %s, is full: nothing was changed; free some space there and try again", mountPoint(filepath.Dir(path)), path)
}

// noSpace tells whether the file system has less room than SQLite's smallest
// steps need: one region of its shared index is 32 KiB.
func noSpace(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(filepath.Dir(path), &st) != nil {
		return false
	}
	const need = 64 << 10
	return st.Bavail*uint64(st.Bsize) < need || (st.Files > 0 && st.Ffree == 0)
}

// mountPoint returns where the file system that holds the folder is mounted,
// or the folder itself when that cannot be found out. The format is that of
// proc_pid_mountinfo(5).
func mountPoint(dir string) string {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return dir
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return dir
	}
	defer func() { _ = f.Close() }()
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	best := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[2] != device {
			continue
		}
		// One file system can be mounted in many places; the longest one
		// that the folder lies under is the one people know it by.
		at := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		if rel, err := filepath.Rel(at, dir); err == nil && filepath.IsLocal(rel) && len(at) > len(best) {
			best = at
		}
	}
	if best == "" {
		return dir
	}
	return best
}
