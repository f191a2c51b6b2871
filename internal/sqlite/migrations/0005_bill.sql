-- Who was there on which day: what a bill shares the fixed price by. A row
-- takes some 90 bytes, so a guest takes some 32 KiB a year.
CREATE TABLE guest_day (
    day    TEXT NOT NULL, -- in the host's time zone, as 2026-10-31
    guest  TEXT NOT NULL, -- its ID
    name   TEXT NOT NULL,
    tenant TEXT NOT NULL,
    memory INTEGER NOT NULL,
    weight INTEGER NOT NULL,
    PRIMARY KEY (day, guest)
) STRICT, WITHOUT ROWID;
CREATE INDEX guest_day_guest ON guest_day (guest, day);

-- The bills of months that are over, as they were made. The content is a
-- vps.Bill as JSON, in the format of gzip (RFC 1952).
CREATE TABLE bill (
    month   TEXT PRIMARY KEY, -- as 2026-10
    content BLOB NOT NULL
) STRICT;

-- What was corrected later; the amount is in the bill's minor unit.
CREATE TABLE bill_correction (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    month  TEXT NOT NULL REFERENCES bill (month),
    made   INTEGER NOT NULL, -- seconds since 1970
    guest  TEXT NOT NULL,    -- its name, or empty
    tenant TEXT NOT NULL,
    amount INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT;

-- The first month whose bill is made without being asked for; no row while
-- there is no price.
CREATE TABLE bill_since (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    month TEXT NOT NULL
) STRICT;
