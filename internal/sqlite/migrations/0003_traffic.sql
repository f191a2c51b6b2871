-- Traffic of the past: one row for each guest that had some in a step. Step is
-- 1 for 5 minutes, 2 for hours, 3 for days, 4 for months; time is the begin of
-- the step, in seconds since 1970; counts are as tally.go writes them. What
-- the steps that still run have so far is not in it: see traffic_link.
CREATE TABLE traffic (
    step   INTEGER NOT NULL,
    time   INTEGER NOT NULL,
    guest  INTEGER NOT NULL REFERENCES traffic_guest (id),
    counts BLOB NOT NULL,
    PRIMARY KEY (step, time, guest)
) STRICT, WITHOUT ROWID;

-- The same from before the ledger knew the guest, as another program had it.
CREATE TABLE traffic_import (
    step   INTEGER NOT NULL,
    time   INTEGER NOT NULL,
    guest  INTEGER NOT NULL REFERENCES traffic_guest (id),
    counts BLOB NOT NULL,
    PRIMARY KEY (step, time, guest)
) STRICT, WITHOUT ROWID;

-- Whose traffic it is, also that of guests which are gone: the ID, empty for
-- the host itself, name and tenant as last seen, and since when it is counted, in
-- seconds since 1970.
CREATE TABLE traffic_guest (
    id     INTEGER PRIMARY KEY,
    guest  TEXT NOT NULL UNIQUE,
    name   TEXT NOT NULL,
    tenant TEXT NOT NULL,
    since  INTEGER NOT NULL
) STRICT;
CREATE INDEX traffic_guest_tenant ON traffic_guest (tenant);
INSERT INTO traffic_guest VALUES (1, '', '', '', 0);

-- The counters that are followed. Seen is what the kernel's showed last, total
-- what was counted of it for this guest. Guest is 0 while it is nobody's.
CREATE TABLE traffic_link (
    id    INTEGER PRIMARY KEY,
    link  TEXT NOT NULL UNIQUE,
    guest INTEGER NOT NULL,
    seen  BLOB NOT NULL,
    total BLOB NOT NULL
) STRICT;

-- What total was when the step that now runs began; no row for nothing.
CREATE TABLE traffic_mark (
    step  INTEGER NOT NULL,
    link  INTEGER NOT NULL REFERENCES traffic_link (id),
    total BLOB NOT NULL,
    PRIMARY KEY (step, link)
) STRICT, WITHOUT ROWID;

-- One row: the last sample, by the wall clock and by the time since the host
-- booted (both in ns), since when on the latter the two agree, the epochs of
-- the counters, and the begin of each step that now runs.
CREATE TABLE traffic_state (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    at     INTEGER NOT NULL,
    uptime INTEGER NOT NULL,
    steady INTEGER NOT NULL,
    epoch  TEXT NOT NULL,
    boot   TEXT NOT NULL,
    five   INTEGER NOT NULL,
    hour   INTEGER NOT NULL,
    day    INTEGER NOT NULL,
    month  INTEGER NOT NULL
) STRICT;
INSERT INTO traffic_state VALUES (1, 0, 0, 0, '', '', 0, 0, 0, 0);
