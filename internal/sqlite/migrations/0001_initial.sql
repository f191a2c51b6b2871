-- "SLBT": tells this file from other SQLite databases.
PRAGMA application_id = 1397506644;

-- One row: the revision of the last commit, and the revision up to which the
-- change log has been cut off.
CREATE TABLE store (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    revision  INTEGER NOT NULL,
    compacted INTEGER NOT NULL
) STRICT;
INSERT INTO store (id, revision, compacted) VALUES (1, 0, 0);

-- A lease's deadline is kept in memory only: see leases.go.
CREATE TABLE lease (
    id  INTEGER PRIMARY KEY AUTOINCREMENT,
    ttl INTEGER NOT NULL CHECK (ttl > 0) -- seconds
) STRICT;

CREATE TABLE entry (
    key      TEXT PRIMARY KEY,
    value    BLOB NOT NULL,
    created  INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    lease    INTEGER REFERENCES lease (id)
) STRICT;
CREATE INDEX entry_lease ON entry (lease) WHERE lease IS NOT NULL;

-- The change log that watchers read. A NULL value is a deletion.
CREATE TABLE change (
    revision INTEGER NOT NULL,
    position INTEGER NOT NULL,
    key      TEXT NOT NULL,
    value    BLOB,
    created  INTEGER NOT NULL,
    lease    INTEGER NOT NULL,
    PRIMARY KEY (revision, position)
) STRICT, WITHOUT ROWID;

-- What happened, for people. Times are nanoseconds since 1970, UTC.
CREATE TABLE event (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    time    INTEGER NOT NULL,
    guest   TEXT NOT NULL,
    kind    TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
CREATE INDEX event_guest ON event (guest, id);
