-- The links to pages: only a hash of each key is kept. Tenant is empty for the
-- owner's page over all.
CREATE TABLE page_link (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant  TEXT NOT NULL,
    hash    BLOB NOT NULL UNIQUE,
    note    TEXT NOT NULL,
    made    INTEGER NOT NULL
) STRICT;
