package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"sublet/internal/vps"
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks our files: "SLBT", at offset 68 of the file header
// (https://www.sqlite.org/fileformat2.html#database_header).
const applicationID = 0x534c4254

func embedded() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil { // only for a malformed path
		return migrations
	}
	return sub
}

// recognise refuses a file that is not ours before SQLite opens it, because
// opening alone may already write to it. An empty file is one to be made, and
// one with a rollback journal beside it was being made when the power went:
// SQLite knows how to go back.
func recognise(path string) error {
	if _, err := os.Lstat(path + "-journal"); err == nil {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return vps.Wrap(vps.CodeDenied, err, "the state database %s cannot be read", path)
	}
	defer func() { _ = f.Close() }()
	header := make([]byte, 100)
	n, err := io.ReadFull(f, header)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return vps.Wrap(vps.CodeInternal, err, "the state database %s cannot be read; look for disk errors with dmesg", path)
	}
	if n == 0 {
		return nil
	}
	if n < len(header) || !strings.HasPrefix(string(header), "SQLite format 3\x00") {
		return vps.Errorf(vps.CodeInvalid, "%s is no SQLite database, or a damaged one, and was left as it is; move it away, then put a backup in its place or start afresh", path)
	}
	// A kill during the very first migration leaves a database of one page
	// with an id of 0 in the file, and the rest in the log or nowhere.
	if id := binary.BigEndian.Uint32(header[68:]); id != applicationID && id != 0 {
		return vps.Errorf(vps.CodeInvalid, "%s is the database of another program and was left as it is; name another state folder", path)
	}
	return nil
}

// migrate applies the migrations that the database lacks, in order, each in a
// transaction of its own that also records it.
func (db *DB) migrate(ctx context.Context, from fs.FS) error {
	names, err := migrationNames(from)
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "this build of sublet is broken: its database migrations are not in order")
	}
	var version, id, tables int
	err = errors.Join(
		db.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version),
		db.write.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id),
		db.write.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables),
	)
	switch {
	case err != nil:
		return db.explain(err)
	case id == 0 && tables > 0:
		return vps.Errorf(vps.CodeInvalid, "%s is the database of another program and was left as it is; name another state folder", db.path)
	case version > len(names):
		return vps.Errorf(vps.CodeConflict, "the state database %s was written by a newer sublet (schema %d, this one knows %d) and was left as it is; install that version again", db.path, version, len(names))
	}
	for i := version; i < len(names); i++ {
		script, err := fs.ReadFile(from, names[i])
		if err != nil {
			return vps.Wrap(vps.CodeInternal, err, "this build of sublet is broken: a database migration is missing")
		}
		err = db.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, string(script)); err != nil {
				return fmt.Errorf("%s: %w", names[i], err)
			}
			_, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(i+1))
			return err
		})
		if err != nil {
			return err
		}
		db.log.InfoContext(ctx, "state database migrated", "path", db.path, "migration", names[i])
	}
	return nil
}

// migrationNames lists the scripts and insists that they are numbered 0001,
// 0002 and so on without a gap.
func migrationNames(from fs.FS) ([]string, error) {
	names, err := fs.Glob(from, "*.sql") // sorted
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		if !strings.HasPrefix(name, fmt.Sprintf("%04d_", i+1)) {
			return nil, fmt.Errorf("migration %q is not number %d", name, i+1)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("no migrations")
	}
	return names, nil
}
