-- Traffic of the past. Step is 1 for 5 minutes, 2 for hours, 3 for days, 4 for
-- months; time is the begin of the step, in seconds since 1970. A row has
-- the guests whose id divided by 16 is page, those that had traffic: a row for
-- each would cost far more to write than what it says. Counts are as
-- traffic_page.go writes them. What the steps that still run have so far is not
-- in it: see traffic_link.
CREATE TABLE traffic (
    step   INTEGER NOT NULL,
    time   INTEGER NOT NULL,
    page   INTEGER NOT NULL,
    counts BLOB NOT NULL,
    PRIMARY KEY (step, time, page)
) STRICT, WITHOUT ROWID;

-- The same from before the ledger knew the guest, as another program had it.
CREATE TABLE traffic_import (
    step   INTEGER NOT NULL,
    time   INTEGER NOT NULL,
    page   INTEGER NOT NULL,
    counts BLOB NOT NULL,
    PRIMARY KEY (step, time, page)
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

-- The counters that are followed, 16 links in a row: for each its name, whose
-- it is, what the kernel showed last, and what was counted of it for that guest.
CREATE TABLE traffic_link (
    page  INTEGER PRIMARY KEY,
    links BLOB NOT NULL
) STRICT;

-- What was counted of the same links when the step that now runs began.
CREATE TABLE traffic_mark (
    step   INTEGER NOT NULL,
    page   INTEGER NOT NULL,
    totals BLOB NOT NULL,
    PRIMARY KEY (step, page)
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
