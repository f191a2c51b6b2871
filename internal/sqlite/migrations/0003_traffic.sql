-- Traffic of the past, as vps.TrafficRow tells it. Step is 1 for 5 minutes, 2
-- for hours, 3 for days, 4 for months; time is the begin of the step, in
-- seconds since 1970. Guest is an ID, empty for the host's own counter.
CREATE TABLE traffic (
    step        INTEGER NOT NULL,
    guest       TEXT NOT NULL,
    time        INTEGER NOT NULL,
    class       INTEGER NOT NULL,
    family      INTEGER NOT NULL,
    in_bytes    INTEGER NOT NULL,
    in_packets  INTEGER NOT NULL,
    out_bytes   INTEGER NOT NULL,
    out_packets INTEGER NOT NULL,
    PRIMARY KEY (step, guest, time, class, family)
) STRICT, WITHOUT ROWID;

-- The name that each guest of the ledger has, or had last.
CREATE TABLE traffic_guest (
    guest  TEXT PRIMARY KEY,
    name   TEXT NOT NULL,
    tenant TEXT NOT NULL
) STRICT;
