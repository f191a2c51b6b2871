-- Who lived on which day: what a bill shares the fixed price by.
CREATE TABLE residency (
    day    TEXT NOT NULL, -- in the host's time zone, as 2026-10-31
    guest  TEXT NOT NULL, -- its ID
    name   TEXT NOT NULL,
    tenant TEXT NOT NULL,
    memory INTEGER NOT NULL,
    weight INTEGER NOT NULL,
    PRIMARY KEY (day, guest)
) STRICT, WITHOUT ROWID;

-- The bills of closed months as they were made, and what was corrected later.
CREATE TABLE bill (
    month   TEXT PRIMARY KEY, -- as 2026-10
    made    INTEGER NOT NULL,
    content BLOB NOT NULL -- JSON
) STRICT;
CREATE TABLE bill_correction (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    month   TEXT NOT NULL REFERENCES bill (month),
    made    INTEGER NOT NULL,
    content BLOB NOT NULL -- JSON
) STRICT;
