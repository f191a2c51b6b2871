-- The links to pages: of each key only its SHA-256 is kept. Tenant is empty for
-- the owner's page over all. Times are nanoseconds since 1970, 0 for none;
-- tenant_made is when that tenant was made.
CREATE TABLE page_link (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant      TEXT NOT NULL,
    tenant_made INTEGER NOT NULL,
    hash        BLOB NOT NULL UNIQUE,
    note        TEXT NOT NULL,
    made        INTEGER NOT NULL
) STRICT;
